"""Static INT8 with NNCF, whose placement of quantizers is the one OpenVINO's CPU plugin fuses best."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

import onnx

from edgekd.errors import BuildFailed
from edgekd.quant.onnxruntime import CalibMethod, Feeds


def openvino_quantized(
    model: onnx.ModelProto, feeds: Sequence[Feeds], *, method: CalibMethod, reduce_range: bool, attention: bool
) -> onnx.ModelProto:
    """A Q/DQ graph with per-tensor activations, per-channel weights and corrected biases.

    Activations are per tensor although NNCF would quantize the inputs of depthwise convolutions per channel: outside
    OpenVINO those have no fast kernel.

    Args:
        model: A float32 graph; left as it was.
        feeds: Calibration samples, one image each.
        method: `minmax` takes the extremes, `percentile` the mean of per-image quantiles; for `entropy`, which NNCF
            does not have, its error-minimising histogram stands in.
        reduce_range: Weights use 7 of the 8 bits, for x86 CPUs without VNNI, whose 16-bit sums saturate.
        attention: The graph has attention: NNCF then leaves its sensitive parts alone and smooths its outliers.

    Raises:
        BuildFailed: NNCF cannot handle the graph.
    """
    _prepare_environment()
    import nncf

    source = onnx.ModelProto()
    source.CopyFrom(model)
    try:
        with _quiet():
            made: onnx.ModelProto = nncf.quantize(
                source,
                nncf.Dataset(feeds),
                preset=nncf.QuantizationPreset.MIXED,
                target_device=nncf.TargetDevice.CPU,
                model_type=nncf.ModelType.TRANSFORMER if attention else None,
                subset_size=len(feeds),
                advanced_parameters=_parameters(method, reduce_range),
            )
    except Exception as err:  # a third-party converter: it raises what it stumbles over
        raise BuildFailed(
            f"NNCF's quantizer failed with {type(err).__name__}: {err}", hint="use the scheme ort-u8s8"
        ) from err
    return made


def _parameters(method: CalibMethod, reduce_range: bool) -> Any:
    import nncf
    from nncf.quantization.advanced_parameters import QuantizationParameters
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet as Estimators

    estimators = {
        "minmax": Estimators.MINMAX,
        "percentile": Estimators.MEAN_QUANTILE,
        "entropy": Estimators.HISTOGRAM,
    }
    return nncf.AdvancedQuantizationParameters(
        overflow_fix=nncf.OverflowFix.ENABLE if reduce_range else nncf.OverflowFix.DISABLE,
        activations_quantization_params=QuantizationParameters(per_channel=False),
        activations_range_estimator_params=estimators[method],
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
