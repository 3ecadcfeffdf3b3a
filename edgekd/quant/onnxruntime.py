"""Static INT8 with ONNX Runtime's quantizer: the form its own CPU kernels run fastest, and the form TensorRT takes.

The quantizer places Q/DQ nodes; which ranges they get is decided elsewhere, so that the samples are seen once however
many graphs are tried.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from edgekd.errors import BuildFailed
from edgekd.quant.layers import GraphView, name_nodes_, own_biases_
from edgekd.quant.observe import only_activation
from edgekd.quant.placement import attention_products, with_float_stream_, without_branch_rounding_
from edgekd.quant.ranges import Range

LAYER_OPS = ("Conv", "ConvTranspose", "MatMul", "Gemm")
"""What is quantized in graphs with attention: the residual stream has outliers that 8 bits per tensor do not hold."""

TENSORRT_OPS = (*LAYER_OPS, "Add", "GlobalAveragePool", "ReduceMean")
"""Whose inputs get Q/DQ for TensorRT: what it fuses into INT8 kernels, residual additions included."""


@dataclass(frozen=True, kw_only=True)
class OrtForm:
    """How ONNX Runtime's quantizer is to write a graph; see `Int8Form`.

    Attributes:
        full: The FP32 graph as `prepared_graph` gives it.
        symmetric: Activations are signed with zero points 0; else unsigned.
        per_channel: One scale per output channel of a weight; else one for all of it.
        reduce_range: Weights use 7 of the 8 bits.
        op_types: Operators whose inputs are quantized, sorted.
        options: Of the quantizer.
        floats: Nodes that always stay in float.
    """

    full: onnx.ModelProto
    symmetric: bool
    per_channel: bool
    reduce_range: bool
    op_types: tuple[str, ...]
    options: Mapping[str, Any]
    floats: frozenset[str] = frozenset()

    def build(self, ranges: Mapping[str, Range], exclude: Collection[str] = ()) -> onnx.ModelProto:
        """The Q/DQ graph.

        Raises:
            BuildFailed: The quantizer cannot handle the graph.
        """
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

        model = onnx.ModelProto()
        model.CopyFrom(self.full)
        try:
            with _quiet():
                quantizer = QDQQuantizer(
                    model,
                    self.per_channel,
                    self.reduce_range,
                    QuantType.QInt8,
                    QuantType.QInt8 if self.symmetric else QuantType.QUInt8,
                    TensorsData(CalibrationMethod.MinMax, self._tensor_ranges(ranges)),
                    [],
                    sorted({*exclude, *self.floats}),
                    list(self.op_types),
                    dict(self.options),
                )
                quantizer.quantize_model()
                quantizer.model.topological_sort()
        except Exception as err:  # a third-party converter: it raises what it stumbles over
            raise BuildFailed(
                f"ONNX Runtime's quantizer failed with {type(err).__name__}: {err}",
                hint="leave int8 out of the precisions",
            ) from err
        made: onnx.ModelProto = quantizer.model.model
        if "Add" not in self.op_types:
            with_float_stream_(made)
        elif self.symmetric:
            without_branch_rounding_(made)
        return made

    def _tensor_ranges(self, ranges: Mapping[str, Range]) -> dict[str, Any]:
        from onnxruntime.quantization.calibrate import TensorData

        view = GraphView(self.full)
        known = dict(ranges)
        for name in view.maker:
            activation = only_activation(view, name)
            if activation is not None and activation.output[0] in ranges:
                # Fused with its activation function, a layer's output has that one's range.
                known[name] = ranges[activation.output[0]]
        return {
            name: TensorData(lowest=np.float32(found.low), highest=np.float32(found.high))
            for name, found in known.items()
        }


def cpu_form(
    full: onnx.ModelProto, *, reduce_range: bool, attention: bool, linear: bool = False, per_channel: bool = True
) -> OrtForm:
    """Unsigned activations and signed weights.

    Where layers alone are quantized, products write float, as ONNX Runtime's 8-bit products can: what reads them is in
    float. Its 8-bit convolutions cannot, so their outputs are rounded too.

    Args:
        full: As `prepared_graph` gives it.
        reduce_range: Weights use 7 of the 8 bits, so that two products fit into 16 bits: x86 CPUs without VNNI add
            them there and saturate.
        attention: The graph has attention: only its matrix products and convolutions are quantized.
        linear: Of these, only those with a weight.
        per_channel: One scale per output channel of a weight.
    """
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    # The quantizer's own default is this set in the order of a hash table.
    every = tuple(sorted({*QDQRegistry, *QLinearOpsRegistry}))
    return OrtForm(
        full=full,
        symmetric=False,
        per_channel=per_channel,
        reduce_range=reduce_range,
        op_types=LAYER_OPS if attention or linear else every,
        options={"OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"]} if attention or linear else {},
        floats=attention_products(full) if linear else frozenset(),
    )


def tensorrt_form(full: onnx.ModelProto, *, attention: bool, linear: bool = False, per_channel: bool = True) -> OrtForm:
    """As TensorRT wants it: signed, zero points 0, weights behind Q/DQ, float biases, inputs rounded and no outputs.

    The weights stay float32 in the file; TensorRT quantizes them when it builds the engine. An output that were rounded
    too would be so before its activation function and again behind it, and neither function nor residual addition
    could be fused.

    Args:
        full: As `prepared_graph` gives it.
        attention: The graph has attention: only its matrix products and convolutions are quantized.
        linear: Of these, only those with a weight.
        per_channel: One scale per output channel of a weight.
    """
    ops = LAYER_OPS if attention or linear else TENSORRT_OPS
    return OrtForm(
        full=full,
        symmetric=True,
        per_channel=per_channel,
        reduce_range=False,
        op_types=ops,
        floats=attention_products(full) if linear else frozenset(),
        options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "AddQDQPairToWeight": True,
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": list(ops),
        },
    )


def prepared_graph(source: Path, scratch: Path) -> onnx.ModelProto:
    """The FP32 graph with constants folded, types inferred, every node named and every bias a layer's own.

    Raises:
        BuildFailed: It cannot handle the graph.
    """
    from onnxruntime.quantization.quant_utils import add_infer_metadata, load_model_with_shape_infer
    from onnxruntime.quantization.shape_inference import quant_pre_process

    path = scratch / "prepared.onnx"
    try:
        with _quiet():
            quant_pre_process(source, path)
            model: onnx.ModelProto = load_model_with_shape_infer(path)
            add_infer_metadata(model)
    except Exception as err:  # a third-party converter: it raises what it stumbles over
        raise BuildFailed(
            f"ONNX Runtime's quantizer failed with {type(err).__name__}: {err}", hint="leave int8 out of the precisions"
        ) from err
    finally:
        path.unlink(missing_ok=True)
    name_nodes_(model)
    own_biases_(model)
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The calibrators print, and the quantizer warns through the root logger."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        root.setLevel(before)
