"""The one loop over nodes: says what a run would do (`plan`), and does it (`run`).

A node runs when no intact result is kept under its key, and its key is made of what the result depends on and nothing
else; so a node that runs again and makes the same as before leaves everything after it alone. Results are kept as soon
as a node has finished, and a killed run goes on where it stopped. Failures are never kept.

Under `torchrun` one process leads: it alone decides, checks and writes. The others follow: they run the `distributed`
stages jointly with the leader and take every other result from it.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import JsonValue

from edgekd.core.blobs import disk_errors
from edgekd.core.bundle import ModelBundle
from edgekd.core.digest import Digest
from edgekd.core.graph import Graph, StageRegistry, Step
from edgekd.core.lock import Holder
from edgekd.core.plan import Action, Decision, NodeReport, Plan, RunReport
from edgekd.core.record import Record, RunKey
from edgekd.core.stage import Context, Inputs, StageResult
from edgekd.core.store import DamagedRecord, Store
from edgekd.core.walk import RunSettings, Walk
from edgekd.errors import EdgekdError, UserError

__all__ = ["Role", "RunSettings", "Runner"]

Role = Literal["leader", "follower"]


class Runner:
    """Plans and runs graphs against a store.

    Args:
        stages: Where the graph's stage names are looked up.
        store: Keeps results; `run` holds its lock as long as it works.
        role: `leader`, or `follower` on all ranks of a distributed run but the first.
        poll_s: How often a follower looks for the leader's results.
        patience_s: How long a follower waits for the leader to begin; once it has, there is no limit.
    """

    def __init__(
        self,
        stages: StageRegistry,
        store: Store,
        *,
        role: Role = "leader",
        poll_s: float = 0.2,
        patience_s: float = 600.0,
    ) -> None:
        self.stages = stages
        self.store = store
        self.role = role
        self.poll_s = poll_s
        self.patience_s = patience_s

    def plan(self, graph: Graph, inputs: Mapping[str, ModelBundle], settings: RunSettings) -> Plan:
        """What `run` would do with the same arguments, and why; changes nothing.

        Raises:
            UserError: The graph is not valid, or its inputs, the resources or the nodes to rebuild do not fit it.
        """
        walk = Walk.begin(graph, self.stages, inputs, settings)
        return Plan(decisions=tuple(self._foresee(walk)))

    def run(
        self,
        graph: Graph,
        inputs: Mapping[str, ModelBundle],
        settings: RunSettings,
        *,
        holder: Holder | None = None,
    ) -> RunReport:
        """Runs what has to run and takes the rest from the store.

        Args:
            graph: What there is to run.
            inputs: The graph's.
            settings: Of this run.
            holder: Of the store's lock, where the caller has it already.

        Raises:
            UserError: As `plan`; or the store is in use, full or read-only.
            EdgekdError: What a stage raised, or a stage broke its contract. Any other exception of a stage is a bug of
                that stage and passes through as it is.
        """
        walk = Walk.begin(graph, self.stages, inputs, settings)
        if self.role == "follower":
            nodes = self._follow(walk)
        else:
            with self.store.lock() if holder is None else nullcontext(holder) as held:
                self._check_before_work(walk.scout())
                nodes = [self._advance(walk, step, held.run) for step in walk.steps]
        return RunReport(seed=settings.seed, nodes=tuple(nodes))

    # ---- before any work

    def _foresee(self, walk: Walk) -> list[Decision]:
        """A decision for each step; afterwards `walk` knows the results that will be reused."""
        decisions: dict[str, Decision] = {}
        for step in walk.steps:
            waits_for = walk.waits_for(step)
            if waits_for:
                decisions[step.name] = self._guess(walk, step, [decisions[name] for name in waits_for])
                continue
            decisions[step.name], kept = self._decide(walk, step)
            if kept is not None:
                walk.known[step.name] = kept.bundle
        return list(decisions.values())

    def _decide(self, walk: Walk, step: Step) -> tuple[Decision, Record | None]:
        """What happens to a step whose inputs are known, and the record to reuse when it does not run."""
        key = walk.key(step)
        always = _why_always(walk, step)
        if always:
            return _decision(step, Action.RUN, always, key.digest), None
        try:
            kept = self.store.get(key.digest)
        except DamagedRecord as err:
            return _decision(step, Action.RUN, (err.message,), key.digest), None
        if kept is not None:
            return _decision(step, Action.REUSE, ("nothing changed",), key.digest), kept
        reasons = self._changes(step, key) or ("its result is no longer in the store",)
        return _decision(step, Action.RUN, reasons, key.digest), None

    def _guess(self, walk: Walk, step: Step, waits_for: list[Decision]) -> Decision:
        """What can be said about a step before its inputs are made."""
        reasons = _why_always(walk, step) or self._changes(step, walk.key(step), partial=True)
        if reasons:
            return _decision(step, Action.RUN, reasons)
        causes = [f"{d.node}, which {'will' if d.action is Action.RUN else 'may'} run" for d in waits_for]
        reasons = (f"depends on {' and '.join(causes)}", "reused if its result does not change")
        return _decision(step, Action.MAYBE, reasons)

    def _changes(self, step: Step, key: RunKey, *, partial: bool = False) -> tuple[str, ...]:
        """What differs from the node's last key, empty when nothing does; a `partial` key lacks some inputs yet."""
        try:
            last = self.store.last(step.name)
        except DamagedRecord as err:
            return (err.message,)
        if last is None:
            return ("first time",)
        return key.changes_since(last.key.at_ports_of(key) if partial else last.key)

    def _check_before_work(self, scout: Walk) -> None:
        """Lets every stage that will run, and whose inputs are known, say now that it cannot."""
        for step, decision in zip(scout.steps, self._foresee(scout), strict=True):
            if decision.action is Action.RUN and decision.key is not None:
                with _reported_failure(scout, step):
                    step.stage.requires(scout.inputs(step), self._context(scout, step, decision.key))

    def _context(self, walk: Walk, step: Step, key: Digest) -> Context:
        return walk.context(step, scratch=self.store.scratch(key), blobs=self.store.blobs)

    # ---- the leader

    def _advance(self, walk: Walk, step: Step, run: str) -> NodeReport:
        """One node, made or reused; afterwards `walk` knows its result."""
        decision, kept = self._decide(walk, step)
        if kept is None:
            record = self._make(walk, step, decision, run)
        else:
            record = kept.model_copy(update={"node": step.name, "run": run})
            self.store.note(record)
            _remove_scratch(self.store.scratch(record.key.digest))  # of a run that was killed after it kept its result
            walk.settings.reporter.node(step.name, "reused", decision.sentence)
        walk.known[step.name] = record.bundle
        return NodeReport.from_record(record, decision.action, decision.reasons)

    def _make(self, walk: Walk, step: Step, decision: Decision, run: str) -> Record:
        """Runs a node and keeps its result; after a failure or a kill its scratch folder stays."""
        reporter, key = walk.settings.reporter, walk.key(step)
        ctx = self._context(walk, step, key.digest)
        reporter.node(step.name, "start", decision.sentence)
        with _reported_failure(walk, step):
            began = time.perf_counter()
            _open_scratch(ctx.scratch, run, fresh=walk.rebuilds(step))
            result = _run_stage(step, walk.inputs(step), ctx)
            record = Record(
                node=step.name,
                run=run,
                key=key,
                bundle=result.bundle,
                metrics=_plain_metrics(step, result),
                decisions=result.decisions,
                seconds=time.perf_counter() - began,
                finished=datetime.now(UTC),
            )
            if step.stage.cacheable:
                self.store.put(record)
            self.store.note(record)
        _remove_scratch(ctx.scratch)
        reporter.node(step.name, "done", f"{record.seconds:.1f} s")
        return record

    # ---- a follower

    def _follow(self, walk: Walk) -> list[NodeReport]:
        """Runs the distributed stages with the leader, up to the last of them, and keeps nothing."""
        joint = [index for index, step in enumerate(walk.steps) if step.stage.distributed]
        run = self._await_leader(walk)
        return [self._join(walk, step, run) for step in walk.steps[: joint[-1] + 1]] if run else []

    def _await_leader(self, walk: Walk) -> str | None:
        """The token of the leader's run; None when that needs no follower, so that it may have ended already."""
        deadline = time.monotonic() + self.patience_s
        while self._has_joint_work(walk.scout()):
            holder = self.store.holder()
            if holder is not None:
                return holder.run
            if time.monotonic() > deadline:
                raise EdgekdError(f"The leader did not begin within {self.patience_s:g} s; its own output says why.")
            time.sleep(self.poll_s)
        return None

    def _has_joint_work(self, scout: Walk) -> bool:
        decisions = zip(scout.steps, self._foresee(scout), strict=True)
        return any(step.stage.distributed and decision.action is not Action.REUSE for step, decision in decisions)

    def _join(self, walk: Walk, step: Step, run: str) -> NodeReport:
        """The leader's result for a node; a distributed stage that the leader runs is run here too, once."""
        key = walk.key(step)
        ctx = self._context(walk, step, key.digest)
        joined = False
        while True:
            holder = self.store.holder()
            record = self.store.last(step.name)  # after the look at the lock: the leader may end between the two
            if record is not None and record.run == run:
                break
            if holder is None or holder.run != run:
                raise EdgekdError(f"The leader ended without a result for node {step.name!r}; its output says why.")
            if step.stage.distributed and not joined and _opened_by(ctx.scratch) == run:
                step.stage.run(walk.inputs(step), ctx)
                joined = True
            else:
                time.sleep(self.poll_s)
        differences = key.changes_since(record.key)
        if differences:
            raise EdgekdError(f"This rank and the leader differ at node {step.name!r}: {'; '.join(differences)}.")
        walk.known[step.name] = record.bundle
        if joined:
            return NodeReport.from_record(record, Action.RUN, ("jointly with the leader",))
        return NodeReport.from_record(record, Action.REUSE, ("taken from the leader",))


