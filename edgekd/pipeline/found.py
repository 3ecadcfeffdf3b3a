"""From a search's report to what the page shows of it."""

from __future__ import annotations

from edgekd.core.graph import Graph
from edgekd.report.data import FoundStudents, StudentPoint
from edgekd.search.report import SearchReport

PICK = "pick"


def found_students(report: SearchReport | None, graph: Graph) -> FoundStudents | None:
    """The scored students, those that the graph took on marked; None without a search."""
    if report is None:
        return None
    branches = sum(node.stage == PICK for node in graph.nodes)
    picks = {pick.arch: (rank, pick.reason) for rank, pick in enumerate(report.picks[:branches], start=1)}
    front = {candidate.arch for candidate in report.front}
    students = []
    for candidate in report.evaluated:
        rank, reason = picks.get(candidate.arch, (0, ""))
        students.append(
            StudentPoint(
                text=candidate.text,
                score=candidate.score,
                spread=candidate.spread,
                cost=candidate.cost,
                params_m=candidate.params_m,
                macs_m=candidate.macs_m,
                front=candidate.arch in front,
                pick=rank,
                reason=reason,
            )
        )
    return FoundStudents(
        space=report.space,
        ranking=report.ranking,
        predicted=report.picks[0].predicted_ms is not None,
        limit=report.limit,
        students=tuple(students),
        skipped=len(report.skipped),
        rejected=report.rejected,
    )
