"""Static INT8 with NNCF, whose placement of quantizers is the one OpenVINO's CPU plugin fuses best."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import onnx

from edgekd.errors import BuildFailed
from edgekd.quant.layers import GraphView, weighted_layers
from edgekd.quant.ranges import Range
from edgekd.quant.revert import reverted, set_ranges_
from edgekd.quant.smoothing import smoothed
from edgekd.runtimes.session import FloatArray

Feeds: TypeAlias = dict[str, FloatArray]


@dataclass(frozen=True, kw_only=True)
class NncfForm:
    """NNCF's graph, with other ranges and some layers in float; see `Int8Form`.

    NNCF runs once. What it left in the graph stays: where quantizers stand, which of them share a scale, its smoothing
    and its bias correction.

    Attributes:
        full: The FP32 graph, nodes named and types inferred, with the smoothing that NNCF did.
        quantized: NNCF's.
        symmetric: False: each quantizer says of itself whether its range is.
    """

    full: onnx.ModelProto
    quantized: onnx.ModelProto
    symmetric: bool = False

    def build(self, ranges: Mapping[str, Range], exclude: Collection[str] = ()) -> onnx.ModelProto:
        """The Q/DQ graph."""
        made = onnx.ModelProto()
        made.CopyFrom(self.quantized)
        set_ranges_(made, ranges)
        return reverted(made, self.full, exclude) if exclude else made


def openvino_form(
    full: onnx.ModelProto,
    feeds: Sequence[Feeds],
    *,
    reduce_range: bool,
    attention: bool,
    linear: bool = False,
    per_channel: bool = True,
    corrects: bool = True,
) -> NncfForm:
    """A Q/DQ graph with per-tensor activations.

    Activations are per tensor although NNCF would quantize the inputs of depthwise convolutions per channel: outside
    OpenVINO those have no fast kernel.

    Args:
        full: A float32 graph, nodes named and types inferred; left as it was.
        feeds: Calibration samples, one image each.
        reduce_range: Weights use 7 of the 8 bits, for x86 CPUs without VNNI, whose 16-bit sums saturate.
        attention: The graph has attention: NNCF then leaves its sensitive parts alone and smooths its outliers.
        linear: Only layers with weights are quantized.
        per_channel: One scale per output channel of a weight.
        corrects: Corrects biases.

    Raises:
        BuildFailed: NNCF cannot handle the graph.
    """
    _prepare_environment()
    import nncf

    source = onnx.ModelProto()
    source.CopyFrom(full)
    try:
        with _quiet():
            made: onnx.ModelProto = nncf.quantize(
                source,
                nncf.Dataset(feeds),
                preset=nncf.QuantizationPreset.MIXED,
                target_device=nncf.TargetDevice.CPU,
                model_type=nncf.ModelType.TRANSFORMER if attention else None,
                subset_size=len(feeds),
                ignored_scope=nncf.IgnoredScope(names=_without_weights(source)) if linear else None,
                advanced_parameters=_parameters(reduce_range, per_channel, corrects),
            )
    except Exception as err:  # a third-party converter: it raises what it stumbles over
        raise BuildFailed(
            f"NNCF's quantizer failed with {type(err).__name__}: {err}", hint="use the scheme ort-u8s8"
        ) from err
    return NncfForm(full=smoothed(full, made), quantized=made)


def _without_weights(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes that are no layer with a weight."""
    layers = set(weighted_layers(GraphView(model)))
    return [node.name for node in model.graph.node if node.name not in layers and node.op_type != "Constant"]


def _parameters(reduce_range: bool, per_channel: bool, corrects: bool) -> Any:
    import nncf
    from nncf.quantization.advanced_parameters import QuantizationParameters
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet as Estimators

    return nncf.AdvancedQuantizationParameters(
        disable_bias_correction=not corrects,
        overflow_fix=nncf.OverflowFix.ENABLE if reduce_range else nncf.OverflowFix.DISABLE,
        activations_quantization_params=QuantizationParameters(per_channel=False),
        weights_quantization_params=QuantizationParameters(per_channel=per_channel),
        activations_range_estimator_params=Estimators.MINMAX,
    )


def _prepare_environment() -> None:
    """Must come before NNCF's first import: no usage statistics are sent, and no time limit cuts a build short."""
    os.environ["NNCF_CI"] = "1"
    os.environ.setdefault("NNCF_EXTENSION_LOAD_TIMEOUT", "0")
    # Importing it looks for a CUDA compiler and warns when there is none.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """NNCF logs its findings and draws progress bars."""
    logger = logging.getLogger("nncf")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(before)