def _decision(step: Step, action: Action, reasons: tuple[str, ...], key: Digest | None = None) -> Decision:
    return Decision(node=step.name, stage=step.node.stage, action=action, reasons=reasons, key=key)


def _why_always(walk: Walk, step: Step) -> tuple[str, ...]:
    """Why a step runs whatever the store holds; empty when a kept result will do."""
    if not step.stage.cacheable:
        return ("not cacheable (a measurement)",)
    return ("rebuild asked for",) if walk.rebuilds(step) else ()


@contextmanager
def _reported_failure(walk: Walk, step: Step) -> Iterator[None]:
    try:
        yield
    except BaseException as err:
        walk.settings.reporter.node(step.name, "failed", str(err) or type(err).__name__)
        if isinstance(err, EdgekdError):
            err.node = step.name
        err.add_note(f"in node {step.name!r} (stage {step.node.stage!r})")
        raise


def _run_stage(step: Step, inputs: Inputs, ctx: Context) -> StageResult:
    """`requires`, `run`, `ensures`, and what the stage promises by its declaration."""
    step.stage.requires(inputs, ctx)
    result = step.stage.run(inputs, ctx)
    kinds = step.stage.output_kinds()
    if result.bundle.kind not in kinds:
        raise EdgekdError(
            f"Stage {step.node.stage!r} declares to make {' or '.join(sorted(kinds))}, and made {result.bundle.kind}."
        )
    for name, content in result.bundle.files.items():
        try:
            ctx.blobs.path(content)
        except UserError as err:
            raise EdgekdError(f"Stage {step.node.stage!r} returned the file {name!r} without adding it.") from err
    step.stage.ensures(inputs, result, ctx)
    return result


