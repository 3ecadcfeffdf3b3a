"""Questions: from units to a check that says what was found and how sure that is."""

from __future__ import annotations

import random

import pytest

from edgekd.core.report import Budget
from edgekd.gate.questions import LimitQuestion, PrecisionQuestion, RatioQuestion, Unit, log_ratio
from edgekd.gate.verdict import verdict_from_checks


def unit(rng: random.Random, ratio: float = 1.0, calls: int = 5) -> Unit:
    """Four rounds; each round's noise hits both engines."""
    rounds = [1 + abs(rng.gauss(0, 0.3)) for _ in range(4)]

    def burst(factor: float) -> list[float]:
        return [factor * (1 + rng.gauss(0, 0.01)) for _ in range(calls)]

    return {"candidate": [burst(ratio * noise) for noise in rounds], "baseline": [burst(noise) for noise in rounds]}


def test_noise_that_hits_both_engines_of_a_round_cancels() -> None:
    rng = random.Random(0)
    assert abs(log_ratio(unit(rng))) < 0.02


@pytest.mark.parametrize(
    ("ratio", "status", "words"),
    [
        (1.1, "FAIL", "slower than the baseline"),
        (0.9, "PASS", "faster than the baseline"),
        (1.05, "INCONCLUSIVE", "not clear against the limit of +5 %"),
    ],
)
def test_a_ratio_is_said_as_a_change_with_its_interval(ratio: float, status: str, words: str) -> None:
    rng, question = random.Random(1), RatioQuestion(0.05)
    for _ in range(20):
        question.add(unit(rng, ratio))
    check = question.check(12.3)
    assert check.status == status
    assert words in check.reason
    assert "98 % interval" in check.reason
    assert "12 s" in check.reason
    assert check.value == pytest.approx(ratio, rel=0.01)
    assert check.low is not None
    assert check.high is not None
    assert check.low < ratio < check.high


def test_a_verdict_says_the_ratio_beside_its_limit() -> None:
    rng, question = random.Random(2), RatioQuestion(0.02)
    for _ in range(20):
        question.add(unit(rng, 0.9))
    reason = verdict_from_checks([question.check(5)], Budget()).reason
    assert reason.startswith("Every limit holds: latency against the baseline -1")
    assert reason.endswith("of +2 %.")


def test_a_limit_is_answered_for_the_candidate_alone() -> None:
    rng, question = random.Random(3), LimitQuestion("latency", 3.0, 50)
    for _ in range(12):
        question.add(unit(rng))
    check = question.check(1.0)
    assert check.status == "PASS"
    assert check.reason.startswith("p50 1.")
    assert "keeps the limit of 3.00 ms; 240 calls in 1.0 s" in check.reason


def test_an_interval_that_is_still_open_is_said_so() -> None:
    question = LimitQuestion("latency", 3.0, 50)
    question.add(unit(random.Random(4)))
    check = question.check(0.1)
    assert check.status == "INCONCLUSIVE"
    assert "98 % interval still open" in check.reason
    assert (check.low, check.high) == (None, None)


def test_precision_is_reached_by_steady_medians_and_not_by_few_ones() -> None:
    question = PrecisionQuestion(0.01)
    steady: Unit = {"candidate": [[1.0, 1.0, 1.001]]}
    for _ in range(5):
        question.add(steady)
    assert question.status is None
    assert question.check(1).status == "INCONCLUSIVE"
    question.add(steady)
    assert question.status == "PASS"
    assert "known to 1 %" in question.check(1).reason


def test_a_far_percentile_counts_every_burst_so_that_it_can_pass_at_all() -> None:
    rng, question = random.Random(5), LimitQuestion("latency", 30.0, 99)
    for _ in range(180):
        question.add(unit(rng))
    assert question.status == "PASS"
