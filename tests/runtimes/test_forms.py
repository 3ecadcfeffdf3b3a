"""The forms that graphs are timed in."""

from __future__ import annotations

from pathlib import Path

import pytest
from onnx import TensorProto

from edgekd.errors import DeviceUnavailable
from edgekd.runtimes.forms import FORMS, form_name
from edgekd.runtimes.onnx_file import write_graph
from edgekd.testing.toy_graphs import toy_graph


@pytest.mark.parametrize(
    ("precision", "scheme", "expected"),
    [("fp32", "ort-u8s8", "fp32"), ("fp16", None, "fp16"), ("int8", "openvino", "openvino")],
)
def test_a_precision_has_the_form_of_the_runtimes_scheme(precision: str, scheme: str | None, expected: str) -> None:
    assert form_name(precision, scheme) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("scheme", ["xnnpack", None])
def test_int8_that_is_no_graph_is_refused_with_the_forms_that_are(scheme: str | None) -> None:
    with pytest.raises(DeviceUnavailable, match=f"no INT8 graph in the form '{scheme}'") as caught:
        form_name("int8", scheme)  # type: ignore[arg-type]
    assert "ort-u8s8" in str(caught.value.hint)


def test_every_form_can_be_loaded() -> None:
    assert all(callable(FORMS.get(name)) for name in FORMS)


def test_the_fp32_form_stays_float32_and_the_fp16_form_computes_in_float16(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    write_graph(toy_graph(), path, made_by="the test")
    full, half = (FORMS.get(name)(path, tmp_path) for name in ("fp32", "fp16"))
    assert {entry.data_type for entry in full.graph.initializer if entry.dims} == {TensorProto.FLOAT}
    convolutions = {node.input[1] for node in half.graph.node if node.op_type == "Conv"}
    types = {entry.name: entry.data_type for entry in half.graph.initializer}
    assert {types[name] for name in convolutions} == {TensorProto.FLOAT16}
