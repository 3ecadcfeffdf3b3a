"""Reads a finished run's reports back out of the store: the numbers behind the table, the report and the gate."""

from __future__ import annotations

from dataclasses import dataclass

from edgekd.core.bundle import ModelBundle
from edgekd.core.graph import Graph
from edgekd.core.plan import RunReport
from edgekd.core.report import Choice, Evaluation, EvaluationReport, Latency, ProfileReport, Verdict
from edgekd.core.report_io import REPORT_FILE, schema_from_json
from edgekd.core.store import Store
from edgekd.gate.artifacts import RunMetrics
from edgekd.gate.stage import CHOICE_FILE
from edgekd.pipeline.compose import FINAL, PROFILE, VERDICT
from edgekd.pipeline.recipes import Recipe
from edgekd.pipeline.search import SEARCH
from edgekd.search.report import SearchReport

EVALUATE = "evaluate"
EXPORT = "export"
CONVERT = "convert"


@dataclass(frozen=True, kw_only=True)
class Results:
    """Everything that a finished run found, as objects.

    Attributes:
        reference: Candidate that stands for the teacher.
        search: What the search found; None without one.
    """

    run: RunReport
    graph: Graph
    profile: ProfileReport
    evaluations: tuple[Evaluation, ...]
    choice: Choice
    verdict: Verdict
    reference: str
    search: SearchReport | None = None

    @property
    def chosen_bundle(self) -> ModelBundle:
        """What is deployed."""
        return self.run.bundle(FINAL)

    def accuracy(self, candidate: str, split: str, runtime: str | None = None) -> Evaluation | None:
        """An evaluation, in one runtime or in the first one."""
        found = (e for e in self.evaluations if (e.candidate, e.split) == (candidate, split))
        return next((e for e in found if runtime in (None, e.runtime)), None)

    def latency(self, candidate: str) -> Latency | None:
        """The candidate's latency at the thread count that is judged: where it is deployed, or where it is fastest.

        Args:
            candidate: For the chosen one only the runtime of the choice counts, be it slower (but more accurate) there.
        """
        deployed_in = self.choice.runtime if candidate == self.choice.candidate and self.profile.measured else None
        latencies = [
            known
            for entry in self.profile.entries
            if entry.candidate == candidate
            and deployed_in in (None, entry.runtime)
            and (known := entry.known) is not None
            and known.threads == self.profile.threads[0]
        ]
        return min(latencies, key=lambda latency: latency.median_ms, default=None)

    def size_mib(self, candidate: str) -> float | None:
        """Size of the candidate's model file."""
        return next((e.size_mib for e in self.profile.entries if e.candidate == candidate), None)


def results_of(report: RunReport, recipe: Recipe, store: Store) -> Results:
    """The results of a run that went to its end."""
    graph = recipe.graph
    select = next(node for node in graph.nodes if node.name == FINAL)
    evaluations: list[Evaluation] = []
    for node in graph.nodes:
        if node.stage == EVALUATE:
            path = store.blobs.path(report.bundle(node.name).file(REPORT_FILE))
            evaluations += schema_from_json(path, EvaluationReport, node.name).evaluations
    chosen = report.bundle(FINAL)
    searched = next((node.name for node in graph.nodes if node.stage == SEARCH), None)
    return Results(
        run=report,
        graph=graph,
        profile=schema_from_json(store.blobs.path(report.bundle(PROFILE).file(REPORT_FILE)), ProfileReport, PROFILE),
        evaluations=tuple(evaluations),
        choice=schema_from_json(store.blobs.path(chosen.file(CHOICE_FILE)), Choice, FINAL),
        verdict=schema_from_json(store.blobs.path(report.bundle(VERDICT).file(REPORT_FILE)), Verdict, VERDICT),
        reference=str(select.config["reference"]),
        search=None if searched is None else search_report_of(report, searched, store),
    )


def search_report_of(report: RunReport, node: str, store: Store) -> SearchReport:
    """What the search of a run found.

    Args:
        node: That searched.
    """
    return schema_from_json(store.blobs.path(report.bundle(node).file(REPORT_FILE)), SearchReport, node)


def metrics_of(results: Results, recipe: Recipe) -> RunMetrics:
    """What `metrics.json` holds."""
    return RunMetrics(
        target=recipe.request.target,
        budget=recipe.request.budget,
        reference=results.reference,
        chosen=FINAL,
        choice=results.choice,
        profile=results.profile,
        evaluations=results.evaluations,
        verdict=results.verdict,
        stages={node.name: node.metrics for node in results.run.nodes},
    )
