"""The fp16 stage: an FP32 graph's half-precision twin, kept in float32 where its values would overflow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import onnx

from edgekd.core.bundle import BundleKind
from edgekd.core.stage import Context, Inputs, Port, Stage, StageConfig, StageResult, port
from edgekd.errors import BuildFailed, UserError
from edgekd.export.float16 import float16_from_float32
from edgekd.export.stage import parity_images, parity_metrics
from edgekd.lint.float16_ranges import Kept, magnitudes, observed_magnitudes, overflowing, risky
from edgekd.runtimes.compare import compare_logits, logits_of
from edgekd.runtimes.onnx_file import MODEL_FILE, bundle_from_graph, graph_from_file, size_mib, write_graph
from edgekd.runtimes.onnxruntime import RUNTIME

RANGE_SAMPLES = 32
SHOWN_NAMES = 3


class Fp16Config(StageConfig):
    """Nothing to choose: ranges decide."""


class Fp16Stage(Stage[Fp16Config]):
    """FP32 ONNX to FP16 ONNX with float32 inputs and outputs; the difference to FP32 is recorded, not judged.

    Parity is computed by ONNX Runtime, which on CPUs without half-precision kernels keeps float32 between operators: a
    lower bound of what a device with such kernels shows.
    """

    name: ClassVar[str] = "fp16"
    version: ClassVar[int] = 2
    Config: ClassVar[type[StageConfig]] = Fp16Config
    ports: ClassVar[Mapping[str, Port]] = {
        "model": port(BundleKind.ONNX),
        "samples": port(BundleKind.DATA, optional=True),
    }
    produces: ClassVar[BundleKind] = BundleKind.ONNX

    def requires(self, inputs: Inputs, ctx: Context) -> None:
        precision = inputs.one("model").tags.get("precision")
        if precision != "fp32":
            raise UserError(f"The fp16 stage takes an FP32 graph, but its input is {precision}.")

    def run(self, inputs: Inputs, ctx: Context) -> StageResult:
        model, samples = inputs.one("model"), inputs.maybe("samples")
        source = ctx.path(model, MODEL_FILE)
        images, origin = parity_images(model, samples, ctx)
        graph, name, few = graph_from_file(source), model.inputs[0].name, images[:RANGE_SAMPLES]
        ranges = observed_magnitudes(graph, name, few)
        keep, said = kept_for(graph, ranges, known=samples is not None)
        path = ctx.scratch / MODEL_FILE
        made = float16_from_float32(graph, keep)
        write_graph(made, path, made_by="the FP16 conversion")
        with RUNTIME.open(source) as reference, RUNTIME.open(path) as half:
            expected, found = logits_of(reference, images), logits_of(half, images)
        require_finite(ranges, observed_magnitudes(made, name, few) | magnitudes({model.outputs[0].name: found}))
        return StageResult(
            bundle=bundle_from_graph(path, carry=model, tags={"precision": "fp16", "scheme": ""}, blobs=ctx.blobs),
            metrics={"size_mib": size_mib(path), **parity_metrics(compare_logits(expected, found), samples)},
            decisions=(*said, *origin),
        )


def kept_for(graph: onnx.ModelProto, ranges: Mapping[str, float], *, known: bool) -> tuple[Kept, tuple[str, ...]]:
    """What must stay float32, and the decision that says so.

    Args:
        graph: In float32.
        ranges: Largest magnitude by value name.
        known: Whether the ranges were seen on samples; else what is suspected stays float32.
    """
    keep = overflowing(graph, ranges) if known else risky(graph)
    why = "their magnitudes on the samples leave no headroom in FP16"
    if not known:
        why = "they may overflow, and no samples show their ranges"
    return keep, (f"Kept in FP32: {_some(keep.names)}; {why}.",) if keep.names else ()


def require_finite(before: Mapping[str, float], after: Mapping[str, float]) -> None:
    """Compares magnitudes in the FP32 and in the FP16 graph; what was infinite before (a mask) may stay so.

    Raises:
        BuildFailed: A value that was finite is not any more.
    """
    overflown = [name for name, largest in after.items() if math.isinf(largest) and math.isfinite(before.get(name, 0))]
    if overflown:
        raise BuildFailed(
            f"Values of the FP16 graph overflow: {_some(overflown)}.",
            hint="give calibration samples, which show what must stay FP32, or leave fp16 out of the precisions",
        )


def _some(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    shown = ", ".join(names[:SHOWN_NAMES])
    return shown if len(names) <= SHOWN_NAMES else f"{shown} and {len(names) - SHOWN_NAMES} more values"
