"""INT8 graphs for timing: the Q/DQ nodes of each scheme with made-up ranges, in seconds and without samples.

Integer kernels take as long whatever the scales are. What does matter is whether zero points are zero, since kernels
correct for others: values behind a ReLU get ranges from zero, as they have after calibration.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from edgekd.quant.form import Int8Form
from edgekd.quant.layers import GraphView
from edgekd.quant.nncf import openvino_form
from edgekd.quant.onnxruntime import cpu_form, prepared_graph, tensorrt_form
from edgekd.quant.placement import is_linear
from edgekd.quant.ptq import has_attention
from edgekd.quant.ranges import Range

_REACH = 4.0
_POSITIVE = ("Relu", "Clip", "Sigmoid", "HardSigmoid", "Softmax")
"""What they write is not negative."""
_KEEP_SIGN = (
    "MaxPool", "AveragePool", "GlobalAveragePool", "ReduceMean", "Flatten", "Reshape", "Transpose", "Squeeze",
    "Unsqueeze", "Identity", "Slice", "Pad", "Concat", "Add", "Mul",
)  # fmt: skip
"""What they write is not negative where nothing that they read is."""


def ort_form(source: Path, scratch: Path) -> onnx.ModelProto:
    """As ONNX Runtime's CPU kernels read it; see `edgekd.runtimes.forms`."""
    full = prepared_graph(source, scratch)
    form = cpu_form(full, reduce_range=False, attention=has_attention(full), linear=is_linear(full, "auto"))
    return _built(form)


def trt_form(source: Path, scratch: Path) -> onnx.ModelProto:
    """As TensorRT reads it; see `edgekd.runtimes.forms`."""
    full = prepared_graph(source, scratch)
    return _built(tensorrt_form(full, attention=has_attention(full), linear=is_linear(full, "auto")))


def nncf_form(source: Path, scratch: Path) -> onnx.ModelProto:
    """As OpenVINO reads it: NNCF places the nodes, calibrated on one image of noise; see `edgekd.runtimes.forms`."""
    full = prepared_graph(source, scratch)
    sizes = [axis.dim_value for axis in full.graph.input[0].type.tensor_type.shape.dim][1:]
    image = np.random.default_rng(0).standard_normal((1, *sizes), dtype=np.float32)
    return _built(
        openvino_form(
            full,
            [{full.graph.input[0].name: image}],
            reduce_range=False,
            attention=has_attention(full),
            linear=is_linear(full, "auto"),
            corrects=False,
        )
    )


def _built(form: Int8Form) -> onnx.ModelProto:
    """With the same range for every value, or the upper part of it."""
    view, graph = GraphView(form.full), form.full.graph
    # Real values are hardly ever symmetric around zero, so an affine grid has a zero point.
    low = -_REACH if form.symmetric else -_REACH / 2
    ranges = dict.fromkeys((*(value.name for value in graph.input), *view.maker), Range(low, _REACH))
    if not form.symmetric:
        ranges |= dict.fromkeys(_not_negative(view), Range(0.0, _REACH))
    return form.build(ranges)


def _not_negative(view: GraphView) -> set[str]:
    """Values that come from a ReLU, or only from values that do."""
    found: set[str] = set()
    for node in view.model.graph.node:
        read = [name for name in node.input if name and name not in view.constants]
        kept = node.op_type in _KEEP_SIGN and bool(read) and all(name in found for name in read)
        if kept or node.op_type in _POSITIVE:
            found.update(node.output)
    return found
