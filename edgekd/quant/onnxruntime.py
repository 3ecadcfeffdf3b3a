"""Static INT8 with ONNX Runtime's quantizer: the form its own CPU kernels run fastest, and the form TensorRT takes."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from edgekd.errors import BuildFailed
from edgekd.runtimes.session import FloatArray

CalibMethod = Literal["minmax", "entropy", "percentile"]
Feeds: TypeAlias = dict[str, FloatArray]

ATTENTION_OPS = ("Conv", "MatMul", "Gemm")
"""What is quantized in graphs with attention: the residual stream has outliers that 8 bits per tensor do not hold."""

TENSORRT_OPS = ("Conv", "MatMul", "Gemm", "Add", "GlobalAveragePool", "ReduceMean")
"""Whose inputs get Q/DQ for TensorRT: what it fuses into INT8 kernels, residual additions included."""


def cpu_quantized(
    source: Path, target: Path, feeds: Sequence[Feeds], *, method: CalibMethod, reduce_range: bool, attention: bool
) -> None:
    """Writes a Q/DQ graph with unsigned activations and signed per-channel weights.

    Args:
        source: A float32 graph.
        target: The file to write.
        feeds: Calibration samples, batch after batch.
        method: How ranges are taken from what the samples show.
        reduce_range: Weights use 7 of the 8 bits, so that two products fit into 16 bits: x86 CPUs without VNNI add
            them there and saturate.
        attention: The graph has attention: only its matrix products and convolutions are quantized.

    Raises:
        BuildFailed: The quantizer cannot handle the graph.
    """
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    _quantize(
        source,
        target,
        feeds,
        method=method,
        reduce_range=reduce_range,
        activation_type=QuantType.QUInt8,
        # The quantizer's own default is this set in the order of a hash table.
        op_types=list(ATTENTION_OPS) if attention else sorted({*QDQRegistry, *QLinearOpsRegistry}),
        options={},
    )


def tensorrt_quantized(
    source: Path, target: Path, feeds: Sequence[Feeds], *, method: CalibMethod, attention: bool
) -> None:
    """Writes a Q/DQ graph as TensorRT wants it: signed, zero points 0, per-channel weights behind Q/DQ, float biases.

    The weights stay float32 in the file; TensorRT quantizes them when it builds the engine.

    Args:
        source: A float32 graph.
        target: The file to write.
        feeds: Calibration samples, batch after batch.
        method: How ranges are taken from what the samples show.
        attention: The graph has attention: only its matrix products and convolutions are quantized.

    Raises:
        BuildFailed: The quantizer cannot handle the graph.
    """
    from onnxruntime.quantization import QuantType

    _quantize(
        source,
        target,
        feeds,
        method=method,
        reduce_range=False,
        activation_type=QuantType.QInt8,
        op_types=list(ATTENTION_OPS if attention else TENSORRT_OPS),
        options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "AddQDQPairToWeight": True,
            "QuantizeBias": False,
        },
    )


class _Reader:
    """Calibration samples as the quantizer reads them: in ranges of batches.

    It asks for one range at a time, so that the inner values of one batch are in memory at once, not those of all.
    """

    def __init__(self, feeds: Sequence[Feeds]) -> None:
        self._feeds = feeds
        self._next, self._end = 0, len(feeds)

    def __len__(self) -> int:
        return len(self._feeds)

    def set_range(self, start_index: int, end_index: int) -> None:
        self._next, self._end = start_index, end_index

    def get_next(self) -> Feeds | None:
        if self._next >= self._end:
            return None
        self._next += 1
        return self._feeds[self._next - 1]


def _quantize(
    source: Path,
    target: Path,
    feeds: Sequence[Feeds],
    *,
    method: CalibMethod,
    reduce_range: bool,
    activation_type: Any,
    op_types: list[str],
    options: dict[str, Any],
) -> None:
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    methods = {
        "minmax": CalibrationMethod.MinMax,
        "entropy": CalibrationMethod.Entropy,
        "percentile": CalibrationMethod.Percentile,
    }
    prepared = target.with_suffix(".prepared.onnx")
    try:
        with _quiet():
            quant_pre_process(source, prepared)
            quantize_static(
                prepared,
                target,
                _Reader(feeds),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=reduce_range,
                activation_type=activation_type,
                weight_type=QuantType.QInt8,
                op_types_to_quantize=op_types,
                calibrate_method=methods[method],
                extra_options={**options, "CalibStridedMinMax": 1},
            )
    except Exception as err:  # a third-party converter: it raises what it stumbles over
        raise BuildFailed(
            f"ONNX Runtime's quantizer failed with {type(err).__name__}: {err}", hint="leave int8 out of the precisions"
        ) from err
    finally:
        prepared.unlink(missing_ok=True)


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
