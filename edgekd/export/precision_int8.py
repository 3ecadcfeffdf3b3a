"""The int8-fp16 stage: the twin of an INT8 graph for TensorRT whose float layers compute in half precision.

From TensorRT 10 on networks are strongly typed: what a graph leaves in float32 around its 8-bit layers (residual sums,
activation functions, normalisation, softmax, the head) runs in float32, where `trtexec --int8 --fp16` of older releases
chose half precision. The form is that of NVIDIA's ModelOpt: opset 19, float16 scales, no casts between. TensorRT 8 does
not read it, and needs it not: its builder may choose half precision for the plain graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from edgekd.core.bundle import BundleKind
from edgekd.core.stage import Context, Inputs, Port, Stage, StageConfig, StageResult, port
from edgekd.errors import UserError
from edgekd.export.float16 import float16_around_int8
from edgekd.export.float16_int8 import prepared
from edgekd.export.precision import RANGE_SAMPLES, Fp16Config, kept_for, require_finite
from edgekd.export.stage import parity_images, parity_metrics
from edgekd.lint.float16_ranges import magnitudes, observed_magnitudes
from edgekd.lint.lint import check_built
from edgekd.runtimes.compare import compare_logits, logits_of
from edgekd.runtimes.engines.settings import INT8, INT8_FP16
from edgekd.runtimes.onnx_file import MODEL_FILE, bundle_from_graph, graph_from_file, size_mib, write_graph
from edgekd.runtimes.onnxruntime import emulated


class Int8Fp16Stage(Stage[Fp16Config]):
    """INT8 ONNX for TensorRT to INT8 ONNX with float16 between the 8-bit layers; inputs and outputs stay float32.

    The difference to the INT8 graph is recorded, not judged: scales lose digits, and a value on the border of two codes
    falls to either side, so that it is as large as what INT8 itself loses. Computed with exact rounding.
    """

    name: ClassVar[str] = "int8-fp16"
    version: ClassVar[int] = 1
    Config: ClassVar[type[StageConfig]] = Fp16Config
    ports: ClassVar[Mapping[str, Port]] = {
        "model": port(BundleKind.ONNX),
        "samples": port(BundleKind.DATA, optional=True),
    }
    produces: ClassVar[BundleKind] = BundleKind.ONNX
    never_before: ClassVar[frozenset[str]] = frozenset({"prune", "distill", "quantize", "qat", "fp16"})

    def requires(self, inputs: Inputs, ctx: Context) -> None:
        scheme = inputs.one("model").tags.get("scheme")
        if scheme != INT8:
            raise UserError(
                f"The {self.name} stage takes an INT8 graph of the scheme {INT8}, but its input has the scheme "
                f"{scheme!r}.",
                hint=f"quantize with scheme {INT8}, or use the fp16 stage for FP32 graphs",
            )

    def run(self, inputs: Inputs, ctx: Context) -> StageResult:
        model, samples = inputs.one("model"), inputs.maybe("samples")
        source, path = ctx.path(model, MODEL_FILE), ctx.scratch / MODEL_FILE
        images, origin = parity_images(model, samples, ctx)
        graph, name, few = prepared(graph_from_file(source)), model.inputs[0].name, images[:RANGE_SAMPLES]
        ranges = observed_magnitudes(graph, name, few)
        keep, said = kept_for(graph, ranges, known=samples is not None)
        made = float16_around_int8(graph, keep)
        linted = check_built(made, INT8_FP16, f"the {self.name} stage")
        write_graph(made, path, made_by="the FP16 conversion")
        with emulated(source) as reference, emulated(path) as half:
            expected, found = logits_of(reference, images), logits_of(half, images)
        require_finite(ranges, observed_magnitudes(made, name, few) | magnitudes({model.outputs[0].name: found}))
        tags = {"precision": "int8", "scheme": INT8_FP16}
        return StageResult(
            bundle=bundle_from_graph(path, carry=model, tags=tags, blobs=ctx.blobs),
            metrics={"size_mib": size_mib(path), **parity_metrics(compare_logits(expected, found), samples)},
            decisions=(*said, *origin, *linted),
        )
