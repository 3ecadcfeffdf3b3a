"""The export stage: from a TORCH bundle to one checked, simplified ONNX file that provably computes the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import onnx
from pydantic import Field, JsonValue
from torch import nn

from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.digest import Json
from edgekd.core.stage import Context, Inputs, Port, Stage, StageConfig, StageResult, port
from edgekd.errors import BuildFailed
from edgekd.export.parity import require_parity
from edgekd.nn.build import PROGRAM_FILE, module_from_bundle
from edgekd.nn.count import count_macs, count_params
from edgekd.nn.onnx import onnx_from_module
from edgekd.nn.reparam import fusable_blocks, reparameterised
from edgekd.runtimes.compare import Comparison, Tolerance
from edgekd.runtimes.onnx_file import (
    MODEL_FILE,
    bundle_from_graph,
    graph_from_file,
    onnx_interface,
    size_mib,
    write_graph,
)
from edgekd.runtimes.samples import random_images, samples_from_bundle
from edgekd.runtimes.session import FloatArray

PARITY_SAMPLES = 128
NOISE_SAMPLES = 8


class ExportConfig(StageConfig):
    """How to write the graph and how near it must be.

    Attributes:
        opset: Of the default ONNX domain; TensorRT 8.6 reads up to 17.
        atol: Largest accepted difference of logits, relative to their spread.
        rtol: Largest accepted difference, relative to each logit.
        simplify: Folds constants and removes what has no effect, with onnxslim.
    """

    opset: int = Field(default=20, ge=17)
    atol: float = Field(default=1e-3, ge=0)
    rtol: float = Field(default=1e-3, ge=0)
    simplify: bool = True


class ExportStage(Stage[ExportConfig]):
    """TORCH to ONNX with a dynamic batch; parity is proven through ONNX Runtime on the samples.

    Blocks that train with more branches than they need are deployed fused: see `edgekd.nn.reparam`.

    Two tags go along to every engine made from the graph: `model`, the content digest of the bundle it came from, and
    `program`, the digest of the program file where there is one.
    """

    name: ClassVar[str] = "export"
    version: ClassVar[int] = 3
    Config: ClassVar[type[StageConfig]] = ExportConfig
    ports: ClassVar[Mapping[str, Port]] = {
        "model": port(BundleKind.TORCH),
        "samples": port(BundleKind.DATA, optional=True),
    }
    produces: ClassVar[BundleKind] = BundleKind.ONNX

    def run(self, inputs: Inputs, ctx: Context) -> StageResult:
        model = inputs.one("model")
        module, shape = module_from_bundle(model, ctx.blobs), model.model.preprocessing.input_shape
        images, origin = parity_images(model, inputs.maybe("samples"), ctx)
        raw = ctx.scratch / "exported.onnx"
        deployed = reparameterised(module)
        onnx_from_module(deployed, shape, raw, opset=self.config.opset)
        # Compared with the branches, so that parity proves the fusing too.
        path, comparison, decisions = self._written(module, raw, images, ctx.scratch)
        if fused := len(fusable_blocks(module)):
            decisions += (f"The branches of {fused} blocks became one convolution each.",)
        bundle = bundle_from_graph(path, carry=model, tags=model_tags(model), blobs=ctx.blobs)
        metrics = {
            "params_m": count_params(deployed) / 1e6,
            "macs_m": count_macs(deployed, shape) / 1e6,
            "size_mib": size_mib(path),
            **parity_metrics(comparison, inputs.maybe("samples")),
        }
        return StageResult(bundle=bundle, metrics=metrics, decisions=(*decisions, *origin))

    def ensures(self, inputs: Inputs, result: StageResult, ctx: Context) -> None:
        found = onnx_interface(ctx.path(result.bundle, MODEL_FILE))
        wanted = (result.bundle.inputs, result.bundle.outputs)
        if found != wanted:
            raise BuildFailed(f"The exported graph was to have the inputs and outputs {wanted}, but has {found}.")

    def _written(
        self, module: nn.Module, raw: Path, images: FloatArray, scratch: Path
    ) -> tuple[Path, Comparison, tuple[str, ...]]:
        """The graph's file, its parity and what was decided: the simplified graph where it holds, else the plain."""
        tolerance = Tolerance(atol=self.config.atol, rtol=self.config.rtol)
        path = scratch / MODEL_FILE
        decisions: tuple[str, ...] = ()
        if self.config.simplify:
            try:
                write_graph(simplified(graph_from_file(raw)), path, made_by="onnxslim")
                return path, require_parity(module, path, images, tolerance), ()
            except BuildFailed as err:
                decisions = (f"The graph is not simplified: {err.message}",)
        write_graph(graph_from_file(raw), path, made_by="the exporter")
        return path, require_parity(module, path, images, tolerance), decisions


def model_tags(model: ModelBundle) -> dict[str, JsonValue]:
    """The tags of what is made from a TORCH bundle in full precision, and of every engine made from that."""
    tags: dict[str, JsonValue] = {"precision": "fp32", "scheme": "", "model": model.content}
    if "sparsity" in model.tags:
        tags["sparsity"] = model.tags["sparsity"]
    return tags | {"program": model.files[PROGRAM_FILE]} if PROGRAM_FILE in model.files else tags


def parity_images(model: ModelBundle, samples: ModelBundle | None, ctx: Context) -> tuple[FloatArray, tuple[str, ...]]:
    """Images to compare two forms of a model on, and the decision to say what they are when they are not real."""
    preprocessing = model.model.preprocessing
    if samples is None:
        images = random_images(preprocessing.input_shape, samples=NOISE_SAMPLES, seed=ctx.seed)
        return images, (f"Parity was checked on {NOISE_SAMPLES} images of random noise: no samples were given.",)
    found = samples_from_bundle(samples, ctx.blobs, preprocessing=preprocessing)
    said = ("Parity was checked on synthetic images.",) if found.origin == "synthetic" else ()
    return found.images[:PARITY_SAMPLES], said


def parity_metrics(comparison: Comparison, samples: ModelBundle | None) -> dict[str, Json]:
    """The comparison as stage metrics; differences are in units of the logits.

    Args:
        samples: What the images came from; None for random noise.
    """
    return {
        "samples_origin": _origin(samples),
        "parity_samples": comparison.n,
        "parity_max_abs": comparison.max_abs,
        "parity_mean_abs": comparison.mean_abs,
        "parity_spread": comparison.spread,
        "parity_cosine": comparison.cosine,
        "parity_agreement": comparison.agreement,
    }


def _origin(samples: ModelBundle | None) -> str:
    if samples is None:
        return "random"
    return "synthetic" if samples.tags.get("origin") == "synthetic" else "real"


def simplified(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph without what has no effect.

    Raises:
        BuildFailed: onnxslim cannot handle it.
    """
    import onnxslim

    try:
        slim = onnxslim.slim(model)
    except Exception as err:  # a third-party optimiser: whatever it stumbles over, the plain graph still serves
        raise BuildFailed(f"onnxslim failed with {type(err).__name__}: {err}") from err
    if not isinstance(slim, onnx.ModelProto):
        raise BuildFailed("onnxslim gave no graph.")
    return slim
