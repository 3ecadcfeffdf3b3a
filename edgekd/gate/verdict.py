"""PASS, FAIL or INCONCLUSIVE: the answer CI acts on, with one sentence of reason per limit.

A limit that a noisy number straddles is neither kept nor missed. Accuracy is the exception: it is exact on the fixed
test images that the budget was stated for, so the point value decides, and the interval is said beside it.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgekd.core.report import (
    METRIC_NAMES,
    Budget,
    Check,
    Evaluation,
    Latency,
    LatencyReport,
    Metric,
    PredictedLatency,
    Status,
    Verdict,
)
from edgekd.core.stats import quantile_interval
from edgekd.core.text import mib, ms, percent, significant
from edgekd.gate.baseline import Baseline, regression_checks
from edgekd.gate.budget import amount_text, loss_from_evaluations, loss_text
from edgekd.gate.questions import RATIO_UNIT

LATENCY = "latency"
DROP = "drop in"
"""Begins the name of the check of what was lost; the metric that was lost of follows."""
SIZE = "size"


def drop_name(metric: Metric | None) -> str:
    """Name of the check of a loss; the metric is None where nothing was evaluated."""
    return f"{DROP} {'accuracy' if metric is None else METRIC_NAMES[metric]}"


def judge(
    *,
    device: str,
    latency: Latency | None,
    accuracy: Evaluation | None,
    reference: Evaluation | None,
    size_mib: float,
    budget: Budget,
    baseline: Baseline | None = None,
    allow_predicted: bool = False,
) -> Verdict:
    """The verdict on the chosen engine.

    Args:
        device: Fingerprint or name of the target, for messages and for the baseline.
        latency: Of the chosen engine in the chosen runtime; None when nothing was measured or predicted.
        accuracy: Of the chosen engine, on the `test` split; None without data.
        reference: Of the teacher's engine, on the same split.
        size_mib: Of the model file.
        budget: Limits; what is None is not judged. A latency that was not measured is always said.
        baseline: Earlier result to compare with.
        allow_predicted: A predicted latency may keep or miss the limit, and its check says that it was predicted.
    """
    checks: list[Check] = []
    if budget.max_latency_ms is not None or not isinstance(latency, LatencyReport):
        checks.append(_latency_check(device, latency, budget, allow_predicted=allow_predicted))
    if budget.max_drop is not None:
        checks.append(accuracy_check(accuracy, reference, budget, budget.max_drop))
    if budget.max_size_mib is not None:
        checks.append(size_check(size_mib, budget.max_size_mib))
    if baseline is not None:
        checks += regression_checks(baseline, device, latency, accuracy, size_mib)
    return verdict_from_checks(checks, budget)


def verdict_from_checks(checks: Sequence[Check], budget: Budget) -> Verdict:
    """The worst of the checks, with one sentence on what decided.

    Args:
        budget: Says in which unit a loss is told.
    """
    status = _worst(checks)
    return Verdict(status=status, reason=_sentence(status, checks, budget), checks=tuple(checks))


def _latency_check(device: str, latency: Latency | None, budget: Budget, *, allow_predicted: bool) -> Check:
    limit = budget.max_latency_ms
    if not isinstance(latency, LatencyReport):
        if latency is not None and limit is not None and allow_predicted:
            return _predicted_check(device, latency, limit, budget.percentile)
        value = None if latency is None else latency.median_ms
        predicted = "" if value is None else f"; {ms(value)} is predicted"
        return Check(
            name=LATENCY,
            status="INCONCLUSIVE",
            value=value,
            limit=limit,
            unit="ms",
            origin="predicted" if value is not None else "measured",
            reason=f"not measured on {device}{predicted}",
        )
    if limit is None:
        raise ValueError("a measured latency is checked only against a limit")
    value = latency.percentile_ms(budget.percentile)
    interval = _interval(latency, budget.percentile)
    text = f"p{budget.percentile} {ms(value)}"
    if interval is None:
        status: Status = "INCONCLUSIVE"
        reason = f"{text} from {latency.n} runs, too few to say how sure that is"
    else:
        low, high = interval
        status = "PASS" if high <= limit else "FAIL" if low > limit else "INCONCLUSIVE"
        side = {"PASS": "keeps", "FAIL": "misses", "INCONCLUSIVE": "is too close to"}[status]
        reason = f"{text} (95 % interval {significant(low)} to {significant(high)}) {side} the limit of {limit:g} ms"
    return Check(name=LATENCY, status=status, value=value, limit=limit, unit="ms", reason=reason)


def _predicted_check(device: str, latency: PredictedLatency, limit: float, percentile: int) -> Check:
    """A prediction against the limit: its own interval decides, and the words never let it pass for a measurement."""
    low, high, level = latency.low_ms, latency.high_ms, latency.level
    status: Status = "INCONCLUSIVE"
    if low is None or high is None or level is None:
        error, side = "its error is not known", "is of unknown error, so it cannot be held against"
    else:
        error = f"{significant(low)} to {significant(high)} for {percent(level, 0)} of networks"
        status = "PASS" if high <= limit else "FAIL" if low > limit else "INCONCLUSIVE"
        side = {"PASS": "keeps", "FAIL": "misses", "INCONCLUSIVE": "is too close to"}[status]
    if percentile != 50:
        status, side = "INCONCLUSIVE", f"says nothing of p{percentile}, and so of"
    said = f"{ms(latency.median_ms)} is predicted for {device} ({error}), not measured"
    return Check(
        name=LATENCY,
        status=status,
        value=latency.median_ms,
        low=low,
        high=high,
        limit=limit,
        unit="ms",
        origin="predicted",
        reason=f"{said}; the prediction {side} the limit of {limit:g} ms",
    )


def _interval(latency: LatencyReport, percentile: int) -> tuple[float, float] | None:
    """The 95 % interval of a percentile: stored for the median, from the kept samples for the others."""
    if percentile == 50:
        return latency.median_low_ms, latency.median_high_ms
    found = quantile_interval(latency.samples_ms, percentile / 100)
    if found is None:
        return None
    value = latency.percentile_ms(percentile)
    return min(found[0], value), max(found[1], value)


def accuracy_check(accuracy: Evaluation | None, reference: Evaluation | None, budget: Budget, limit: float) -> Check:
    """How much accuracy was lost against the reference, beside `limit`."""
    if accuracy is None:
        reason = "accuracy was not evaluated: there is no data"
        return Check(name=drop_name(None), status="INCONCLUSIVE", limit=limit, reason=reason)
    name = drop_name(accuracy.metric)
    loss = loss_from_evaluations(accuracy, reference, budget)
    if loss is None:
        reason = f"the teacher was not evaluated on the same split ({accuracy.split}), so the drop is not known"
        return Check(name=name, status="INCONCLUSIVE", limit=limit, reason=reason)
    status: Status = "PASS" if loss.keeps(limit) else "FAIL"
    images = f"{accuracy.n} {'generated' if accuracy.synthetic else accuracy.split} images"
    reason = (
        f"{percent(accuracy.value)} {METRIC_NAMES[accuracy.metric]} on {images}, {loss_text(loss, budget)}; "
        f"the limit is {amount_text(limit, budget)}"
    )
    if accuracy.synthetic and status == "PASS":
        status = "INCONCLUSIVE"
        reason += "; generated images cannot show that real ones keep it"
    return Check(name=name, status=status, value=loss.value, limit=limit, reason=reason)


def size_check(size_mib: float, limit: float) -> Check:
    """The size of the model file beside `limit`."""
    keeps = size_mib <= limit
    reason = f"the file of {mib(size_mib)} {'keeps' if keeps else 'misses'} the limit of {limit:g} MiB"
    return Check(name=SIZE, status="PASS" if keeps else "FAIL", value=size_mib, limit=limit, unit="MiB", reason=reason)


def _worst(checks: Sequence[Check]) -> Status:
    found = {check.status for check in checks}
    return "FAIL" if "FAIL" in found else "INCONCLUSIVE" if "INCONCLUSIVE" in found else "PASS"


def _sentence(status: Status, checks: Sequence[Check], budget: Budget) -> str:
    """What decided: each number beside its limit for a pass, else the reasons of the checks against it."""
    if not checks:
        return "No limit was asked for, so there was nothing to miss."
    if status == "PASS":
        return f"Every limit holds: {', '.join(_beside(check, budget) for check in checks)}."
    reasons = "; ".join(check.reason for check in checks if check.status == status)
    return f"{'A limit is missed' if status == 'FAIL' else 'It cannot be told'}: {reasons}."


def _beside(check: Check, budget: Budget) -> str:
    """`latency 0.361 of 0.5 ms`."""
    if check.value is None or check.limit is None:
        return check.name
    if check.unit == RATIO_UNIT:
        return f"{check.name} {100 * (check.value - 1):+.1f} of {100 * (check.limit - 1):+.3g} %"
    if check.unit:
        predicted = "predicted " if check.origin == "predicted" else ""
        return f"{predicted}{check.name} {significant(check.value)} of {check.limit:.3g} {check.unit}"
    if check.name.startswith(DROP):
        return f"{check.name} {100 * check.value:.1f} of {amount_text(check.limit, budget)}"
    return f"{check.name} {percent(check.value)}, at least {percent(check.limit)}"
