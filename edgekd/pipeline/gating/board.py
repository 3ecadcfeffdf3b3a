"""The gate's engines on a board: units are measured there, job after job, until the test that runs here has its answer.

Each job brings home some seconds of units with the second at which each one ended. The gate's clock is the board's: the
test looks after every unit, and time that the connection or other jobs take does not count as measuring. Units that
came with the job in which the answer became clear and lie behind it are not looked at.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgekd.core.bundle import ModelBundle
from edgekd.core.events import Reporter
from edgekd.core.packing import unpacked
from edgekd.core.report import LatencyReport
from edgekd.core.stage import BoardAccess
from edgekd.errors import DeviceUnavailable, Inconclusive, UserError
from edgekd.gate.questions import Unit
from edgekd.pipeline.gating.units import PLAN, unit_from_samples
from edgekd.pipeline.single import Workbench
from edgekd.profiling.agent.engines import ADAPTERS
from edgekd.profiling.agent.facts import throttled, warnings_from_states
from edgekd.profiling.agent.loop import Samples
from edgekd.profiling.measure import latency_report
from edgekd.profiling.remote.board import Board, board_from_access
from edgekd.profiling.remote.identity import require_target
from edgekd.profiling.remote.link import Link
from edgekd.profiling.remote.request import (
    BoardPlan,
    Trial,
    candidate_from_bundle,
    fits,
    lacking,
    require_board_format,
    unit_job_for,
    usable_runtimes,
)
from edgekd.profiling.remote.results import board_fingerprint
from edgekd.runtimes.session import described
from edgekd.targets.schema import Target

FIRST_S, LONGEST_S = 3.0, 20.0
"""Seconds of the first job, and of a later one at most: the test may stop at any unit, and each job has its price."""
MOST_UNITS = 400
"""Of one job, so that its result stays small."""


@dataclass(frozen=True, kw_only=True)
class BoardBench:
    """A board that has the files of what is to be gated.

    Attributes:
        board: Asked for what it is.
        device: Its fingerprint.
        trials: By the name of the engine.
        plan: Limits, seed and clocks of its jobs.
    """

    board: Board
    device: str
    trials: Mapping[str, Trial]
    plan: BoardPlan

    def units(self, reporter: Reporter, time_limit_s: float) -> BoardUnits:
        """Units of measurement of its engines."""
        return BoardUnits(Link(self.board, reporter, counts=False), self.trials, self.plan, time_limit_s)


def board_bench(
    access: BoardAccess,
    bench: Workbench,
    *,
    target: Target | None,
    asked: str | None,
    threads: int,
    seed: int,
    reporter: Reporter,
) -> BoardBench:
    """The board with the bundles of a workbench on it.

    Args:
        access: How it is reached.
        bench: What is gated, and the baseline's bundle.
        target: The bundle's card; None where it has none, and any board and runtime will do.
        asked: Runtime that was asked for.
        threads: CPU threads.
        seed: Of orders.
        reporter: Told of what is sent.

    Raises:
        UserError: A bundle or a runtime that no board takes.
        DeviceUnavailable: The board cannot be reached, is another device than the card's, or has none of the runtimes.
    """
    board = board_from_access(access)
    for name, bundle in bench.bundles.items():
        require_board_format(f"The {name}", bundle)
    candidates = {name: candidate_from_bundle(name, b, bench.store.blobs) for name, b in bench.bundles.items()}
    paths = {digest: path for candidate in candidates.values() for digest, path in candidate.files.items()}
    known = board.hello(*paths)
    able: tuple[str, ...] = ()
    if target is not None:
        require_target(board.name, known["machine"], target)
        able = tuple(support.runtime for support in target.runtimes if support.runtime in ADAPTERS)
    trials = {
        name: Trial(
            candidate=name,
            bundle=candidate.bundle,
            runtime=_runtime(candidate.bundle, able, asked, board, known["runtimes"]),
            threads=threads,
            size_mib=candidate.size_mib,
            fingerprint=candidate.fingerprint,
        )
        for name, candidate in candidates.items()
    }
    board.push({digest: path for digest, path in paths.items() if digest in known["missing"]}, reporter)
    plan = BoardPlan(seed=seed, threads=(threads,), lock_clocks=access.lock_clocks)
    counted = {*able, *(trial.runtime for trial in trials.values())} if able else set()
    return BoardBench(board=board, device=board_fingerprint(known, sorted(counted)), trials=trials, plan=plan)


class BoardUnits:
    """Measures on a board; each call gives the next unit.

    Args:
        link: To the board.
        trials: Engines by the names that units have.
        plan: Limits and seed of the jobs.
        time_limit_s: Of measuring: no job asks for more than what is left of it.

    Attributes:
        reports: Of the latest unit, by engine.
        notes: Sentences on what may have disturbed the measurement.
    """

    def __init__(self, link: Link, trials: Mapping[str, Trial], plan: BoardPlan, time_limit_s: float) -> None:
        self._link, self._trials, self._plan, self._time_limit_s = link, trials, plan, time_limit_s
        self._waiting: deque[tuple[float, dict[str, Samples]]] = deque()
        self._facts: dict[str, dict[str, Any]] = {}
        self._context: dict[str, Any] = {}
        self._now_s = 0.0
        self.jobs = 0
        self.reports: dict[str, LatencyReport] = {}
        self.notes: list[str] = []

    def __call__(self) -> Unit:
        """The next unit.

        Raises:
            DeviceUnavailable: The connection stayed lost, or an engine does not open or run there.
            Inconclusive: The board throttled while measuring.
        """
        if not self._waiting:
            self._measure()
        self._now_s, samples = self._waiting.popleft()
        for name, found in samples.items():
            trial = self._trials[name]
            report = latency_report(
                found,
                runtime=trial.runtime,
                precision=trial.precision,
                threads=trial.threads,
                batch=1,
                session=self._facts[name],
                asked=PLAN.precision,
            )
            environment = {**report.environment, **self._context}
            self.reports[name] = report.model_copy(update={"environment": environment})
        return unit_from_samples(samples)

    def clock_s(self) -> float:
        """Seconds of measuring on the board up to the end of the latest unit."""
        return self._now_s

    def _measure(self) -> None:
        """Has the next units measured."""
        left_s = max(self._time_limit_s - self._now_s, PLAN.duration_s)
        seconds = min(max(FIRST_S, self._now_s), LONGEST_S, left_s)
        job_id, spec = unit_job_for(
            list(self._trials.values()), self._plan, PLAN, seconds=seconds, most=MOST_UNITS, batch=self.jobs
        )
        result = self._link.result_of(job_id, spec)
        self.jobs += 1
        (run,) = result["runs"]
        if (heat := throttled(run["before"], run["after"])) is not None:
            raise Inconclusive(
                f"{heat} Nothing was judged.", hint="cool it, lower its clocks, or measure for less long"
            )
        said = [f"On {self._link.board.name}: {sentence}." for sentence in result["clocks"]]
        said += warnings_from_states(run["before"], run["after"], float(run["took_s"]))
        said += [run["floating"]] if run["floating"] else []
        self.notes += [text for text in said if text not in self.notes]
        self._context = {
            "board": self._link.board.name,
            "machine": result["machine"],
            "before": run["before"],
            "after": run["after"],
        }
        entries = dict(zip(self._trials, result["entries"], strict=True))
        self._facts = {name: dict(entry["facts"]) for name, entry in entries.items()}
        ends_s = run["unit_ends_s"]
        for number, end_s in enumerate(ends_s):
            unit = {
                name: Samples(warmup_n=entry["warmup_n"] // len(ends_s), rounds_ns=unpacked(entry["units"][number]))
                for name, entry in entries.items()
            }
            self._waiting.append((self._now_s + float(end_s), unit))


def _runtime(
    bundle: ModelBundle, able: Sequence[str], asked: str | None, board: Board, offers: Mapping[str, Any]
) -> str:
    """The runtime asked for, the one the bundle was chosen for, or the first of the target's that the board has."""
    login = board.ssh.address.command
    tagged = bundle.tags.get("runtime")
    own = asked or (str(tagged) if isinstance(tagged, str) else None)
    if own is not None and own not in ADAPTERS:
        chosen = "asked for" if asked else "what the bundle was chosen for"
        raise UserError(
            f"{own} is {chosen}, and on a board the runtimes are {', '.join(ADAPTERS)}.",
            hint=f"--runtime {next(iter(ADAPTERS))}",
        )
    wanted = BoardPlan(runtimes=(own,) if own else ())
    there = usable_runtimes(board.name, board.python, login, wanted, offers)
    ordered = [name for name in able if name in there] or there
    for name in ordered:
        if fits(bundle, name):
            return name
    absent = lacking(bundle, offers, login, able or tuple(ADAPTERS))
    if absent is not None:
        raise DeviceUnavailable(
            f"{board.name}: {absent[0]} is not installed for {board.python}, and {described(bundle)} needs it.",
            hint=absent[1],
        )
    raise UserError(
        f"{' and '.join(ordered)} on the board do not run {described(bundle)} of this form.",
        hint="export to ONNX first; quantized graphs must have the form that the runtime reads",
    )
