"""Runs a search and nothing after it, and writes what it found where a next step can take it up.

The nodes are those that a compression has, so a compression with the same options takes their results from the store.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekd.core.blobs import disk_errors
from edgekd.core.plan import Plan
from edgekd.core.runner import Runner, RunSettings
from edgekd.core.store import LocalStore
from edgekd.errors import UserError
from edgekd.pipeline.compose import compose
from edgekd.pipeline.draft import Draft
from edgekd.pipeline.execute import Workspace, check_writable
from edgekd.pipeline.prepare import prepare, resources_of
from edgekd.pipeline.recipes import Recipe, write_recipe
from edgekd.pipeline.request import Options, Request
from edgekd.pipeline.results import search_report_of
from edgekd.pipeline.search import SEARCH, draft_search, with_images
from edgekd.pipeline.stages import STAGES
from edgekd.search.report import Pick, SearchReport

FOUND = "search.json"
COMPRESS = "compress.yaml"
"""The recipe that goes on with the picks."""


@dataclass(frozen=True, kw_only=True)
class SearchOutcome:
    """What a search found, and how to go on.

    Attributes:
        picks: As many as were asked for, or as there are.
        decisions: Of the nodes, in their order.
        files: What was written.
        next_steps: (what it does, command).
    """

    report: SearchReport
    picks: tuple[Pick, ...]
    decisions: tuple[str, ...]
    files: tuple[Path, ...]
    next_steps: tuple[tuple[str, str], ...]


class SearchRun:
    """One search in a workspace: look at its plan, then execute it.

    Args:
        workspace: Where.
        request: The teacher, the target, the data and the budget.
        options: Space, searcher, ranking, evaluations and picks; the others matter to what comes afterwards.
    """

    def __init__(self, workspace: Workspace, *, request: Request, options: Options) -> None:
        self.workspace = workspace
        self.request = request
        self.options = options
        _check_ours(workspace.out)
        check_writable(workspace.out, workspace.store)
        self.store = LocalStore(workspace.store)
        self.situation = prepare(request, self.store, workspace.reporter)
        self._pictured, made_up = with_images(self.situation, request.seed)
        draft = Draft()
        if made_up is not None:
            draft.say(made_up)
        self._picks = draft_search(draft, request, options, self._pictured)
        self.graph = draft.graph()
        self.decisions = tuple(draft.decisions)

    def plan(self) -> Plan:
        """What `execute` would do, and why; changes nothing."""
        return Runner(STAGES, self.store).plan(self.graph, {"teacher": self.situation.teacher}, self._settings())

    def execute(self) -> SearchOutcome:
        """Searches and writes the results.

        Raises:
            EdgekdError: What a stage raised; everything finished before it is kept.
        """
        run = Runner(STAGES, self.store).run(self.graph, {"teacher": self.situation.teacher}, self._settings())
        report = search_report_of(run, SEARCH, self.store)
        picks = report.picks[: self.options.picks]
        repeated = [run.node(name).decisions[0] for name in self._picks[len(picks) :]]
        recipe = self._continuation()
        return SearchOutcome(
            report=report,
            picks=picks,
            decisions=(*self.decisions, *run.node(SEARCH).decisions, *repeated),
            files=self._write(report, picks, recipe),
            next_steps=self._next_steps(recipe),
        )

    def _continuation(self) -> Recipe | None:
        """The compression that goes on with the picks; None without images to train on."""
        if self.situation.dataset is None:
            return None
        options = self.options.model_copy(update={"students": ("search",)})
        composed = compose(self.request, options, self.situation)
        if not any(node.name == SEARCH for node in composed.graph.nodes):
            return None
        return Recipe(request=self.request, options=options, decisions=composed.decisions, graph=composed.graph)

    def _write(self, report: SearchReport, picks: Sequence[Pick], recipe: Recipe | None) -> tuple[Path, ...]:
        out = self.workspace.out
        texts = {FOUND: report.plain()}
        texts |= {f"student-{rank + 1}.json": pick.recipe.plain() for rank, pick in enumerate(picks)}
        with disk_errors(out):
            for path in _written_before(out):
                path.unlink()
            for name, plain in texts.items():
                (out / name).write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
        if recipe is None:
            return tuple(out / name for name in texts)
        write_recipe(recipe, out / COMPRESS)
        return *(out / name for name in texts), out / COMPRESS

    def _next_steps(self, recipe: Recipe | None) -> tuple[tuple[str, str], ...]:
        if recipe is None:
            return (
                ("Train it: the same search with training images (at least a few hundred)", "--data FOLDER_OR_NPZ"),
            )
        run = ["edgekd", "run", str(self.workspace.out / COMPRESS), "-o", "out", "--store", str(self.workspace.store)]
        steps = [("Distil, prune, quantize and judge what was picked", shlex.join(run))]
        if self.options.picks == 1:
            steps.append(("The same for the three best students", shlex.join([*run[:3], "options.picks=3", *run[3:]])))
        return tuple(steps)

    def _settings(self) -> RunSettings:
        return RunSettings(
            seed=self.request.seed,
            resources=resources_of(self._pictured),
            execution=self.workspace.execution,
            reporter=self.workspace.reporter,
            rebuild=self.workspace.rebuild,
        )


def _written_before(out: Path) -> list[Path]:
    """The files of an earlier search."""
    return [path for path in (out / FOUND, out / COMPRESS, *out.glob("student-*.json")) if path.exists()]


def _check_ours(out: Path) -> None:
    """Refuses a folder in which a search would replace what no search wrote.

    Raises:
        UserError: Files of those names are there, and no search of ours beside them.
    """
    there = _written_before(out)
    try:
        found = json.loads((out / FOUND).read_text(encoding="utf-8")) if there else {}
    except (OSError, ValueError):
        found = {}
    if there and not (isinstance(found, dict) and {"schema_version", "picks", "front"} <= found.keys()):
        raise UserError(
            f"{there[0]} was not written by a search; it is left as it is.", hint="choose another folder with -o"
        )