def _plain_metrics(step: Step, result: StageResult) -> dict[str, JsonValue]:
    """The metrics as a reused record will give them: tuples turned to lists, nothing that JSON cannot hold."""
    try:
        plain: dict[str, JsonValue] = json.loads(json.dumps(result.metrics, allow_nan=False))
    except (TypeError, ValueError) as err:
        raise EdgekdError(f"Stage {step.node.stage!r} returned metrics that are not finite plain data: {err}.") from err
    return plain


def _open_scratch(scratch: Path, run: str, *, fresh: bool) -> None:
    with disk_errors(scratch):
        if fresh and scratch.exists():
            shutil.rmtree(scratch)
        scratch.mkdir(parents=True, exist_ok=True)
        _marker(scratch).write_text(run)


def _opened_by(scratch: Path) -> str | None:
    """The run that has made a scratch folder ready, so that its followers may use it."""
    try:
        return _marker(scratch).read_text()
    except FileNotFoundError:
        return None


def _remove_scratch(scratch: Path) -> None:
    shutil.rmtree(scratch, ignore_errors=True)  # what cannot be removed costs space and nothing else
    _marker(scratch).unlink(missing_ok=True)


def _marker(scratch: Path) -> Path:
    return scratch.with_name(f"{scratch.name}.run")
