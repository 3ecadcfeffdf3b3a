"""The work that quantizing and measuring sensitivity share: equalise, calibrate, refine, each step judged by figures.

It ends with something that builds INT8 graphs of one FP32 graph, any layers left in float, without the samples. Which
layers, and what becomes of the graph, is decided by the stages.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import onnx

from edgekd.core.bundle import ModelBundle
from edgekd.core.digest import Json
from edgekd.core.events import Reporter
from edgekd.core.stage import StageConfig
from edgekd.errors import BuildFailed, UserError
from edgekd.quant.calibrators import Calibrated, Parts, calibrated, parts_of
from edgekd.quant.equalize import equalized, peaks_of
from edgekd.quant.form import Int8Form
from edgekd.quant.nncf import openvino_form
from edgekd.quant.observe import MomentKind, Observations, observe, require_samples
from edgekd.quant.onnxruntime import cpu_form, prepared_graph, tensorrt_form
from edgekd.quant.placement import Placement, is_linear
from edgekd.quant.ranges import CalibMethod
from edgekd.quant.reconstruct import Biases, Refined, apply_refined_, refined_layers
from edgekd.quant.trial import Judge
from edgekd.runtimes.compare import batches
from edgekd.runtimes.samples import Samples
from edgekd.runtimes.session import FloatArray

CalibratedScheme = Literal["ort-u8s8", "openvino", "tensorrt-s8"]
CPU_SCHEMES = ("ort-u8s8", "openvino")
"""Whose graphs ONNX Runtime's 8-bit kernels execute as their target would."""
EQUAL_DB = 50.0
"""Signal to noise below which an equalised graph does not compute the same; INT8 is at 30 dB and below."""


class PtqConfig(StageConfig):
    """How an FP32 graph becomes an INT8 one.

    Attributes:
        calib_method: How activation ranges are found; `auto` compares the methods on held-out samples.
        reduce_range: For `ort-u8s8` and `openvino`: weights use 7 bits. x86 CPUs without VNNI add pairs of 8-bit
            products in 16 bits and saturate, which costs far more than the bit; on CPUs with VNNI, and on ARM, False
            is a little more accurate.
        weight_scales: One per output channel of a weight (`channel`), or one for all of it (`tensor`), as some
            accelerators want it; that loses much more, and equalising wins most of it back.
        equalize: Gives neighbouring layers like ranges first: see `edgekd.quant.equalize`.
        bias_correction: Moves the mean error of each layer into its bias; for `openvino` NNCF does so itself.
        placement: Which nodes are quantized: `linear`, layers with weights alone; `all`, what the scheme's quantizer
            knows; `auto`, by family: see `edgekd.quant.placement`.
        rounding: `nearest`, or up or down so that each layer's output changes least (`reconstruct`): see
            `edgekd.quant.reconstruct`.
    """

    calib_method: CalibMethod = "auto"
    reduce_range: bool = True
    weight_scales: Literal["channel", "tensor"] = "channel"
    equalize: bool = False
    bias_correction: bool = True
    placement: Placement = "auto"
    rounding: Literal["nearest", "reconstruct"] = "nearest"


@dataclass(frozen=True, kw_only=True)
class Int8Builder:
    """Builds INT8 graphs of one FP32 graph.

    Attributes:
        form: Places quantizers.
        calibration: Ranges, and how they were chosen.
        refined: Better weights and biases by layer; empty without.
        judge: Knows all samples.
        parts: Which ranges were found on, and which figures are taken on.
        decisions: Sentences.
        metrics: For the report.
    """

    form: Int8Form
    calibration: Calibrated
    refined: dict[str, Refined]
    judge: Judge
    parts: Parts
    decisions: tuple[str, ...]
    metrics: dict[str, Json]

    def build(self, exclude: Collection[str] = ()) -> onnx.ModelProto:
        """The INT8 graph with some nodes in float."""
        made = self.form.build(self.calibration.ranges, exclude)
        apply_refined_(made, self.refined)
        return made


