"""The page of a benchmark: its table, the trade-off, where the time goes, and why each row is what it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from edgekd.core.benchmark import BenchmarkReport, BenchmarkRow
from edgekd.core.blobs import write_whole
from edgekd.core.report import Budget, Evaluation, Metric, ProfileReport, Verdict
from edgekd.core.text import percent, significant
from edgekd.report.data import Asked, ReportData
from edgekd.report.html import circumstances, keys_of, page_environment, readable
from edgekd.report.plots.latency import latencies
from edgekd.report.plots.marks import precision_name, runtime_name
from edgekd.report.plots.pareto import pareto
from edgekd.report.plots.shares import NAMES, ORDER, shares
from edgekd.report.signs import DASH, TIMES
from edgekd.report.sources import sources
from edgekd.report.view import flattened

VALUE_NAMES: dict[Metric, str] = {
    "top1": "Top-1 accuracy",
    "agreement": "Same class as FP32",
    "outputs": "Outputs near FP32",
}
BRIEF_NAMES: dict[Metric, str] = {"top1": "top-1", "agreement": "same class", "outputs": "near FP32"}
"""The same on a console, where a header may not be wider than its numbers by much."""
BAD = ("wrong", "failed", "worse than FP32")
ABSENT = ("not installed", "not supported")
ROUGHLY = "~"
"""Behind a latency that is known less precisely than asked."""
GOOD = ("chosen", "fastest", "pareto")


@dataclass(frozen=True, kw_only=True)
class RowText:
    """One line of the table, as text."""

    engine: str
    precision: str
    precision_key: str
    runtime: str
    threads: str
    size: str
    value: str
    interval: str
    error: str
    p50: str
    between: str
    p99: str
    memory: str
    factor: str
    status: str
    tone: str
    reason: str
    why: str


def write_benchmark(report: BenchmarkReport, path: Path, *, created: str, version: str) -> None:
    """Writes the page.

    Args:
        created: ISO 8601 with time zone.
        version: Of edgekd.

    Raises:
        UserError: The disk is full or the folder cannot be written.
    """
    page = html_from_benchmark(report, created=created, version=version)
    write_whole(path, page.encode())


def html_from_benchmark(report: BenchmarkReport, *, created: str, version: str) -> str:
    """The whole page; what comes from the run is escaped, only our own drawings are markup."""
    environment, style = page_environment()
    data = _as_run(report, created, version)
    chosen = next((row for row in report.rows if row.status == "chosen"), None)
    return environment.get_template("benchmark.html").render(
        report=report,
        style=style,
        created=readable(created),
        version=version,
        chosen=None if chosen is None else row_text(chosen),
        rows=[row_text(row) for row in report.rows],
        value_name=value_name(report),
        rough=ROUGHLY if any(row.inconclusive for row in report.rows) else "",
        keys=keys_of(report.profile),
        pareto=_markup(pareto(data)),
        shares=_markup(shares(report.profile)),
        kinds=[(kind, NAMES[kind]) for kind in ORDER],
        latencies=_markup(latencies(data)),
        sources=[*sources(data), *_how_answers(report)],
        environment=flattened({**circumstances(report.profile), "versions": dict(report.versions)}),
    )


def row_text(row: BenchmarkRow) -> RowText:
    """A row as it is read on the page and on the console."""
    return RowText(
        engine=row.engine or DASH,
        precision=precision_name(row.precision),
        precision_key=row.precision,
        runtime=runtime_name(row.runtime),
        threads="" if row.threads is None else str(row.threads),
        size=_number(row.size_mib),
        value=DASH if row.value is None else percent(row.value),
        interval="" if row.value_low is None or row.value_high is None else _ends(row.value_low, row.value_high),
        error="" if row.sqnr_db is None else f"{row.sqnr_db:.0f} dB",
        p50=f"{_number(row.p50_ms)}{ROUGHLY if row.inconclusive else ''}",
        between=_between(row),
        p99=_number(row.p99_ms),
        memory=_number(row.memory_peak_mib),
        factor="" if row.against_fp32 is None else f"{significant(row.against_fp32, 2)}{TIMES}",
        status=row.status,
        tone="pass" if row.status in GOOD else "fail" if row.status in BAD else "",
        reason=row.reason,
        why=row.why,
    )


def value_name(report: BenchmarkReport, *, brief: bool = False) -> str:
    """What the column of values is called: rows of one table have one metric, but for what was not judged."""
    names = BRIEF_NAMES if brief else VALUE_NAMES
    metrics = [row.metric for row in report.rows if row.metric is not None]
    return names[metrics[0]] if metrics else "Answers"


def _as_run(report: BenchmarkReport, created: str, version: str) -> ReportData:
    """The benchmark in the words of a run, for the drawings that both share; its verdict is never shown."""
    evaluations: list[Evaluation] = [a.evaluation for a in report.answers if a.evaluation is not None]
    profile: ProfileReport | None = report.profile
    return ReportData(
        title=report.model,
        created=created,
        version=version,
        asked=Asked(model=report.model, target=report.target, budget=Budget(), seed=report.seed),
        verdict=Verdict(status="INCONCLUSIVE", reason="a benchmark gives no verdict"),
        choice=report.choice,
        profile=profile,
        evaluations=tuple(evaluations),
        reference=report.reference.partition("@")[0],
    )


def _how_answers(report: BenchmarkReport) -> list[tuple[str, str]]:
    if not report.answers:
        return []
    text = (
        f"Every engine answered the same images one at a time in a process of its own: {report.data}. Signal to noise "
        f"and differences are against {report.reference or 'no reference'}, the worst output counts."
    )
    memory = (
        "Highest resident memory of the engine's own process from loading to the last call, above what the loaded "
        "library takes before it."
    )
    return [("Answers", text), ("Memory", memory)]


def _between(row: BenchmarkRow) -> str:
    if row.median_low_ms is None or row.median_high_ms is None:
        return ""
    return f"{significant(row.median_low_ms)} to {significant(row.median_high_ms)}"


def _ends(low: float, high: float) -> str:
    return f"{100 * low:.1f} to {100 * high:.1f} %"


def _number(value: float | None) -> str:
    return DASH if value is None else significant(value)


def _markup(svg: str | None) -> Markup | None:
    return None if svg is None else Markup(svg)
