"""Comparisons, with workers replaced by rounds that the test chose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgekd.core.report import LatencyReport
from edgekd.errors import EdgekdError, UserError
from edgekd.profiling import compare as module
from edgekd.profiling.agent.loop import Samples
from edgekd.profiling.compare import Contender, answer_from_interval, compare, ratios_precise, sentence
from edgekd.profiling.isolated import Engine, Measured
from edgekd.profiling.measure import MeasurePlan, latency_report
from edgekd.profiling.process import WorkerLost
from edgekd.testing.harness import make_context
from edgekd.testing.toy_graphs import toy_onnx_bundle

PLAN = MeasurePlan()


def report(rounds_ns: list[list[int]]) -> LatencyReport:
    samples = Samples(rounds_ns=rounds_ns)
    return latency_report(
        samples, runtime="onnxruntime", precision="fp32", threads=1, batch=1, session={}, asked=PLAN.precision
    )


def rounds(base: int, n: int = 40) -> list[list[int]]:
    """A machine whose speed drifts by half, the same for all."""
    return [[round(base * (1 + i / (2 * n))) + j for j in range(5)] for i in range(n)]


@pytest.fixture
def contenders(tmp_path: Path) -> list[Contender]:
    ctx = make_context(tmp_path)
    engine = Engine(bundle=toy_onnx_bundle(ctx.blobs, ctx.scratch), runtime="onnxruntime")
    return [Contender(candidate=name, engine=engine) for name in ("a", "b", "c")]


def compared(
    contenders: list[Contender], outcomes: list[LatencyReport | EdgekdError], monkeypatch: pytest.MonkeyPatch
) -> Any:
    found = Measured(outcomes={c.label: o for c, o in zip(contenders, outcomes, strict=True)})
    monkeypatch.setattr(module, "measure_isolated", lambda *_, **__: found)
    return compare(contenders, None, PLAN)  # type: ignore[arg-type]


def test_ratios_are_taken_within_rounds_and_a_drift_cancels(
    contenders: list[Contender], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = compared(
        contenders, [report(rounds(1_000_000)), report(rounds(1_100_000)), report(rounds(800_000))], monkeypatch
    )
    slower, faster = found.ratios
    assert slower.ratio == pytest.approx(1.1, rel=1e-3)
    assert slower.high - slower.low < 0.001
    assert (slower.answer, faster.answer) == ("slower", "faster")
    assert slower.sentence == "b@onnxruntime is 10.0% slower than a@onnxruntime (10.0% to 10.0%)."
    assert faster.confidence == pytest.approx(0.975), "two ratios hold together with 95 %"


def test_equal_engines_show_no_difference(contenders: list[Contender], monkeypatch: pytest.MonkeyPatch) -> None:
    (ratio,) = compared(contenders[:2], [report(rounds(1_000_000))] * 2, monkeypatch).ratios
    assert ratio.answer == "no difference shown"
    assert "if there is one, it is within 0.0%" in ratio.sentence


def test_an_engine_that_failed_has_a_sentence_and_no_ratio(
    contenders: list[Contender], monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = [report(rounds(1_000_000)), WorkerLost("it crashed"), report(rounds(900_000))]
    lost, other = compared(contenders, outcomes, monkeypatch).ratios
    assert (lost.ratio, lost.answer) == (None, None)
    assert "b@onnxruntime was not compared: it crashed" in lost.sentence
    assert other.answer == "faster"


def test_without_the_reference_there_is_no_comparison(
    contenders: list[Contender], monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = [WorkerLost("the reference crashed"), *[report(rounds(1_000_000))] * 2]
    with pytest.raises(WorkerLost, match="the reference crashed"):
        compared(contenders, outcomes, monkeypatch)


def test_the_same_engine_twice_is_refused(contenders: list[Contender]) -> None:
    with pytest.raises(UserError, match="two different engines"):
        compare([contenders[0], contenders[0]], None, PLAN)  # type: ignore[arg-type]


def test_measuring_goes_on_until_every_ratio_is_precise() -> None:
    steady = [[1000 + i % 3] * 3 for i in range(40)]
    shaky = [[1000 + 150 * (i * 7919 % 5)] * 3 for i in range(40)]
    enough = ratios_precise("a", 0.01, 0.95)
    assert enough({"a": Samples(rounds_ns=steady), "b": Samples(rounds_ns=steady)})
    assert not enough({"a": Samples(rounds_ns=steady), "b": Samples(rounds_ns=shaky)})
    assert enough({"b": Samples(rounds_ns=shaky)}), "the reference is gone: nothing more can be learnt"


@pytest.mark.parametrize(
    ("low", "high", "answer"),
    [
        (0.8, 0.99, "faster"),
        (1.01, 1.1, "slower"),
        (0.99, 1.01, "no difference shown"),
        (1.0, 1.1, "no difference shown"),
    ],
)
def test_only_an_interval_without_one_shows_a_difference(low: float, high: float, answer: str) -> None:
    assert answer_from_interval(low, high) == answer


def test_the_sentence_bounds_a_difference_that_was_not_shown() -> None:
    text = sentence("b", "a", 1.0, 0.97, 1.01, "no difference shown")
    assert text == "No difference shown between b and a: if there is one, it is within 3.0%."
