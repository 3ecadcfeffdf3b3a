"""The quantize stage: an INT8 twin of an FP32 graph, in the form that a runtime runs fast, with its loss measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import onnx
from onnx import TensorProto
from pydantic import Field

from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.digest import Json
from edgekd.core.report_io import report_from_bundle
from edgekd.core.schema import suggest
from edgekd.core.stage import Context, Inputs, Port, Stage, StageConfig, StageResult, port
from edgekd.core.text import significant
from edgekd.data.dataset import Dataset
from edgekd.errors import BuildFailed, UserError
from edgekd.lint.family import family_of
from edgekd.lint.lint import check_built
from edgekd.lint.requantized import keep_float_weights_
from edgekd.lint.view import normalised
from edgekd.quant.fallback import LARGEST_SHARE, fallback
from edgekd.quant.form import quantized_nodes
from edgekd.quant.limit import Limit, check_teacher, select_judge
from edgekd.quant.placement import is_linear
from edgekd.quant.ptq import (
    CPU_SCHEMES,
    CalibratedScheme,
    Int8Builder,
    PtqConfig,
    has_attention,
    int8_builder,
    options_of,
    require_fp32,
)
from edgekd.quant.sensitivity import SensitivityReport, sensitivity
from edgekd.quant.trial import DropType, Judge, Score
from edgekd.quant.weight_only import weight_only_from_float32
from edgekd.runtimes.compare import compare_logits, logits_of
from edgekd.runtimes.onnx_file import MODEL_FILE, bundle_from_graph, graph_from_file, size_mib, write_graph
from edgekd.runtimes.onnxruntime import RUNTIME, emulated
from edgekd.runtimes.samples import Samples, random_images, samples_from_bundle
from edgekd.runtimes.session import FloatArray

Scheme = Literal["ort-u8s8", "openvino", "tensorrt-s8", "weight-only"]
CALIBRATED: Mapping[str, CalibratedScheme] = {
    "ort-u8s8": "ort-u8s8",
    "openvino": "openvino",
    "tensorrt-s8": "tensorrt-s8",
}
NOISE_SAMPLES = 32
SATURATION_DB = 3.0
"""A larger loss of SQNR between exact rounding and this CPU's kernels is no matter of the last bit."""
LEAST_SHARE = 0.5
"""Of the weights that must be INT8 where nobody asked for layers in float."""


class QuantizeConfig(PtqConfig):
    """Which form of INT8, how it is made, and which layers stay in float.

    Attributes:
        scheme: `ort-u8s8` for ONNX Runtime on CPUs, `openvino`, `tensorrt-s8`, or `weight-only`, which needs no
            samples, takes none of the other options, and speeds nothing up. `reduce_range` says what suits the device;
            it is overlooked where a scheme has no use for it.
        exclude: Names of nodes of the FP32 graph that stay in float.
        revert: Keeps so many of the most sensitive layers in float; with a `sensitivity` node connected its table says
            which.
        max_drop: Reverts the most sensitive layers until INT8 loses no more than this: top-1, or answers that differ
            where there are no labels. It is counted against the graph at the port `teacher`, and without one against
            the FP32 twin. None reverts nothing.
        drop_type: `relative` counts in shares of their accuracy.
        judged_on: Where it is counted: on the calibration `samples`, or on images of the split that decisions are taken
            on, `select`.
        max_trials: Graphs that may be tried for that.
    """

    scheme: Scheme
    exclude: tuple[str, ...] = ()
    revert: int = Field(default=0, ge=0)
    max_drop: float | None = Field(default=None, ge=0)
    drop_type: DropType = "absolute"
    judged_on: Literal["samples", "select"] = "samples"
    max_trials: int = Field(default=12, ge=1)


@dataclass(kw_only=True)
class _Made:
    """A graph with what is to be said of it."""

    graph: onnx.ModelProto
    decisions: list[str]
    metrics: dict[str, Json]


