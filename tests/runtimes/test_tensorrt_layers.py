"""Layers of TensorRT from what its inspector and its profiler say, in the forms of several versions."""

from __future__ import annotations

from typing import Any

import pytest

from edgekd.core.layers import layer_report
from edgekd.runtimes.tensorrt_layers import arithmetic, layers_from_information, operator


def layer(name: str, kind: str, form: str, **more: Any) -> dict[str, Any]:
    return {"Name": name, "LayerType": kind, "Inputs": [{"Name": "x", "Format/Datatype": form}], **more}


@pytest.mark.parametrize(
    ("told", "wanted"),
    [
        (layer("a", "CaskConvolution", "Thirty-two wide channel vectorized row major Int8 format."), "int8"),
        (layer("a", "CaskConvolution", "Row major linear FP16 format"), "float"),
        (layer("a", "CaskConvolution", "Float"), "float"),
        (layer("a", "gemm", "Half"), "float"),
        (layer("a", "Reformat", "Row major linear Int8 format"), "conversion"),
        (layer("a", "NoOp", "Row major linear FP32"), "other"),
        (layer("a", "CaskConvolution", "N/A due to dynamic shapes", Weights={"Type": "Int8", "Count": 4}), "int8"),
        (layer("a", "CaskConvolution", "N/A due to dynamic shapes"), "other"),
        ({"Name": "only a name"}, "other"),
        ({"Name": "odd", "LayerType": "kgen", "Inputs": "x", "Weights": 3}, "other"),
    ],
)
def test_a_layer_computes_in_the_type_of_its_first_input_or_of_its_weights(told: dict[str, Any], wanted: str) -> None:
    assert arithmetic(told) == wanted


def test_layers_have_the_order_of_the_engine_and_the_median_of_their_times() -> None:
    information = {
        "Layers": [
            layer("copy", "Reformat", "Row major linear FP32"),
            layer("never timed", "NoOp", "Row major linear FP32"),
            layer("conv", "CaskConvolution", "Int8 NC/32HW32", ParameterType="Convolution", TacticName="sm80_i8i8"),
            layer("late", "CaskConvolution", "Half", ParameterType="Convolution"),
        ]
    }
    times = {"unlisted": [0.1], "late": [0.2, 0.4, 9.0], "conv": [1.0, 3.0, 2.0], "copy": [0.5], "silent": []}
    found = layers_from_information(information, times, "Orin")
    assert [(entry.name, entry.op, entry.median_ms) for entry in found] == [
        ("copy", "Reformat", 0.5),
        ("conv", "Convolution", 2.0),
        ("late", "Convolution", 0.4),
        ("unlisted", "unknown", 0.1),
    ]
    assert (found[1].kernel, found[1].provider) == ("sm80_i8i8", "Orin")
    report = layer_report(found, source="test", calls=3, provider="Orin", quantized=True)
    assert [text.partition(":")[0] for text in report.fell_back] == ["late (Convolution) computed in float"]
    assert report.share_by_arithmetic["int8"] == pytest.approx(2 / 3)


def test_sparse_kernels_are_counted_among_those_of_convolutions_and_matrix_products() -> None:
    sparse = "sm80_xmma_fprop_sparse_conv_interleaved_i8i8_i8i32_f32_nchw_vect_c_32kcrs_vect_c_32_nchw"
    information = {
        "Layers": [
            layer("a", "CaskConvolution", "Half", ParameterType="Convolution", TacticName=sparse),
            layer("b", "CaskConvolution", "Half", ParameterType="Convolution", TacticName="sm80_xmma_fprop_f16f16"),
            layer("c", "gemm", "Half", TacticName="Sparse_gemm"),
            layer("unnamed", "CaskConvolution", "Half", ParameterType="Convolution"),
            layer("gathered", "kgen", "Half", TacticName="__myl_SparseGather"),
        ]
    }
    found = layers_from_information(information, {name: [1.0] for name in ("a", "b", "c", "unnamed", "gathered")}, "G")
    report = layer_report(found, source="test", calls=1, provider="G", quantized=False)
    assert (report.sparse_kernels, report.named_kernels) == (2, 3)


def test_an_engine_that_was_built_without_details_has_names_alone() -> None:
    (found,) = layers_from_information({"Layers": ["conv + relu"]}, {"conv + relu": [1.0]}, "Orin")
    assert (found.name, found.op, found.arithmetic) == ("conv + relu", "unknown", "other")


def test_the_name_that_the_network_used_comes_before_that_of_the_implementation() -> None:
    assert operator({"LayerType": "CaskConvolution", "ParameterType": "Convolution"}) == "Convolution"
    assert operator({"LayerType": "kgen"}) == "kgen"
