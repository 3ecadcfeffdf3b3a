"""The stage that exports packed weights: an FP32 graph of a quantized student in, a graph with its codes out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from edgekd.core.bundle import BundleKind
from edgekd.core.digest import Json
from edgekd.core.stage import Context, Inputs, Port, Stage, StageConfig, StageResult, port
from edgekd.core.text import mib
from edgekd.errors import BuildFailed, UserError
from edgekd.quant.codebook import codebook_from_float32
from edgekd.quant.codes import CODES_FILE, read_codes
from edgekd.runtimes.compare import Comparison, compare_logits, logits_of
from edgekd.runtimes.onnx_file import MODEL_FILE, bundle_from_graph, graph_from_file, size_mib, write_graph
from edgekd.runtimes.onnxruntime import RUNTIME, emulated
from edgekd.runtimes.samples import random_images

SAMPLES = 16
LEAST_SQNR_DB = 80.0
"""Codes are the weights themselves, so only the order of float32 operations may differ."""


class CodebookConfig(StageConfig):
    """Nothing to choose: the codes say how they are stored."""


class CodebookStage(Stage[CodebookConfig]):
    """FP32 ONNX to ONNX with codes; it computes the same, in float32, from a smaller file.

    The port `weights` takes the TORCH bundle that the graph was exported from, with its `codes.safetensors`. The result
    has the precision `fp32`, in which it computes, the scheme `weight-only`, at which runtimes unpack it when they load
    it, and the bits of its weights as `weights_bits`.
    """

    name: ClassVar[str] = "codebook"
    version: ClassVar[int] = 4
    Config: ClassVar[type[StageConfig]] = CodebookConfig
    ports: ClassVar[Mapping[str, Port]] = {"model": port(BundleKind.ONNX), "weights": port(BundleKind.TORCH)}
    produces: ClassVar[BundleKind] = BundleKind.ONNX
    never_before: ClassVar[frozenset[str]] = frozenset({"prune", "distill", "fp16", "quantize", "qat"})

    def requires(self, inputs: Inputs, ctx: Context) -> None:
        precision = inputs.one("model").tags.get("precision")
        if precision != "fp32":
            raise UserError(f"The codebook stage takes an FP32 graph, but its input is {precision}.")
        if CODES_FILE not in inputs.one("weights").files:
            raise UserError(
                f"The bundle at the port weights has no {CODES_FILE}: its weights lie on no grid.",
                hint="connect a quantized-distill or differentiable-quantize node",
            )

    def run(self, inputs: Inputs, ctx: Context) -> StageResult:
        model, weights = inputs.one("model"), inputs.one("weights")
        source, path = ctx.path(model, MODEL_FILE), ctx.scratch / MODEL_FILE
        _, coded = read_codes(ctx.path(weights, CODES_FILE))
        write_graph(codebook_from_float32(graph_from_file(source), coded), path, made_by="the codebook export")
        images = random_images(model.model.preprocessing.input_shape, samples=SAMPLES, seed=ctx.seed)
        with RUNTIME.open(source) as full, emulated(path) as small:
            found = compare_logits(logits_of(full, images), logits_of(small, images))
        if found.sqnr_db < LEAST_SQNR_DB:
            raise BuildFailed(
                f"The graph with codes differs from the graph with weights: SQNR {found.sqnr_db:.1f} dB on {found.n} "
                f"images of noise, where {LEAST_SQNR_DB:.0f} dB are asked for."
            )
        before, after = size_mib(source), size_mib(path)
        # It computes in float32: the scheme tells runtimes to unpack weights once, the bits what the file holds.
        tags = {"precision": "fp32", "scheme": "weight-only", "weights_bits": weights.tags.get("weights_bits")}
        return StageResult(
            bundle=bundle_from_graph(path, carry=model, tags=tags, blobs=ctx.blobs),
            metrics={"size_mib": after, "size_mib_before": before, **_parity(found)},
            decisions=(
                f"The weights of {len(coded)} layers are stored as codes: {mib(after)} instead of {mib(before)}. They "
                "are unpacked when the graph is loaded, so nothing gets faster.",
            ),
        )


def _parity(found: Comparison) -> dict[str, Json]:
    """The comparison with the FP32 graph as stage metrics; differences are in units of the logits."""
    return {
        "samples_origin": "random",
        "parity_samples": found.n,
        "parity_max_abs": found.max_abs,
        "parity_mean_abs": found.mean_abs,
        "parity_cosine": found.cosine,
        "parity_agreement": found.agreement,
        "sqnr_db": found.sqnr_db,
    }
