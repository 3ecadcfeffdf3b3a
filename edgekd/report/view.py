"""From a run's data to what the page prints: texts, ratios and bar lengths, one small record per row or tile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from edgekd.core.report import Check, Evaluation, Latency, LatencyReport, Status
from edgekd.core.text import duration, mib, ms, percent, points, significant
from edgekd.report.data import ReportData, Step
from edgekd.report.plots.marks import metric_name, precision_name, runtime_name
from edgekd.report.plots.pareto import is_chosen
from edgekd.report.signs import DASH, MINUS, TIMES

NONE = DASH


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A value against a limit, as shares of the bar's length in percent.

    Attributes:
        status: Colours it; empty where nothing was judged.
    """

    value: float
    limit: float | None
    status: str


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One of the three numbers beside the verdict."""

    name: str
    value: str
    unit: str
    against: str
    detail: str
    bar: Bar | None
    origin: str


@dataclass(frozen=True, kw_only=True)
class StepRow:
    """One line of the table of what each stage bought; `gains` are against its parent, `factor` the teacher."""

    step: Step
    accuracy: str
    interval: str
    size: str
    params: str
    macs: str
    latency: str
    took: str
    accuracy_gain: str
    size_gain: str
    latency_gain: str
    factor: str
    factor_bar: float
    first_of_branch: bool


@dataclass(frozen=True, kw_only=True)
class EngineRow:
    """One line of the table of engines."""

    name: str
    precision: str
    precision_key: str
    runtime: str
    threads: str
    p50: str
    interval: str
    p90: str
    p95: str
    p99: str
    accuracy: str
    size: str
    outcome: str
    chosen: bool
    predicted: bool


def tiles(data: ReportData) -> list[Tile]:
    """Latency, accuracy and size of what is deployed, each beside the teacher and the limit."""
    if data.choice is None:
        return []
    checks = {check.name: check for check in data.verdict.checks}
    latency = data.latency(data.choice.candidate, data.choice.runtime) or data.latency(data.choice.candidate)
    return [
        _latency_tile(data, latency, checks.get("latency")),
        _accuracy_tile(data, next((check for name, check in checks.items() if name.startswith("drop in")), None)),
        _size_tile(data, checks.get("size")),
    ]


def _latency_tile(data: ReportData, latency: Latency | None, check: Check | None) -> Tile:
    limit, percentile = data.asked.budget.max_latency_ms, data.asked.budget.percentile
    if latency is None:
        return Tile(
            name="Latency",
            value=NONE,
            unit="",
            against="not measured",
            detail=_limit_text(limit, "ms"),
            bar=None,
            origin="",
        )
    measured = isinstance(latency, LatencyReport)
    value = latency.percentile_ms(percentile) if isinstance(latency, LatencyReport) else latency.median_ms
    teacher = data.latency(data.reference)
    against = ""
    if teacher is not None and data.choice is not None and data.reference != data.choice.candidate:
        against = _factor_text(teacher.median_ms / latency.median_ms, "faster", "slower")
        against += f" than the teacher's {ms(teacher.median_ms)} ({runtime_name(teacher.runtime)})"
    return Tile(
        name=f"Latency, {'median' if percentile == 50 else f'p{percentile}'}" if measured else "Latency, typical",
        value=significant(value),
        unit="ms",
        against=against,
        detail=_limit_text(limit, "ms"),
        bar=_bar(value, limit, check),
        origin=latency.origin,
    )


def _accuracy_tile(data: ReportData, check: Check | None) -> Tile:
    found, split = _final_accuracy(data)
    limit = data.asked.budget.max_drop
    limit_text = "" if limit is None else f"limit {_drop_text(limit, data)} lost"
    if found is None:
        return Tile(
            name="Accuracy", value=NONE, unit="", against="not evaluated", detail=limit_text, bar=None, origin=""
        )
    reference = data.evaluation(data.reference, split, found.runtime) or data.evaluation(data.reference, split)
    against = ""
    if reference is not None and reference.metric == found.metric:
        lost = reference.value - found.value
        against = f"{points(abs(lost))} {'below' if lost > 0 else 'above'} the teacher's {percent(reference.value)}"
        if abs(lost) < 0.0005:
            against = f"the same as the teacher's {percent(reference.value)}"
    drop = check.value if check is not None else None
    name = metric_name(found.metric)
    images = "generated images" if found.synthetic else f"{split} images"
    return Tile(
        name=f"{name}, {found.n:,} {images}",
        value=f"{100 * found.value:.1f}",
        unit="%",
        against=against,
        detail=limit_text,
        bar=None if drop is None else _bar(max(drop, 0.0), limit, check),
        origin="measured",
    )


def _size_tile(data: ReportData, check: Check | None) -> Tile:
    size, teacher = _size(data, data.choice.candidate if data.choice else ""), _size(data, data.reference)
    limit = data.asked.budget.max_size_mib
    against = ""
    if size and teacher and data.choice is not None and data.reference != data.choice.candidate:
        against = _factor_text(teacher / size, "smaller", "larger") + f" than the teacher's {mib(teacher)}"
    return Tile(
        name="Model file",
        value=NONE if size is None else significant(size),
        unit="" if size is None else "MiB",
        against=against,
        detail=_limit_text(limit, "MiB"),
        bar=None if size is None else _bar(size, limit, check),
        origin="measured" if size is not None else "",
    )


def step_rows(data: ReportData) -> list[StepRow]:
    """The way from the teacher to the engine."""
    rows: list[StepRow] = []
    steps = data.steps
    teacher = steps[0] if steps else None
    factors = [_ratio(teacher.latency_ms, step.latency_ms) for step in steps] if teacher else []
    top = max((factor for factor in factors if factor is not None), default=1.0)
    by_detail = {step.detail: step for step in steps}
    for index, step in enumerate(steps):
        before = by_detail.get(step.parent) if step.parent else None
        factor = factors[index]
        rows.append(
            StepRow(
                step=step,
                accuracy=NONE if step.accuracy is None else percent(step.accuracy.value),
                interval="" if step.accuracy is None else f"{_ends(step.accuracy)} %",
                size=_number(step.size_mib),
                params=_number(step.params_m),
                macs=_number(step.macs_m),
                latency=_number(step.latency_ms),
                took="reused" if step.reused else "" if step.seconds is None else duration(step.seconds),
                accuracy_gain=_accuracy_gain(before, step),
                size_gain=_gain(before.size_mib if before else None, step.size_mib),
                latency_gain=_gain(before.latency_ms if before else None, step.latency_ms),
                factor="" if factor is None else f"{significant(factor, 2)}{TIMES}",
                factor_bar=0.0 if factor is None else 100 * factor / top,
                first_of_branch=index > 0 and step.branch != steps[index - 1].branch,
            )
        )
    return rows


def engine_rows(data: ReportData) -> list[EngineRow]:
    """Every engine at every thread count: the chosen one, then by latency; those without one at the end."""
    if data.profile is None:
        return []
    rows: list[tuple[tuple[bool, bool, float], EngineRow]] = []
    for entry in data.profile.entries:
        latency = entry.known
        judged = latency is None or latency.threads == data.profile.threads[0]
        chosen = judged and is_chosen(data, entry.candidate, entry.runtime)
        accuracy = data.evaluation(entry.candidate, "select", entry.runtime if data.profile.measured else None)
        row = EngineRow(
            name=entry.candidate,
            precision=precision_name(entry.precision),
            precision_key=entry.precision,
            runtime=runtime_name(entry.runtime),
            threads=str(latency.threads) if latency else "",
            p50=NONE if latency is None else significant(latency.median_ms),
            interval=_interval(latency),
            p90=_tail(latency, 90),
            p95=_tail(latency, 95),
            p99=_tail(latency, 99),
            accuracy=NONE if accuracy is None else percent(accuracy.value),
            size=significant(entry.size_mib),
            outcome=_outcome(data, entry.candidate, entry.runtime, entry.failure, judged=judged, chosen=chosen),
            chosen=chosen,
            predicted=latency is not None and latency.origin == "predicted",
        )
        rows.append(((not chosen, latency is None, latency.median_ms if latency else 0.0), row))
    return [row for _, row in sorted(rows, key=lambda pair: pair[0])]


def flattened(facts: Mapping[str, JsonValue], prefix: str = "") -> list[tuple[str, str]]:
    """(name, value) of every leaf of nested mappings, `machine / cores`."""
    found: list[tuple[str, str]] = []
    for key, value in facts.items():
        name = f"{prefix}{key.replace('_', ' ')}"
        if isinstance(value, Mapping):
            found += flattened(value, f"{name} / ")
        elif isinstance(value, list):
            found.append((name, ", ".join(str(item) for item in value) or NONE))
        else:
            found.append((name, NONE if value is None else str(value)))
    return found


def _final_accuracy(data: ReportData) -> tuple[Evaluation | None, str]:
    """What the verdict was given on: the test split, or the split that there is."""
    if data.choice is None:
        return None, ""
    names = [data.chosen or data.choice.candidate, data.choice.candidate]
    for split in ("test", "select"):
        for name in names:
            found = data.evaluation(name, split, data.choice.runtime) or data.evaluation(name, split)
            if found is not None:
                return found, split
    return None, ""


def _size(data: ReportData, candidate: str) -> float | None:
    entries = data.profile.entries if data.profile is not None else ()
    return next((entry.size_mib for entry in entries if entry.candidate == candidate), None)


def _bar(value: float, limit: float | None, check: Check | None) -> Bar | None:
    if limit is None:
        return None
    status: Status | str = check.status if check is not None else ""
    length = max(value, limit) * 1.15 or 1.0
    return Bar(value=100 * value / length, limit=100 * limit / length, status=status)


def _limit_text(limit: float | None, unit: str) -> str:
    return "" if limit is None else f"limit {limit:g} {unit}"


def _drop_text(limit: float, data: ReportData) -> str:
    return percent(limit) if data.asked.budget.drop_type == "relative" else points(limit)


def _factor_text(factor: float, more: str, less: str) -> str:
    if 0.98 <= factor <= 1.02:
        return f"as {'fast' if more == 'faster' else 'large'}"
    return f"{significant(factor, 2)}{TIMES} {more}" if factor > 1 else f"{significant(1 / factor, 2)}{TIMES} {less}"


def _ratio(top: float | None, bottom: float | None) -> float | None:
    return top / bottom if top is not None and bottom else None


def _number(value: float | None) -> str:
    return NONE if value is None else significant(value)


def _ends(evaluation: Evaluation) -> str:
    return f"{100 * evaluation.low:.1f} to {100 * evaluation.high:.1f}"


def _tail(latency: Latency | None, percentile: int) -> str:
    """An upper percentile; a prediction has none."""
    if not isinstance(latency, LatencyReport):
        return NONE
    return significant(latency.percentile_ms(percentile))


def _interval(latency: Latency | None) -> str:
    """The interval of a median, or what a prediction allows and for which share of networks."""
    if latency is not None and not isinstance(latency, LatencyReport):
        if latency.low_ms is None or latency.high_ms is None or latency.level is None:
            return "error unknown"
        return f"{significant(latency.low_ms)} to {significant(latency.high_ms)} for {latency.level:.0%}"
    if latency is None or latency.median_low_ms == latency.median_high_ms:
        return ""
    return f"{significant(latency.median_low_ms)} to {significant(latency.median_high_ms)}"


def _accuracy_gain(before: Step | None, step: Step) -> str:
    if before is None or before.accuracy is None or step.accuracy is None:
        return ""
    change = 100 * (step.accuracy.value - before.accuracy.value)
    return f"{change:+.1f} points".replace("-", MINUS)


def _gain(before: float | None, after: float | None) -> str:
    factor = _ratio(before, after)
    if factor is None:
        return ""
    if 0.98 <= factor <= 1.02:
        return "same"
    return f"÷ {significant(factor, 2)}" if factor > 1 else f"{TIMES} {significant(1 / factor, 2)}"


def _outcome(data: ReportData, candidate: str, runtime: str, failure: str | None, *, judged: bool, chosen: bool) -> str:
    if chosen and data.choice is not None:
        return f"Chosen: {data.choice.reason}"
    if not judged:
        return "for information: the choice is made at the first thread count"
    rejected: Sequence[str] = []
    if data.choice is not None:
        rejected = [why for name, why in data.choice.rejected.items() if name in (f"{candidate}@{runtime}", candidate)]
    return next(iter(rejected), failure or "for reference")