class QuantizeStage(Stage[QuantizeConfig]):
    """FP32 ONNX to INT8 ONNX.

    Metrics: `sqnr_db` and `agreement` against the FP32 graph, computed with exact rounding; for CPU schemes also
    `sqnr_here_db` and `agreement_here`, computed by ONNX Runtime's 8-bit kernels on this machine; `layers_in_float`;
    with `max_drop` also `limit_held`.
    """

    name: ClassVar[str] = "quantize"
    version: ClassVar[int] = 8
    Config: ClassVar[type[StageConfig]] = QuantizeConfig
    ports: ClassVar[Mapping[str, Port]] = {
        "model": port(BundleKind.ONNX),
        "calibration": port(BundleKind.DATA, optional=True),
        "sensitivity": port(BundleKind.REPORT, optional=True),
        "teacher": port(BundleKind.ONNX, optional=True),
    }
    produces: ClassVar[BundleKind] = BundleKind.ONNX
    reads: ClassVar[frozenset[str]] = frozenset({"data"})
    never_before: ClassVar[frozenset[str]] = frozenset({"prune", "distill", "fp16"})

    def resources_read(self) -> frozenset[str]:
        return self.reads if self.config.judged_on == "select" else frozenset()

    def requires(self, inputs: Inputs, ctx: Context) -> None:
        require_fp32(inputs.one("model"), self.name)
        given = _given(self.config)
        if self.config.scheme == "weight-only":
            useless = [name for name in given if name not in ("scheme", "reduce_range")]
            if useless:
                raise UserError(
                    "The scheme 'weight-only' rounds no activations and reverts no layers, so it has no use for "
                    f"{', '.join(useless)}.",
                    hint="take these out, or use a calibrated scheme",
                )
            return
        teacher = inputs.maybe("teacher")
        without_limit = [name for name in given if name in ("drop_type", "judged_on", "max_trials")]
        if without_limit and self.config.max_drop is None:
            raise UserError(
                f"{' and '.join(without_limit)} say how max_drop is kept, but there is no max_drop.",
                hint="set max_drop, the loss that is allowed, such as 0.01",
            )
        if teacher is not None and self.config.max_drop is not None:
            check_teacher(inputs.one("model"), teacher)
        if inputs.maybe("calibration") is None:
            raise UserError(
                f"The scheme {self.config.scheme!r} finds activation ranges on calibration samples, and none are "
                "connected.",
                hint="connect a calibration or synthetic-samples node, or use the scheme weight-only",
            )

    def run(self, inputs: Inputs, ctx: Context) -> StageResult:
        model, data = inputs.one("model"), inputs.maybe("calibration")
        samples = _samples(model, data, ctx)
        source, path = ctx.path(model, MODEL_FILE), ctx.scratch / MODEL_FILE
        made = self._made(source, samples, inputs, ctx)
        if self._runs_here:
            _keep_floats_(made)
        linted = check_built(made.graph, self.config.scheme, "the quantize stage")
        write_graph(made.graph, path, made_by=f"quantization with {self.config.scheme}")
        metrics, decisions = measured_loss(source, path, samples.images, kernels=self._runs_here)
        metrics |= {"size_mib": size_mib(path), "calibration_samples": 0 if data is None else len(samples.images)}
        metrics |= {"loss_samples": len(samples.images), "samples_origin": "random" if data is None else samples.origin}
        said = (*self._decisions(data, samples, source, path), *made.decisions, *decisions, *linted)
        tags = {"precision": "int8", "scheme": self.config.scheme}
        return StageResult(
            bundle=bundle_from_graph(path, carry=model, tags=tags, blobs=ctx.blobs),
            metrics={**metrics, **made.metrics},
            decisions=said,
        )

    def ensures(self, inputs: Inputs, result: StageResult, ctx: Context) -> None:
        share = quantized_share(graph_from_file(ctx.path(result.bundle, MODEL_FILE)))
        asked = bool(result.metrics.get("layers_in_float"))
        if share < LEAST_SHARE and not (asked and share > 0):
            raise BuildFailed(
                f"Only {share:.0%} of the graph's weights are INT8 after quantization with {self.config.scheme}.",
                hint="fewer layers in float (revert, exclude)"
                if asked
                else "the model consists of operators that this scheme does not quantize; use another scheme",
            )

    @property
    def _runs_here(self) -> bool:
        """Whether ONNX Runtime's 8-bit kernels execute the scheme as its target would."""
        return self.config.scheme in CPU_SCHEMES

    def _made(self, source: Path, samples: Samples, inputs: Inputs, ctx: Context) -> _Made:
        if self.config.scheme == "weight-only":
            return _Made(graph=weight_only_from_float32(graph_from_file(source)), decisions=[], metrics={})
        scheme = CALIBRATED[self.config.scheme]
        builder = int8_builder(
            source, samples, scheme, self.config, scratch=ctx.scratch, seed=ctx.seed, reporter=ctx.reporter
        )
        decisions, metrics = list(builder.decisions), dict(builder.metrics)
        known = quantized_nodes(builder.build())
        for name in self.config.exclude:
            if name not in known:
                raise UserError(f"exclude names {name!r}, which no INT8 node has.{suggest(name, known)}")
        floats = self._in_float(builder, known, inputs, ctx, decisions, metrics)
        metrics["layers_in_float"] = len(floats)
        return _Made(graph=builder.build(floats), decisions=decisions, metrics=metrics)

    def _in_float(
        self,
        builder: Int8Builder,
        known: tuple[str, ...],
        inputs: Inputs,
        ctx: Context,
        decisions: list[str],
        metrics: dict[str, Json],
    ) -> tuple[str, ...]:
        """Which nodes stay in float; adds what is to be said. Sensitivity is measured only where it is needed."""
        config, floats = self.config, self.config.exclude
        order: tuple[str, ...] = ()  # of the layers that are in INT8 still
        ranked = False
        if config.revert >= len(known) - len(floats) > 0:
            raise BuildFailed(
                f"{config.revert} layers are to stay in float, and the graph has {len(known) - len(floats)} that "
                "INT8 could take: it would be FP32.",
                hint="lower revert (compress: --mixed)",
            )
        if config.revert:
            order, ranked = _order(builder, config, inputs, ctx, known), True
            floats, order = (*floats, *order[: config.revert]), order[config.revert :]
            decisions.append(f"In float, the most sensitive first: {', '.join(floats[len(config.exclude) :])}.")
        if config.max_drop is None:
            return floats
        limit = self._limit(builder.judge, config.max_drop, inputs, ctx)
        if limit.out_of_reach is not None:
            decisions.append(limit.out_of_reach)
            metrics["limit_held"] = False
            return floats
        tried = 0

        def score_of(count: int) -> Score:
            nonlocal order, ranked, tried
            if count and not ranked:
                order, ranked = _order(builder, config, inputs, ctx, known), True
            tried += 1
            ctx.reporter.progress("precision trials", tried, config.max_trials)
            return limit.score(builder.build((*floats, *order[:count])))

        most = int((len(known) - len(floats)) * LARGEST_SHARE)
        found = fallback(most, score_of, limit=limit, max_trials=config.max_trials)
        reverted = order[: found.count]
        decisions.append(found.decision(reverted))
        metrics["limit_held"] = found.held
        return (*floats, *reverted)

    def _limit(self, samples: Judge, max_drop: float, inputs: Inputs, ctx: Context) -> Limit:
        model, teacher = inputs.one("model"), inputs.maybe("teacher")
        right, judge, images = ctx.path(teacher or model, MODEL_FILE), samples, "calibration samples"
        if self.config.judged_on == "select":
            split, images = ctx.resource("data", Dataset).select, "images of the select split"
            judge = select_judge(right, split, model.model.preprocessing, ctx.scratch)
        elif teacher is not None:
            judge = Judge(right, samples.images, samples.labels, ctx.scratch)
        twin = None if teacher is None else judge.score(graph_from_file(ctx.path(model, MODEL_FILE)))
        return Limit(judge=judge, images=images, max_drop=max_drop, drop_type=self.config.drop_type, twin=twin)

    def _decisions(self, data: ModelBundle | None, samples: Samples, source: Path, made: Path) -> tuple[str, ...]:
        said, before_mib, after_mib = [], size_mib(source), size_mib(made)
        scheme = self.config.scheme
        if scheme != "weight-only":
            full = graph_from_file(source)
            if is_linear(full, self.config.placement):
                why = "as was asked for" if self.config.placement == "linear" else f"by its family, {family_of(full)}"
                said.append(
                    f"Only layers with weights are INT8 ({why}): residual sums, softmax, normalisation and the "
                    "products of attention stay FP32."
                )
            elif has_attention(full):
                said.append("The graph has attention: what its outliers would spoil (residual sums) stays FP32.")
        if data is None:
            said.append(
                f"The loss was measured on {len(samples.images)} images of random noise: no samples were given."
            )
        elif samples.origin == "synthetic":
            said.append("Ranges and loss come from synthetic images.")
        if scheme == "tensorrt-s8":
            said.append("The weights stay FP32 in the ONNX file; TensorRT makes them INT8 when it builds the engine.")
        elif after_mib >= before_mib:
            said.append(
                f"The INT8 file is not smaller ({significant(after_mib)} against {significant(before_mib)} MiB): the "
                "model is so small that scales and nodes outweigh the weights."
            )
        return tuple(said)


