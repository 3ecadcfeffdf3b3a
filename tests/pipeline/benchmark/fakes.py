"""Findings of a benchmark that never ran: engines, latencies and answers put together by hand."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from edgekd.core.agreement import Agreement, AnswersReport
from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.digest import digest
from edgekd.core.graph import Graph
from edgekd.core.plan import Action, NodeReport
from edgekd.core.report import Budget, CandidateLatency
from edgekd.errors import EdgekdError
from edgekd.pipeline.benchmark.draft import Absent, Contest, Contestant
from edgekd.pipeline.benchmark.rows import Findings
from tests.gate.results import accuracy, entry, profile


def contestant(name: str, *runtimes: str, precision: str | None = None, scheme: str = "") -> Contestant:
    known = precision or name.partition("-")[0]
    node = "@model" if name == "pytorch" else name
    return Contestant(
        node=node, name=name, precision="fp32" if name == "pytorch" else known, scheme=scheme, runtimes=runtimes
    )


def answers(
    name: str,
    runtime: str = "onnxruntime",
    *,
    value: float = 0.9,
    within: bool | None = True,
    finite: bool = True,
    alike: float = 0.99,
    lost: int | None = None,
    gained: int | None = None,
) -> AnswersReport:
    agreement = Agreement(
        reference="fp32@onnxruntime", max_error=0.4, sqnr_db=12.0, alike=alike, alike_means="top1", lost=lost,
        gained=gained, within_tolerance=None if name.startswith("int8") else within,
    )  # fmt: skip
    return AnswersReport(
        candidate=name,
        runtime=runtime,
        images=1000,
        origin="real",
        finite=finite,
        agreement=agreement if finite else None,
        evaluation=accuracy(name, value, runtime=runtime) if finite else None,
    )


def timed(name: str, ms: float | None, runtime: str = "onnxruntime", **more: Any) -> CandidateLatency:
    found = entry(name, ms, runtime=runtime, **more)
    return found.model_copy(update={"precision": "fp32" if name == "pytorch" else name.partition("-")[0]})


def made(name: str, metrics: Mapping[str, Any] | None = None) -> NodeReport:
    return NodeReport(
        name=name, stage="quantize", action=Action.RUN, reasons=(), key=digest("test", name), seconds=1.0,
        finished=datetime(2026, 1, 1, tzinfo=UTC), metrics=dict(metrics or {}), decisions=(),
        bundle=ModelBundle(kind=BundleKind.ONNX),
    )  # fmt: skip


def findings(
    contestants: list[Contestant],
    entries: list[CandidateLatency],
    answered: list[AnswersReport],
    *,
    outcomes: Mapping[str, NodeReport | EdgekdError] | None = None,
    absent: tuple[Absent, ...] = (),
    threads: tuple[int, ...] = (1,),
) -> Findings:
    return Findings(
        contest=Contest(
            graph=Graph(nodes=()), contestants=tuple(contestants), absent=absent, reference=None, decisions=()
        ),
        outcomes={c.node: made(c.node) for c in contestants if c.node != "@model"} | dict(outcomes or {}),
        answers={(a.candidate, a.runtime): a for a in answered},
        profile=profile(*entries, threads=threads) if entries else None,
        unmeasured="" if entries else "nothing could be measured: the meter broke",
        threads=threads,
        budget=Budget(max_drop=0.01),
    )
