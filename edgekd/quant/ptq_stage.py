"""The quantize stage: an INT8 twin of an FP32 graph, in the form that a runtime runs fast, with its loss measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import onnx
from onnx import TensorProto

from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.digest import Json
from edgekd.core.stage import Context, Inputs, Port, Stage, StageConfig, StageResult, port
from edgekd.core.text import significant
from edgekd.errors import BuildFailed, UserError
from edgekd.quant.nncf import openvino_quantized
from edgekd.quant.onnxruntime import CalibMethod, Feeds, cpu_quantized, tensorrt_quantized
from edgekd.quant.weight_only import weight_only_from_float32
from edgekd.runtimes.compare import batches, compare_logits, logits_of
from edgekd.runtimes.onnx_file import MODEL_FILE, bundle_from_graph, graph_from_file, size_mib, write_graph
from edgekd.runtimes.onnxruntime import RUNTIME, emulated
from edgekd.runtimes.samples import Samples, random_images, samples_from_bundle
from edgekd.runtimes.session import FloatArray

Scheme = Literal["ort-u8s8", "openvino", "tensorrt-s8", "weight-only"]
NOISE_SAMPLES = 32
CALIBRATION_BATCH = 32
SATURATION_DB = 3.0
"""A larger loss of SQNR between exact rounding and this CPU's kernels is saturation, not rounding."""


class QuantizeConfig(StageConfig):
    """Which form of INT8, and how ranges are found.

    Attributes:
        scheme: `ort-u8s8` for ONNX Runtime on CPUs, `openvino`, `tensorrt-s8`, or `weight-only`, which needs no
            samples and speeds nothing up.
        calib_method: How ranges are taken from what the samples show.
        reduce_range: For `ort-u8s8` and `openvino`: weights use 7 bits. x86 CPUs without VNNI add pairs of 8-bit
            products in 16 bits and saturate, which costs far more than the bit; on CPUs with VNNI, and on ARM, False
            is a little more accurate.
    """

    scheme: Scheme
    calib_method: CalibMethod = "minmax"
    reduce_range: bool = True


class QuantizeStage(Stage[QuantizeConfig]):
    """FP32 ONNX to INT8 ONNX.

    Metrics: `sqnr_db` and `agreement` against the FP32 graph, computed with exact rounding; for CPU schemes also
    `sqnr_here_db` and `agreement_here`, computed by ONNX Runtime's 8-bit kernels on this machine.
    """

    name: ClassVar[str] = "quantize"
    version: ClassVar[int] = 2
    Config: ClassVar[type[StageConfig]] = QuantizeConfig
    ports: ClassVar[Mapping[str, Port]] = {
        "model": port(BundleKind.ONNX),
        "calibration": port(BundleKind.DATA, optional=True),
    }
    produces: ClassVar[BundleKind] = BundleKind.ONNX
    never_before: ClassVar[frozenset[str]] = frozenset({"prune", "distill", "fp16"})

    def requires(self, inputs: Inputs, ctx: Context) -> None:
        precision = inputs.one("model").tags.get("precision")
        if precision != "fp32":
            raise UserError(f"The quantize stage takes an FP32 graph, but its input is {precision}.")
        if self.config.scheme != "weight-only" and inputs.maybe("calibration") is None:
            raise UserError(
                f"The scheme {self.config.scheme!r} finds activation ranges on calibration samples, and none are "
                "connected.",
                hint="connect a calibration or synthetic-samples node, or use the scheme weight-only",
            )

    def run(self, inputs: Inputs, ctx: Context) -> StageResult:
        model, data = inputs.one("model"), inputs.maybe("calibration")
        samples = _samples(model, data, ctx)
        source, path = ctx.path(model, MODEL_FILE), ctx.scratch / MODEL_FILE
        feeds = partial(_feeds, model.inputs[0].name, samples.images)
        attention = has_attention(graph_from_file(source))
        made = self._quantized(source, feeds, attention, ctx.scratch)
        write_graph(made, path, made_by=f"quantization with {self.config.scheme}")
        metrics, decisions = measured_loss(source, path, samples.images, kernels=self._runs_here)
        metrics |= {"size_mib": size_mib(path), "calibration_samples": 0 if data is None else len(samples.images)}
        metrics |= {"loss_samples": len(samples.images), "samples_origin": "random" if data is None else samples.origin}
        return StageResult(
            bundle=bundle_from_graph(
                path, carry=model, tags={"precision": "int8", "scheme": self.config.scheme}, blobs=ctx.blobs
            ),
            metrics=metrics,
            decisions=(*self._decisions(data, samples, attention, size_mib(source), size_mib(path)), *decisions),
        )

    def ensures(self, inputs: Inputs, result: StageResult, ctx: Context) -> None:
        share = quantized_share(graph_from_file(ctx.path(result.bundle, MODEL_FILE)))
        if share < 0.5:
            raise BuildFailed(
                f"Only {share:.0%} of the graph's weights are INT8 after quantization with {self.config.scheme}.",
                hint="the model consists of operators that this scheme does not quantize; use another scheme",
            )

    @property
    def _runs_here(self) -> bool:
        """Whether ONNX Runtime's 8-bit kernels execute the scheme as its target would."""
        return self.config.scheme in ("ort-u8s8", "openvino")

    def _quantized(
        self, source: Path, feeds: Callable[[int], list[Feeds]], attention: bool, scratch: Path
    ) -> onnx.ModelProto:
        """The INT8 graph; `feeds` gives the calibration samples in batches of a size."""
        method, reduce_range = self.config.calib_method, self.config.reduce_range
        if self.config.scheme == "weight-only":
            return weight_only_from_float32(graph_from_file(source))
        if self.config.scheme == "openvino":
            graph = graph_from_file(source)
            return openvino_quantized(graph, feeds(1), method=method, reduce_range=reduce_range, attention=attention)
        made, batches_of_feeds = scratch / "quantized.onnx", feeds(CALIBRATION_BATCH)
        if self.config.scheme == "ort-u8s8":
            cpu_quantized(source, made, batches_of_feeds, method=method, reduce_range=reduce_range, attention=attention)
        else:
            tensorrt_quantized(source, made, batches_of_feeds, method=method, attention=attention)
        return graph_from_file(made)

    def _decisions(
        self, data: ModelBundle | None, samples: Samples, attention: bool, before_mib: float, after_mib: float
    ) -> tuple[str, ...]:
        said = []
        if attention and self.config.scheme != "weight-only":
            said.append("The graph has attention: what its outliers would spoil (residual sums, softmax) stays FP32.")
        if self.config.scheme == "openvino" and self.config.calib_method == "entropy":
            said.append("NNCF has no entropy calibration; its error-minimising histogram was used instead.")
        if data is None:
            said.append(
                f"The loss was measured on {len(samples.images)} images of random noise: no samples were given."
            )
        elif samples.origin == "synthetic":
            said.append("Ranges and loss come from synthetic images.")
        if self.config.scheme == "tensorrt-s8":
            said.append("The weights stay FP32 in the ONNX file; TensorRT makes them INT8 when it builds the engine.")
        elif after_mib >= before_mib:
            said.append(
                f"The INT8 file is not smaller ({significant(after_mib)} against {significant(before_mib)} MiB): the "
                "model is so small that scales and nodes outweigh the weights."
            )
        return tuple(said)