def has_attention(model: onnx.ModelProto) -> bool:
    """Whether a classifier's graph has attention: its logits are unnormalised, so a Softmax in it is nothing else."""
    return any(node.op_type == "Softmax" for node in model.graph.node)


def int8_builder(
    source: Path,
    samples: Samples,
    scheme: CalibratedScheme,
    config: PtqConfig,
    *,
    scratch: Path,
    seed: int,
    reporter: Reporter,
) -> Int8Builder:
    """Everything up to the choice of layers.

    Args:
        source: The FP32 graph.
        samples: To calibrate, and to compare on.
        scheme: Form of INT8.
        config: See there.
        scratch: Holds files meanwhile.
        seed: Of the positions that moments are taken at.
        reporter: Hears of progress.

    Raises:
        UserError: No samples, or values of the graph that are not finite.
        BuildFailed: A quantizer failed, all values are constant, or equalising changed what the network computes.
    """
    require_samples(samples.images)
    compares = config.calib_method == "auto" or config.equalize or _moments(scheme, config) != "none"
    parts = parts_of(len(samples.images), hold_out=compares)
    judge = Judge(source, samples.images, samples.labels, scratch)
    full = prepared_graph(source, scratch)
    builder_of = partial(_builder, judge=judge, parts=parts, scheme=scheme, config=config, seed=seed, reporter=reporter)
    if not config.equalize:
        return builder_of(full)
    said: list[str] = []
    equal = _equalized(full, judge, samples.images[parts.calibrated], said)
    return _nearer(builder_of(full), None if equal is None else builder_of(equal), said)


def _moments(scheme: CalibratedScheme, config: PtqConfig) -> MomentKind:
    """What rounding and biases need to know of the inputs of layers."""
    if config.rounding == "reconstruct":
        return "full"
    return "mean" if config.bias_correction and scheme != "openvino" else "none"


def _builder(
    full: onnx.ModelProto,
    *,
    judge: Judge,
    parts: Parts,
    scheme: CalibratedScheme,
    config: PtqConfig,
    seed: int,
    reporter: Reporter,
) -> Int8Builder:
    """Calibrated and refined."""
    images, moments = judge.images[parts.calibrated], _moments(scheme, config)
    progress = partial(reporter.progress, "calibrate")
    form = _form(full, images, scheme, config)
    seen = observe(form.full, images, moments=moments, seed=seed, on_images=progress)
    found = calibrated(form, seen, config.calib_method, judge, parts)
    builder = Int8Builder(
        form=form,
        calibration=found,
        refined={},
        judge=judge,
        parts=parts,
        decisions=found.decisions,
        metrics={"calib_method": found.method},
    )
    return _refined(builder, seen, scheme, config, reporter) if moments != "none" else builder


def _nearer(plain: Int8Builder, equal: Int8Builder | None, said: list[str]) -> Int8Builder:
    """The builder whose INT8 graph comes nearer to FP32: equalising can also widen the ranges of activations."""
    if equal is None:
        return replace(plain, decisions=(*said, *plain.decisions))
    part = plain.parts.compared
    before, after = (builder.judge.score(builder.build(), part) for builder in (plain, equal))
    figures = f"INT8 has {before.said} without equalising and {after.said} with it, on {plain.parts.where}"
    if after.sqnr_db < before.sqnr_db:
        return replace(plain, decisions=(*said, f"{figures}: it is not better, and was left out.", *plain.decisions))
    return replace(equal, decisions=(*said, f"{figures}.", *equal.decisions))


def _form(full: onnx.ModelProto, images: FloatArray, scheme: CalibratedScheme, config: PtqConfig) -> Int8Form:
    attention, per_channel = has_attention(full), config.weight_scales == "channel"
    linear, reduce_range = is_linear(full, config.placement), config.reduce_range
    if scheme == "tensorrt-s8":
        return tensorrt_form(full, attention=attention, linear=linear, per_channel=per_channel)
    if scheme == "ort-u8s8":
        return cpu_form(full, reduce_range=reduce_range, attention=attention, linear=linear, per_channel=per_channel)
    name = full.graph.input[0].name
    feeds = [{name: image} for image in batches(images, 1)]
    return openvino_form(
        full,
        feeds,
        reduce_range=reduce_range,
        attention=attention,
        linear=linear,
        per_channel=per_channel,
        corrects=config.bias_correction,
    )


