"""The verdict: PASS, FAIL, or an honest INCONCLUSIVE."""

from __future__ import annotations

import random

import pytest

from edgekd.core.report import Budget, Evaluation, Latency, Verdict
from edgekd.gate.baseline import Baseline, baseline_from_results
from edgekd.gate.verdict import judge
from tests.gate.results import accuracy, latency, prediction

TEST = accuracy("chosen", 0.895, split="test")
TEACHER = accuracy("teacher-fp32", 0.900, split="test")


def verdict(
    budget: Budget,
    *,
    found: Latency | None = None,
    reached: Evaluation | None = TEST,
    reference: Evaluation | None = TEACHER,
    baseline: Baseline | None = None,
    measured: bool = True,
    device: str = "a desk",
    allow_predicted: bool = False,
) -> Verdict:
    return judge(
        device=device,
        latency=found or (latency(1.0) if measured else None),
        accuracy=reached,
        reference=reference,
        size_mib=2.0,
        budget=budget,
        baseline=baseline,
        allow_predicted=allow_predicted,
    )


def test_every_limit_kept_is_a_pass_that_says_each_number_beside_its_limit() -> None:
    found = verdict(Budget(max_latency_ms=1.5, max_drop=0.01, max_size_mib=3))
    assert found.status == "PASS"
    assert (
        found.reason
        == "Every limit holds: latency 1.00 of 1.5 ms, drop in top-1 accuracy 0.5 of 1.0 points, size 2.00 of 3 MiB."
    )


@pytest.mark.parametrize(
    ("limit", "status"),
    [(1.5, "PASS"), (1.011, "PASS"), (1.005, "INCONCLUSIVE"), (0.995, "INCONCLUSIVE"), (0.9, "FAIL")],
)
def test_a_limit_inside_the_interval_of_the_median_is_inconclusive(limit: float, status: str) -> None:
    found = verdict(Budget(max_latency_ms=limit))
    assert found.status == status
    assert "95 % interval 0.990 to 1.01" in found.checks[0].reason


def test_other_percentiles_take_their_interval_from_the_samples() -> None:
    rng = random.Random(0)
    samples = tuple(rng.uniform(0.5, 1.5) for _ in range(1000))
    found = latency(1.0, samples=samples).model_copy(update={"p95_ms": sorted(samples)[950]})
    assert verdict(Budget(max_latency_ms=1.6, percentile=95), found=found).status == "PASS"
    assert verdict(Budget(max_latency_ms=1.45, percentile=95), found=found).status == "INCONCLUSIVE"
    assert verdict(Budget(max_latency_ms=1.2, percentile=95), found=found).status == "FAIL"


def test_too_few_samples_for_a_percentile_are_inconclusive() -> None:
    found = verdict(Budget(max_latency_ms=10, percentile=99), found=latency(1.0, samples=(1.0,) * 50))
    assert found.status == "INCONCLUSIVE"
    assert "too few" in found.reason


def test_not_measured_is_inconclusive_even_when_no_limit_was_asked() -> None:
    found = verdict(Budget(), measured=False, device="jetson-orin-nano")
    assert found.status == "INCONCLUSIVE"
    assert found.reason == "It cannot be told: not measured on jetson-orin-nano."


def test_a_prediction_is_shown_and_decides_nothing() -> None:
    found = verdict(Budget(max_latency_ms=100), found=prediction(1.0))
    assert found.status == "INCONCLUSIVE"
    assert found.checks[0].origin == "predicted"
    assert found.checks[0].value == 1.0
    assert "1.00 ms is predicted" in found.reason


@pytest.mark.parametrize(
    ("limit", "percentile", "status", "words"),
    [
        (2.0, 50, "PASS", "the prediction keeps"),
        (0.5, 50, "FAIL", "the prediction misses"),
        (1.05, 50, "INCONCLUSIVE", "too close"),
        (2.0, 99, "INCONCLUSIVE", "says nothing of p99"),
    ],
)
def test_a_prediction_decides_only_where_it_is_allowed_and_then_it_is_said(
    limit: float, percentile: int, status: str, words: str
) -> None:
    guess = prediction(1.0, error=0.1)
    budget = Budget.parse({"max_latency_ms": limit, "percentile": percentile}, "test")
    assert verdict(budget, found=guess).status == "INCONCLUSIVE"
    found = verdict(budget, found=guess, allow_predicted=True)
    assert found.status == status
    assert found.checks[0].origin == "predicted"
    assert "is predicted for a desk (0.900 to 1.10 for 50 % of networks), not measured" in found.checks[0].reason
    assert words in found.checks[0].reason


def test_a_passed_prediction_is_called_one_in_the_verdicts_sentence() -> None:
    guess = prediction(1.0, error=0.1)
    found = verdict(Budget(max_latency_ms=2), found=guess, allow_predicted=True)
    assert found.reason == "Every limit holds: predicted latency 1.00 of 2 ms."


def test_a_prediction_of_unknown_error_decides_nothing() -> None:
    found = verdict(Budget(max_latency_ms=2), found=prediction(1.0), allow_predicted=True)
    assert found.status == "INCONCLUSIVE"
    assert "unknown error" in found.reason


def test_a_drop_beyond_the_limit_fails_and_names_the_split() -> None:
    found = verdict(Budget(max_drop=0.004))
    assert found.status == "FAIL"
    assert found.reason.startswith("A limit is missed: 89.5 % top-1 accuracy on 1000 test images, 0.5 points lost")


