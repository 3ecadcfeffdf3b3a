from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekd.core.cost import OpCost, OpKind
from edgekd.errors import UserError
from edgekd.targets.latency import LatencyModel, latency_model_from_target
from edgekd.targets.load import known_targets, load_target
from edgekd.targets.schema import Target

MODEL = LatencyModel(
    target="toy",
    fixed_us=50,
    overhead_us_per_op=10,
    gmacs_per_s={"fp32": 10, "int8": 40},
    efficiency={"conv": 0.5, "other": 0.1},
    bandwidth_gb_s=1,
    origin="card",
)


def _op(macs: int = 0, params: int = 0, activations: int = 0, kind: OpKind = "conv", fused: bool = False) -> OpCost:
    return OpCost(name="x", kind=kind, macs=macs, params=params, activations=activations, fused=fused)


def test_a_compute_bound_operation_takes_macs_over_the_reached_rate() -> None:
    assert MODEL.predict_ms([_op(macs=10_000_000)], "fp32") == pytest.approx(0.05 + 2.0 + 0.01)


def test_a_memory_bound_operation_takes_bytes_over_bandwidth() -> None:
    assert MODEL.predict_ms([_op(params=10_000, activations=40_000)], "fp32") == pytest.approx(0.05 + 0.2 + 0.01)


def test_an_unlisted_kind_has_the_efficiency_of_other() -> None:
    assert MODEL.op_ms(_op(macs=1_000_000, kind="depthwise"), "fp32") == pytest.approx(1.0 + 0.01)


def test_int8_moves_a_quarter_of_the_bytes() -> None:
    assert MODEL.op_ms(_op(activations=40_000), "int8") == pytest.approx(0.04 + 0.01)


def test_fused_operations_are_free() -> None:
    assert MODEL.predict_ms([_op(activations=10**9, kind="activation", fused=True)], "fp32") == pytest.approx(0.05)


def test_a_batch_reads_its_weights_once_and_everything_else_per_image() -> None:
    op = _op(params=1_000_000, activations=1_000)
    assert MODEL.op_ms(op, "fp32", batch=4) == pytest.approx(4 * (1_000_000 + 4 * 1_000) / 1e6 + 0.01)


@given(st.integers(0, 10**9), st.integers(0, 10**7), st.integers(0, 10**7), st.integers(1, 4))
def test_more_work_never_takes_less_time(macs: int, params: int, activations: int, factor: int) -> None:
    small, large = _op(macs, params, activations), _op(macs * factor, params * factor, activations * factor)
    assert MODEL.op_ms(large, "fp32") >= MODEL.op_ms(small, "fp32")


def test_a_precision_without_a_rate_is_refused() -> None:
    with pytest.raises(UserError, match=r"Latency model of toy: no rate for fp16 \(it has: fp32, int8\)"):
        MODEL.predict_ms([_op()], "fp16")


def test_the_model_survives_its_json() -> None:
    assert LatencyModel.parse(MODEL.plain(), "x") == MODEL
    assert LatencyModel.parse(MODEL.plain(), "x").digest == MODEL.digest


def test_a_card_gives_a_model_with_the_shares_applied() -> None:
    target = load_target("jetson-orin-nano")
    model = latency_model_from_target(target)
    assert model.gmacs_per_s["int8"] == pytest.approx(10240 * 0.62)
    assert model.bandwidth_gb_s == pytest.approx(68 * 0.6)
    assert (model.origin, model.relative_error) == ("card", target.peak.relative_error)


@pytest.mark.parametrize("target", known_targets(), ids=lambda target: target.name)
def test_every_shipped_card_predicts_something_sane_for_a_resnet18_like_load(target: Target) -> None:
    model = latency_model_from_target(target)
    costs = [_op(macs=90_000_000, params=550_000, activations=400_000)] * 20
    assert {"fp32", "int8"} <= set(target.predictable) <= set(target.precisions)
    for precision in target.predictable:
        assert 0.2 < model.predict_ms(costs, precision) < 1000
    assert model.predict_ms(costs, "int8") < model.predict_ms(costs, "fp32")