def _refined(
    builder: Int8Builder, seen: Observations, scheme: CalibratedScheme, config: PtqConfig, reporter: Reporter
) -> Int8Builder:
    """With better weights and biases, if they are better: judged on held-out samples where there are enough."""
    before = builder.build()
    corrects = config.bias_correction and scheme != "openvino"
    biases: Biases = "correct" if corrects else "carry" if scheme == "openvino" else "leave"
    layers = refined_layers(
        builder.form.full,
        before,
        seen,
        rounding=config.rounding == "reconstruct",
        biases=biases,
        on_layer=lambda done, total: reporter.progress("refine layers", done, total),
    )
    better = replace(builder, refined=layers)
    part = builder.parts.compared
    plain, refined = builder.judge.score(before, part), builder.judge.score(better.build(), part)
    used = {"rounding by reconstruction": config.rounding == "reconstruct", "bias correction": corrects}
    what = " and ".join(name for name, wanted in used.items() if wanted)
    said = [
        f"{what[:1].upper()}{what[1:]} of {len(layers)} layers: {plain.said} before, {refined.said} after, on "
        f"{builder.parts.where}."
    ]
    unmoved = [layer for layer, better in layers.items() if better.shift is None]
    if corrects and unmoved:
        said.append(f"Without a bias that could take over the mean error: {', '.join(unmoved)}.")
    if seen.without_moments:
        said.append(f"Left as they were, by form or because they share constants: {', '.join(seen.without_moments)}.")
    large = [layer for layer in layers if seen.moments[layer].gram is None]
    if config.rounding == "reconstruct" and large:
        said.append(f"Too large to be reconstructed, rounded to the nearest: {', '.join(large)}.")
    if refined.sqnr_db < plain.sqnr_db:
        return replace(builder, decisions=(*builder.decisions, *said, "It is not better, and was left out."))
    return replace(better, decisions=(*builder.decisions, *said))


def _equalized(full: onnx.ModelProto, judge: Judge, images: FloatArray, said: list[str]) -> onnx.ModelProto | None:
    """The equalised graph, proven to compute the same on all samples; None where nothing can be equalised."""
    peaks = peaks_of(full, images)
    made, pairs = equalized(full, peaks)
    if not pairs:
        said.append("Nothing is equalised: no two layers have only an activation function between them.")
        return None
    same = judge.compare(full, made)
    if same.sqnr_db < EQUAL_DB and peaks:
        said.append(
            f"Layers are not equalised across {len(peaks)} caps (ReLU6): channels that stay clear of theirs on "
            f"{len(images)} samples do not on others, and the FP32 logits then agree to {same.sqnr_db:.0f} dB only."
        )
        pairs -= len(peaks)
        if not pairs:
            return None
        made, _ = equalized(full, {name: np.ones_like(peak) for name, peak in peaks.items()})
        same = judge.compare(full, made)
    if same.sqnr_db < EQUAL_DB:
        raise BuildFailed(
            f"Equalising {pairs} pairs of layers changed the FP32 logits: {same.sqnr_db:.0f} dB, expected at least "
            f"{EQUAL_DB:.0f} dB.",
            hint="leave equalize off for this model",
        )
    said.append(f"{pairs} pairs of layers were equalised; the FP32 logits stay the same to {same.sqnr_db:.0f} dB.")
    return made


def options_of(config: PtqConfig) -> PtqConfig:
    """What a config of a stage says of calibration alone, to compare with another's."""
    return PtqConfig.parse({name: getattr(config, name) for name in PtqConfig.model_fields}, "calibration options")


def require_fp32(model: ModelBundle, stage: str) -> None:
    """Refuses what is quantized or halved already.

    Raises:
        UserError: The bundle is not FP32.
    """
    precision = model.tags.get("precision")
    if precision != "fp32":
        raise UserError(f"The {stage} stage takes an FP32 graph, but its input is {precision}.")