def test_a_drop_of_exactly_the_limit_keeps_it_whatever_the_rounding() -> None:
    lost = accuracy("chosen", 296 / 300, split="test")
    teacher = accuracy("teacher-fp32", 299 / 300, split="test")
    assert teacher.value - lost.value > 0.01, "or this shows nothing"
    assert verdict(Budget(max_drop=0.01), reached=lost, reference=teacher).status == "PASS"


def test_a_relative_drop_is_a_share_of_the_teacher() -> None:
    half = accuracy("chosen", 0.40, split="test")
    teacher = accuracy("teacher-fp32", 0.50, split="test")
    budget = Budget(max_drop=0.15, drop_type="relative")
    assert verdict(budget, reached=half, reference=teacher).status == "FAIL"
    assert verdict(Budget(max_drop=0.15), reached=half, reference=teacher).status == "PASS"


def test_agreement_is_counted_from_perfect_agreement() -> None:
    agrees = accuracy("chosen", 0.97, split="test", metric="agreement")
    found = verdict(Budget(max_drop=0.02), reached=agrees, reference=None)
    assert found.status == "FAIL"
    assert "97.0 % agreement with the teacher" in found.reason
    assert "3.0 points lost" in found.reason
    assert found.checks[0].name == "drop in agreement with the teacher"


def test_agreement_is_never_called_accuracy() -> None:
    agrees = accuracy("chosen", 0.97, split="test", metric="agreement")
    perfect = agrees.model_copy(update={"value": 1.0, "low": 1.0, "high": 1.0})
    baseline = baseline_from_results("a desk", latency(1.0), perfect, 2.0)
    found = verdict(Budget(max_drop=0.05), reached=agrees, reference=None, baseline=baseline)
    assert "agreement with the teacher against the baseline" in [check.name for check in found.checks]
    text = f"{found.reason} {found.model_dump_json()}"
    assert "accuracy" not in text
    assert "top1" not in text


def test_a_gain_is_called_a_gain() -> None:
    better = accuracy("chosen", 0.91, split="test")
    assert "1.0 points gained" in verdict(Budget(max_drop=0.01), reached=better).checks[0].reason


@pytest.mark.parametrize(("reached", "text"), [(None, "there is no data"), (TEST, "teacher was not evaluated")])
def test_an_unknown_drop_is_inconclusive(reached: Evaluation | None, text: str) -> None:
    found = verdict(Budget(max_drop=0.01), reached=reached, reference=None)
    assert found.status == "INCONCLUSIVE"
    assert text in found.reason


def test_generated_images_can_fail_a_drop_but_never_pass_it() -> None:
    made = TEST.model_copy(update={"synthetic": True})
    assert verdict(Budget(max_drop=0.01), reached=made).status == "INCONCLUSIVE"
    assert verdict(Budget(max_drop=0.001), reached=made).status == "FAIL"


def test_one_missed_limit_outweighs_an_inconclusive_one() -> None:
    found = verdict(Budget(max_latency_ms=1.0, max_size_mib=1.0))
    assert [check.status for check in found.checks] == ["INCONCLUSIVE", "FAIL"]
    assert found.status == "FAIL"
    assert found.reason == "A limit is missed: the file of 2.00 MiB misses the limit of 1 MiB."


def test_no_limit_is_a_pass_that_says_nothing_was_asked() -> None:
    found = verdict(Budget())
    assert found.status == "PASS"
    assert "No limit was asked for" in found.reason


BASELINE = baseline_from_results("a desk", latency(1.0), TEST, 2.0)


@pytest.mark.parametrize(("p50", "status"), [(1.04, "PASS"), (1.06, "INCONCLUSIVE"), (1.2, "FAIL"), (0.5, "PASS")])
def test_a_slower_run_is_a_regression_when_noise_and_tolerance_cannot_explain_it(p50: float, status: str) -> None:
    found = verdict(Budget(), found=latency(p50), baseline=BASELINE)
    assert found.checks[0].status == status


def test_a_baseline_of_another_device_cannot_be_compared() -> None:
    found = verdict(Budget(), baseline=BASELINE, device="another desk")
    assert found.status == "INCONCLUSIVE"
    assert "another device" in found.reason
    assert "a desk" in found.reason


def test_accuracy_and_size_are_compared_with_the_baseline_too() -> None:
    worse = accuracy("chosen", 0.88, split="test")
    found = verdict(Budget(), reached=worse, baseline=BASELINE.model_copy(update={"size_mib": 1.0}))
    assert {check.name: check.status for check in found.checks} == {
        "latency against the baseline": "PASS",
        "top-1 accuracy against the baseline": "FAIL",
        "size against the baseline": "FAIL",
    }
    assert verdict(Budget(), reached=None, baseline=BASELINE).checks[1].status == "INCONCLUSIVE"


def test_a_baseline_of_another_metric_is_inconclusive_and_both_are_named() -> None:
    agrees = accuracy("chosen", 0.97, split="test", metric="agreement")
    check = verdict(Budget(), reached=agrees, baseline=BASELINE).checks[1]
    assert check.status == "INCONCLUSIVE"
    assert check.reason == "the baseline has top-1 accuracy, this run agreement with the teacher"