def has_attention(model: onnx.ModelProto) -> bool:
    """Whether a classifier's graph has attention: its logits are unnormalised, so a Softmax in it is nothing else."""
    return any(node.op_type == "Softmax" for node in model.graph.node)


def measured_loss(
    source: Path, quantized: Path, images: FloatArray, *, kernels: bool
) -> tuple[dict[str, Json], tuple[str, ...]]:
    """Metrics of a quantized graph against its FP32 twin, and a decision when this CPU's kernels saturate.

    Args:
        source: The FP32 graph.
        quantized: Its INT8 twin.
        images: (N, C, H, W) float32.
        kernels: Whether to run this CPU's 8-bit kernels too, beside exact rounding.
    """
    with RUNTIME.open(source) as session:
        expected = logits_of(session, images)
    with emulated(quantized) as session:
        exact = compare_logits(expected, logits_of(session, images))
    metrics: dict[str, Json] = {"sqnr_db": exact.sqnr_db, "agreement": exact.agreement}
    if not kernels:
        return metrics, ()
    with RUNTIME.open(quantized) as session:
        here = compare_logits(expected, logits_of(session, images))
    metrics |= {"sqnr_here_db": here.sqnr_db, "agreement_here": here.agreement}
    if here.sqnr_db >= exact.sqnr_db - SATURATION_DB:
        return metrics, ()
    return metrics, (
        f"This CPU's 8-bit kernels saturate: SQNR falls from {exact.sqnr_db:.1f} dB with exact rounding to "
        f"{here.sqnr_db:.1f} dB; reduce_range, where it is off, avoids that.",
    )


def quantized_share(model: onnx.ModelProto) -> float:
    """Share of weight elements, in [0, 1], that are INT8 or pass through a Q/DQ pair; weights have two or more axes."""
    sizes = {
        entry.name: int(np.prod(entry.dims))
        for entry in model.graph.initializer
        if len(entry.dims) >= 2 and entry.data_type in (TensorProto.FLOAT, TensorProto.INT8)
    }
    quantized = {
        node.input[0]
        for node in model.graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.input[0] in sizes
    }
    return sum(sizes[name] for name in quantized) / max(sum(sizes.values()), 1)


def _feeds(input_name: str, images: FloatArray, batch: int) -> list[Feeds]:
    return [{input_name: part} for part in batches(images, batch)]


def _samples(model: ModelBundle, data: ModelBundle | None, ctx: Context) -> Samples:
    preprocessing = model.model.preprocessing
    if data is not None:
        return samples_from_bundle(data, ctx.blobs, preprocessing=preprocessing)
    noise = random_images(preprocessing.input_shape, samples=NOISE_SAMPLES, seed=ctx.seed)
    return Samples(noise, None, "synthetic")
