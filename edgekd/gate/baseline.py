"""A committed reference result, so that CI notices a regression even where the absolute limits still hold."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from edgekd.core.report import METRIC_NAMES, Check, Evaluation, Latency, LatencyReport, Metric
from edgekd.core.schema import Schema
from edgekd.core.text import counted, mib, ms, percent, points
from edgekd.errors import UserError
from edgekd.gate.budget import ROUNDING

BASELINE_SCHEMA_VERSION = 1
LATENCY_CHECK = "latency against the baseline"


class Baseline(Schema):
    """What a run reached when it was accepted. Written as JSON, kept beside the code.

    Attributes:
        device: Fingerprint that the new profile must share for its latency to be compared.
        p50_ms: Median latency, with its 95 % interval.
        metric: Which accuracy `accuracy` is, None when there was none.
        accuracy: On the `test` split, in [0, 1].
        latency_tolerance: Share by which the median may be slower before it counts as a regression.
        accuracy_tolerance: How much accuracy may be lower, as a difference of ratios.
        size_tolerance: Share by which the file may be larger.
        bundle: Where the accepted bundle lies, relative to the baseline's file; None when that is not known.
        content: Digest of that bundle: another one in its place is not the baseline.
        reason: Why it was accepted, as the person who did so wrote it.
    """

    schema_version: int = BASELINE_SCHEMA_VERSION
    device: str
    runtime: str
    precision: str
    threads: int
    p50_ms: float = Field(gt=0)
    median_low_ms: float
    median_high_ms: float
    metric: Metric | None = None
    accuracy: float | None = Field(default=None, ge=0, le=1)
    size_mib: float
    latency_tolerance: float = Field(default=0.05, ge=0)
    accuracy_tolerance: float = Field(default=0.005, ge=0)
    size_tolerance: float = Field(default=0.02, ge=0)
    bundle: str | None = None
    content: str | None = None
    reason: str = ""


def baseline_from_results(
    device: str, latency: LatencyReport, accuracy: Evaluation | None, size_mib: float
) -> Baseline:
    """The baseline that this result sets, with default tolerances."""
    return Baseline(
        device=device,
        runtime=latency.runtime,
        precision=latency.precision,
        threads=latency.threads,
        p50_ms=latency.p50_ms,
        median_low_ms=latency.median_low_ms,
        median_high_ms=latency.median_high_ms,
        metric=None if accuracy is None else accuracy.metric,
        accuracy=None if accuracy is None else accuracy.value,
        size_mib=size_mib,
    )


def baseline_from_plain(data: object, where: str) -> Baseline:
    """A baseline from JSON data.

    Raises:
        UserError: Written by an edgekd of another schema, or keys that do not fit.
    """
    version = data.get("schema_version", BASELINE_SCHEMA_VERSION) if isinstance(data, Mapping) else None
    if isinstance(data, Mapping) and version != BASELINE_SCHEMA_VERSION:
        raise UserError(
            f"{where}: baseline schema {version!r}, this edgekd reads {BASELINE_SCHEMA_VERSION}.",
            hint="use the edgekd that wrote it, or accept the current result anew: edgekd baseline update",
        )
    return Baseline.parse(data, where)


def tolerating(baseline: Baseline, *, max_regression: float | None = None, max_drop: float | None = None) -> Baseline:
    """The baseline with the tolerances that were asked for in place of its own."""
    given = {"latency_tolerance": max_regression, "accuracy_tolerance": max_drop}
    return baseline.model_copy(update={name: value for name, value in given.items() if value is not None})


def regression_checks(
    baseline: Baseline, device: str, latency: Latency | None, accuracy: Evaluation | None, size_mib: float
) -> tuple[Check, ...]:
    """One check per number that the baseline has, from finished reports."""
    return (_latency(baseline, device, latency), *other_checks(baseline, accuracy, size_mib))


def other_checks(baseline: Baseline, accuracy: Evaluation | None, size_mib: float) -> tuple[Check, ...]:
    """One check per number of the baseline that is not a latency."""
    checks = [_accuracy(baseline, baseline.accuracy, accuracy)] if baseline.accuracy is not None else []
    limit = baseline.size_mib * (1 + baseline.size_tolerance)
    checks.append(
        Check(
            name="size against the baseline",
            status="PASS" if size_mib <= limit else "FAIL",
            value=size_mib,
            limit=limit,
            unit="MiB",
            reason=f"the file has {mib(size_mib)}, the baseline {mib(baseline.size_mib)}",
        )
    )
    return tuple(checks)


def incomparable(baseline: Baseline, device: str, threads: int) -> str | None:
    """Why milliseconds measured here say nothing against the baseline's; None when they may be compared."""
    if (device, threads) == (baseline.device, baseline.threads):
        return None
    return (
        f"the baseline was measured on another device or setting ({baseline.device}; "
        f"{counted(baseline.threads, 'thread')}), this profile on {device}; {counted(threads, 'thread')}"
    )


def incomparable_check(baseline: Baseline, reason: str) -> Check:
    """The check in the place of a comparison that cannot be made."""
    limit = baseline.p50_ms * (1 + baseline.latency_tolerance)
    return Check(name=LATENCY_CHECK, status="INCONCLUSIVE", limit=limit, unit="ms", reason=reason)


def _latency(baseline: Baseline, device: str, latency: Latency | None) -> Check:
    if not isinstance(latency, LatencyReport):
        return incomparable_check(baseline, "the latency was not measured")
    limit, name = baseline.p50_ms * (1 + baseline.latency_tolerance), LATENCY_CHECK
    reason = incomparable(baseline, device, latency.threads)
    if reason is not None:
        return incomparable_check(baseline, reason).model_copy(update={"value": latency.p50_ms})
    # The baseline has noise of its own: only its interval, widened by the tolerance, is the limit.
    high, low = baseline.median_high_ms * (1 + baseline.latency_tolerance), latency.median_low_ms
    pair = f"median {ms(latency.p50_ms)}, the baseline {ms(baseline.p50_ms)} ({baseline.latency_tolerance:.0%} allowed)"
    if low > high:
        return Check(name=name, status="FAIL", value=latency.p50_ms, limit=limit, unit="ms", reason=pair)
    if latency.p50_ms <= limit:
        return Check(name=name, status="PASS", value=latency.p50_ms, limit=limit, unit="ms", reason=pair)
    reason = f"{pair}: slower, but within the noise of the two measurements"
    return Check(name=name, status="INCONCLUSIVE", value=latency.p50_ms, limit=limit, unit="ms", reason=reason)


def _accuracy(baseline: Baseline, reached: float, accuracy: Evaluation | None) -> Check:
    metric = "accuracy" if baseline.metric is None else METRIC_NAMES[baseline.metric]
    name, limit = f"{metric} against the baseline", reached - baseline.accuracy_tolerance
    if accuracy is None or accuracy.metric != baseline.metric:
        here = "nothing of the kind" if accuracy is None else METRIC_NAMES[accuracy.metric]
        reason = f"the baseline has {metric}, this run {here}"
        return Check(name=name, status="INCONCLUSIVE", limit=limit, reason=reason)
    return Check(
        name=name,
        status="PASS" if accuracy.value >= limit - ROUNDING else "FAIL",
        value=accuracy.value,
        limit=limit,
        reason=f"{percent(accuracy.value)}, the baseline {percent(reached)} "
        f"({points(baseline.accuracy_tolerance)} allowed)",
    )
