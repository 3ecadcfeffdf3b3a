"""Runs a recipe in a workspace: plan, run, deliver. Both `compress` and `run` end here."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgekd.core.blobs import disk_errors
from edgekd.core.events import Reporter
from edgekd.core.plan import Plan, RunReport
from edgekd.core.report import Verdict
from edgekd.core.runner import Runner, RunSettings
from edgekd.core.stage import Execution
from edgekd.core.store import LocalStore
from edgekd.errors import BuildFailed
from edgekd.gate.artifacts import METRICS_FILE
from edgekd.pipeline.compose import compose
from edgekd.pipeline.deliver import Delivery, check_output, deliver
from edgekd.pipeline.leave_out import spared, still_to_rebuild, without
from edgekd.pipeline.page import RESOLVED
from edgekd.pipeline.prepare import prepare, resources_of
from edgekd.pipeline.recipes import Recipe, write_recipe
from edgekd.pipeline.request import Options, Request
from edgekd.pipeline.situation import Situation
from edgekd.pipeline.stages import STAGES
from edgekd.profiling.remote.for_target import require_board

PLANNED = "planned.yaml"


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """Where and how a run works; nothing here changes a result.

    Attributes:
        out: Folder of the results.
        store: Folder of reusable results.
        rebuild: Nodes to run again.
    """

    out: Path
    store: Path
    reporter: Reporter
    execution: Execution = field(default_factory=Execution)
    rebuild: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run left behind."""

    report: RunReport
    verdict: Verdict
    delivery: Delivery


class Run:
    """One request in a workspace, loaded and composed: look at its plan, then execute it.

    Args:
        workspace: Where.
        request: What was asked; composed into a recipe with `options`.
        options: How to try.
        recipe: An existing recipe instead of a request.
    """

    def __init__(
        self, workspace: Workspace, *, request: Request | None = None, options: Options | None = None,
        recipe: Recipe | None = None,
    ) -> None:  # fmt: skip
        if (request is None) == (recipe is None):
            raise ValueError("give a request or a recipe")
        self.workspace = workspace
        check_output(workspace.out)
        check_writable(workspace.out, workspace.store)
        self.store = LocalStore(workspace.store)
        asked = request if request is not None else recipe.request  # type: ignore[union-attr]  # one of them is given
        self.situation: Situation = prepare(asked, self.store, workspace.reporter, workspace.execution.board)
        self.recipe = recipe if recipe is not None else self._composed(asked, options or Options())

    def plan(self) -> Plan:
        """What `execute` would do, and why; changes nothing."""
        return self._runner().plan(self.recipe.graph, {"teacher": self.situation.teacher}, self._settings())

    def write_planned(self) -> Path:
        """Writes the recipe of a run that was only planned; beside a finished run it gets a name of its own."""
        finished = (self.workspace.out / METRICS_FILE).exists()
        path = self.workspace.out / (PLANNED if finished else RESOLVED)
        write_recipe(self.recipe, path)
        return path

    def write_resolved(self) -> Path:
        """Writes `resolved.yaml` and returns its path."""
        path = self.workspace.out / RESOLVED
        write_recipe(self.recipe, path)
        return path

    def execute(self) -> Outcome | None:
        """Runs the graph and writes the results; None on the ranks of a distributed run that follow.

        Raises:
            EdgekdError: What a stage raised; everything finished before it is kept.
            DeviceUnavailable: The board to measure on is off, found out before the work as well as after it.
        """
        if rank() == 0:
            if (board := self.workspace.execution.board) is not None:
                offer, name = require_board(board, self.situation.target), board.name or board.address
                self.workspace.reporter.message(f"• {name} is there; it has {' and '.join(offer.runtimes)}.")
                for runtime, command in offer.absent.items():
                    self.workspace.reporter.message(f"• {runtime} is not on it and is not measured: {command}")
            self.write_resolved()
        report = self._finished()
        if rank() > 0:
            return None
        delivery = deliver(report, self.recipe, self.situation, self.store, self.workspace.out)
        return Outcome(report=report, verdict=delivery.verdict, delivery=delivery)

    def _finished(self) -> RunReport:
        """The run of the whole graph, or of what is left of it where an engine could not be made."""
        rebuild = self.workspace.rebuild
        while True:
            graph = self.recipe.graph
            settings = replace(self._settings(), rebuild=rebuild)
            try:
                return self._runner().run(graph, {"teacher": self.situation.teacher}, settings)
            except BuildFailed as err:
                name = spared(graph, err)
                if name is None or distributed():  # other ranks would not know of it
                    raise
                sentence = f"{name} is left out: {err.message}"
                self.workspace.reporter.message(sentence, level="warning")
                rebuild = still_to_rebuild(graph, rebuild, name)
                decisions = (*self.recipe.decisions, sentence)
                self.recipe = self.recipe.model_copy(update={"graph": without(graph, name), "decisions": decisions})
                self.write_resolved()

    def _composed(self, request: Request, options: Options) -> Recipe:
        composition = compose(request, options, self.situation)
        return Recipe(request=request, options=options, decisions=composition.decisions, graph=composition.graph)

    def _runner(self) -> Runner:
        return Runner(STAGES, self.store, role="follower" if rank() > 0 else "leader")

    def _settings(self) -> RunSettings:
        return RunSettings(
            seed=self.recipe.request.seed,
            resources=resources_of(self.situation),
            execution=self.workspace.execution,
            reporter=self.workspace.reporter,
            rebuild=self.workspace.rebuild,
        )


def check_writable(*folders: Path) -> None:
    """A read-only folder is found before an hour of work, not after it; makes what is not there.

    Raises:
        UserError: One of them cannot be written.
    """
    for folder in folders:
        probe = folder / f".edgekd-probe-{os.getpid()}"
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            probe.touch()
            probe.unlink(missing_ok=True)


def distributed() -> bool:
    """Whether `torchrun` started this process together with others."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def rank() -> int:
    """This process's rank under `torchrun`, 0 otherwise."""
    return int(os.environ.get("RANK", "0"))