def _keep_floats_(made: _Made) -> None:
    """Layers in float stay so in ONNX Runtime too, which otherwise rounds their weights by itself."""
    graph = normalised(made.graph)
    kept = keep_float_weights_(graph)
    if kept:
        made.graph = graph
        made.decisions.append(
            f"Layers in float that read 8-bit values do so with the scale repeated per channel ({len(kept)}): "
            "otherwise ONNX Runtime would round their weights to 8 bits, with one scale for the whole tensor."
        )


def _given(config: QuantizeConfig) -> list[str]:
    """Names of the fields that do not have their default; a recipe may well spell defaults out."""
    return [name for name, field in type(config).model_fields.items() if getattr(config, name) != field.default]


def _order(
    builder: Int8Builder, config: QuantizeConfig, inputs: Inputs, ctx: Context, known: tuple[str, ...]
) -> tuple[str, ...]:
    """Layers that are not excluded, by sensitivity: from the table that is connected or from one made now.

    Raises:
        UserError: The table is of another graph or scheme, or was made with other options.
    """
    scheme, options = config.scheme, options_of(config)
    bundle = inputs.maybe("sensitivity")
    if bundle is None:
        report = sensitivity(
            builder.form,
            builder.calibration.ranges,
            builder.judge,
            scheme=scheme,
            options=options,
            calib_method=builder.calibration.method,
            refined=builder.refined,
            part=builder.parts.compared,
            on_layer=lambda done, total: ctx.reporter.progress("layer sensitivity", done, total),
        )
    else:
        report = report_from_bundle(bundle, SensitivityReport, ctx, "sensitivity")
        if report.scheme != scheme or {entry.layer for entry in report.layers} != set(known):
            raise UserError(
                f"The sensitivity table is of another graph or scheme ({report.scheme}, {len(report.layers)} layers; "
                f"expected {scheme}, {len(known)} layers).",
                hint="connect the sensitivity node of the same model, with the same scheme",
            )
        others = [name for name in PtqConfig.model_fields if getattr(report.options, name) != getattr(options, name)]
        if others:
            made = ", ".join(f"{name}={getattr(report.options, name)}" for name in others)
            wanted = ", ".join(f"{name}={getattr(options, name)}" for name in others)
            raise UserError(
                f"The sensitivity table was made with {made}, but this graph is made with {wanted}.",
                hint="give both nodes the same options",
            )
    return tuple(name for name in report.worst(len(report.layers)) if name not in config.exclude)


def measured_loss(
    source: Path, quantized: Path, images: FloatArray, *, kernels: bool
) -> tuple[dict[str, Json], tuple[str, ...]]:
    """Metrics of a quantized graph against its FP32 twin, and a decision when this CPU's kernels lose much more.

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
        f"ONNX Runtime on this CPU loses more than rounding does: SQNR falls from {exact.sqnr_db:.1f} dB with exact "
        f"rounding to {here.sqnr_db:.1f} dB. On x86 without VNNI 8-bit sums saturate, which reduce_range, where it is "
        "off, avoids.",
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


def _samples(model: ModelBundle, data: ModelBundle | None, ctx: Context) -> Samples:
    preprocessing = model.model.preprocessing
    if data is not None:
        return samples_from_bundle(data, ctx.blobs, preprocessing=preprocessing)
    noise = random_images(preprocessing.input_shape, samples=NOISE_SAMPLES, seed=ctx.seed)
    return Samples(noise, None, "synthetic")
