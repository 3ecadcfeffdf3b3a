"""Shares of layers, and what fell back."""

from __future__ import annotations

import pytest

from edgekd.core.layers import LayerTime, layer_report


def layer(name: str, op: str, arithmetic: str, ms: float, provider: str = "CPU") -> LayerTime:
    return LayerTime(name=name, op=op, arithmetic=arithmetic, median_ms=ms, provider=provider)


LAYERS = [
    layer("q", "QuantizeLinear", "conversion", 1.0),
    layer("a", "QLinearConv", "int8", 2.0),
    layer("b", "Conv", "float", 5.0),
    layer("add", "Add", "float", 1.0),
    layer("c", "Softmax", "float", 1.0, provider="Other"),
]


def test_shares_add_up_and_nodes_are_counted_by_provider() -> None:
    found = layer_report(LAYERS, source="test", calls=3, provider="CPU", quantized=True)
    assert found.total_ms == 10.0
    assert found.share_by_arithmetic == {"conversion": 0.1, "int8": 0.2, "float": pytest.approx(0.7)}
    assert found.nodes_by_provider == {"CPU": 4, "Other": 1}


def test_a_convolution_in_float_inside_an_int8_engine_has_fallen_back_and_an_addition_has_not() -> None:
    found = layer_report(LAYERS, source="test", calls=3, provider="CPU", quantized=True)
    assert found.fell_back == ("c (Softmax) ran on Other, not on CPU", "b (Conv) computed in float: 50%")


def test_float_is_no_fallback_where_nothing_else_was_asked() -> None:
    found = layer_report(LAYERS[2:4], source="test", calls=3, provider="CPU", quantized=False)
    assert found.fell_back == ()


def test_kinds_count_and_sum_layers_by_operator_and_arithmetic_the_slowest_first() -> None:
    found = layer_report([*LAYERS, LAYERS[1]], source="test", calls=3, provider="CPU", quantized=True)
    assert [(kind.op, kind.arithmetic, kind.count, kind.total_ms) for kind in found.kinds] == [
        ("Conv", "float", 1, 5.0),
        ("QLinearConv", "int8", 2, 4.0),
        ("Add", "float", 1, 1.0),
        ("QuantizeLinear", "conversion", 1, 1.0),
        ("Softmax", "float", 1, 1.0),
    ]


def test_float_layers_count_as_islands_only_between_two_layers_in_int8() -> None:
    closed = layer_report([*LAYERS, LAYERS[1]], source="test", calls=3, provider="CPU", quantized=True)
    opened = layer_report(LAYERS, source="test", calls=3, provider="CPU", quantized=True)
    assert (closed.float_between, opened.float_between) == (3, 0)
