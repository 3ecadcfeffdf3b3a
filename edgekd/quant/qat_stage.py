"""The stage of quantization-aware training: a calibrated INT8 graph in, the same graph with trained numbers out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import torch
from pydantic import Field
from torch import nn

from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.digest import Json
from edgekd.core.stage import Context, Inputs, Port, Stage, StageConfig, StageResult, port
from edgekd.core.text import percent, points
from edgekd.data.dataset import Dataset
from edgekd.data.transform import preprocess
from edgekd.errors import BuildFailed, UserError
from edgekd.nn.build import module_from_bundle
from edgekd.nn.onnx_module import OnnxModule
from edgekd.quant.averaged import FROZEN_SHARE
from edgekd.quant.ptq import CPU_SCHEMES
from edgekd.quant.ptq_stage import SATURATION_DB
from edgekd.quant.qat import QatNetwork, Ranges
from edgekd.quant.qat_check import require_as_trained
from edgekd.runtimes.compare import NEAR_DB, Comparison, compare_logits, logits_of
from edgekd.runtimes.onnx_file import MODEL_FILE, bundle_from_graph, graph_from_file, size_mib, write_graph
from edgekd.runtimes.onnxruntime import RUNTIME, emulated
from edgekd.runtimes.session import FloatArray
from edgekd.train.answers import Answers, answers_from_bundle, answers_spec
from edgekd.train.config import TrainConfig
from edgekd.train.evaluate_torch import module_accuracy, module_agreement
from edgekd.train.fit import FitReport, distil_
from edgekd.train.loss_plan import plan_loss
from edgekd.train.objective import OBJECTIVES, TAPPED, Objective, Signal
from edgekd.train.pool import POOL_PORT, adds_unlabelled, training_data
from edgekd.train.reconcile import check_same_classes, reconciled, reconciliation
from edgekd.train.student import teacher_metrics
from edgekd.train.teachers import check_teacher_may_learn
from edgekd.train.weighing import Weighing

PARITY_SAMPLES = 64
LEAST_SQNR_DB = 15.0
"""The deployed graph must give the training-time logits to this. Its numbers are known to be the same by then
(`edgekd.quant.qat_check`), so what is left are values on the border of two codes, and a forward pass that computes what
a graph does not. Where no value lies on a border both agree to 120 dB and more; each value that another order of
summation puts on the other side of its border costs a step, and the layers after it multiply those: 33 dB were seen on
EfficientNet-lite0 and 27 dB on ViT-tiny, with random weights and noise for images, the worst case. How many there are
is luck, so the parity of the graph before training is no yardstick."""
SHOWN = 5


class QatConfig(TrainConfig):
    """A short training at a small learning rate: the graph starts from calibrated ranges and trained weights.

    Attributes:
        epochs: A tenth of an ordinary training.
        lr: A hundredth of an ordinary training's; BatchNorm is folded, so nothing forgives large steps.
        weight_decay: 0 unless asked for: the weights are trained already.
        grad_clip: Largest norm of the gradient. Without BatchNorm one large step throws a trained graph away; with
            objectives of a large gradient, such as `dkd`, it did so at a tenth of this learning rate.
        ranges: `learned`: the step size of every quantizer is trained too (LSQ); `average`: those of activations follow
            the moving average of their extremes for the first half, and then stand still; `calibrated`: they stay, and
            only weights and biases adapt to them. On digits at 8 bits `learned` came nearest to the teacher, `average`
            close behind it, `calibrated` last, so the first is the default.
    """

    epochs: int = Field(default=6, ge=1)
    lr: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    grad_clip: float | None = Field(default=1.0, gt=0)
    ranges: Ranges = "learned"


@dataclass(frozen=True)
class _Scores:
    """Of a module on the `select` split; None where there are no labels, or no teacher."""

    accuracy: float | None
    agreement: float | None


class QatStage(Stage[QatConfig]):
    """INT8 ONNX to INT8 ONNX: trained with its quantizers in place, distilled from a teacher in floating point.

    The graph of the port `model` says what is quantized, how and where; this stage changes numbers only. Its twin
    without training is the input itself, so the two compare fairly, and a later choice can take either.

    Metrics, beside those of the training: `parity_*`, the written graph with exact rounding against the network as it
    was trained; for CPU schemes `parity_here_*`, ONNX Runtime's 8-bit kernels on this machine against exact rounding.
    """

    name: ClassVar[str] = "qat"
    version: ClassVar[int] = 5
    Config: ClassVar[type[StageConfig]] = QatConfig
    ports: ClassVar[Mapping[str, Port]] = {
        "model": port(BundleKind.ONNX),
        "teacher": port(BundleKind.TORCH, BundleKind.ONNX, optional=True),
        "answers": port(BundleKind.DATA, optional=True),
        **POOL_PORT,
    }
    produces: ClassVar[BundleKind] = BundleKind.ONNX
    reads: ClassVar[frozenset[str]] = frozenset({"data"})
    never_before: ClassVar[frozenset[str]] = frozenset({"prune", "distill", "quantize", "fp16"})
    distributed: ClassVar[bool] = True

    def requires(self, inputs: Inputs, ctx: Context) -> None:
        model, teacher = inputs.one("model"), inputs.maybe("teacher")
        if model.tags.get("precision") != "int8":
            raise UserError(
                f"The qat stage trains an INT8 graph, but its input is {model.tags.get('precision')}.",
                hint="connect a quantize node: it places the quantizers and finds their first ranges",
            )
        labelled = ctx.resource("data", Dataset).labelled
        taught = teacher is not None or inputs.maybe("answers") is not None
        partly = adds_unlabelled(inputs)
        objectives = plan_loss(self.config, teachers=int(taught), labelled=labelled, partly=partly).objectives()
        for objective in objectives:
            _check_usable(objective)
        check_teacher_may_learn(inputs, objectives)
        if teacher is not None:
            check_same_classes(model, teacher)
        if teacher is not None and teacher.model.preprocessing != model.model.preprocessing:
            raise UserError(
                "Student and teacher must see the same tensor, but their preprocessing differs: student "
                f"{model.model.preprocessing.plain()}, teacher {teacher.model.preprocessing.plain()}."
            )

    def run(self, inputs: Inputs, ctx: Context) -> StageResult:
        before, config = inputs.one("model"), self.config
        data, p = training_data(inputs, ctx), before.model.preprocessing
        steps = config.epochs * -(-len(data.train) // config.batch_size)
        network = QatNetwork(
            graph_from_file(ctx.path(before, MODEL_FILE)),
            config.ranges,
            followed_steps=round((1 - FROZEN_SHARE) * steps * config.accumulate),
        )
        teacher, teaching = _teacher(inputs, ctx), inputs.maybe("teacher")
        images = preprocess(data.select.images(range(min(PARITY_SAMPLES, len(data.select))), p), p)
        dead = network.constant_activations(torch.from_numpy(images))
        first = self._scores(network, teacher, data, before, ctx)
        began = _activation_steps(network)
        report = distil_(network, teacher, data, p, config, ctx, answers=_answers(inputs, ctx, config))
        if not report.leads:
            return StageResult(bundle=before)  # only the leader's result counts, and only it writes files
        path = ctx.scratch / MODEL_FILE
        write_graph(network.graph(), path, made_by="quantization-aware training")
        require_as_trained(network, graph_from_file(path), torch.from_numpy(images))
        parity, here, kernels = _parity(network, path, images, kernels=before.tags.get("scheme") in CPU_SCHEMES)
        last = self._scores(network, teacher, data, before, ctx)
        return StageResult(
            bundle=bundle_from_graph(path, carry=before, tags={"qat": True}, blobs=ctx.blobs),
            metrics={**_metrics(report, parity, first, last), **here, "size_mib": size_mib(path)},
            decisions=(
                *report.decisions,
                *(() if teaching is None else reconciliation(teaching.model, before.model)),
                self._said(network, began),
                *_widened(network.widened()),
                *kernels,
                *_compared(first, last),
                *_dead(dead, len(images)),
            ),
        )

    def ensures(self, inputs: Inputs, result: StageResult, ctx: Context) -> None:
        before, after = (
            graph_from_file(ctx.path(bundle, MODEL_FILE)).graph for bundle in (inputs.one("model"), result.bundle)
        )
        if list(before.node) != list(after.node):
            raise BuildFailed("Quantization-aware training changed nodes of the graph, and not numbers alone.")
        if _numbers(before) == _numbers(after):
            raise BuildFailed("The training changed no code of the graph.", hint="raise lr or epochs")

    def _scores(
        self, network: nn.Module, teacher: nn.Module | None, data: Dataset, model: ModelBundle, ctx: Context
    ) -> _Scores:
        p, split = model.model.preprocessing, data.select
        return _Scores(
            module_accuracy(network, split, p, ctx.execution) if data.labelled else None,
            None if teacher is None else module_agreement(network, teacher, split, p, ctx.execution),
        )

    def _said(self, network: QatNetwork, before: Mapping[str, float]) -> str:
        said = (
            f"Trained {len(network.weights)} weights and {len(network.activations)} activations behind the quantizers "
            "that calibration placed; zero points and what is not quantized stay as they were."
        )
        if self.config.ranges == "calibrated" or not before:
            return f"{said} The ranges are those of calibration."
        moved = [abs(now / before[name] - 1) for name, now in _activation_steps(network).items()]
        median = percent(float(np.median(moved)))
        how = "were learned" if self.config.ranges == "learned" else "followed their moving average"
        return f"{said} The ranges of activations {how} and moved by {median} in the median."


def _check_usable(objective: Objective[Any]) -> None:
    """A graph has no inner signals to compare, and its quantizers round small changes of the weights away."""
    inner = sorted(_inner(type(objective)))
    if inner:
        why = f"reads {' and '.join(inner)}, but qat trains a graph, which gives logits only."
    elif isinstance(objective, Weighing):
        why = "learns from small changes of the weights, and qat's quantizers round these away."
    else:
        return
    kinds = {name: OBJECTIVES.get(name) for name in OBJECTIVES}
    usable = [name for name, kind in kinds.items() if not _inner(kind) and not issubclass(kind, Weighing)]
    raise UserError(
        f"The objective {objective.name!r} {why}",
        hint=f"choose an objective that needs no more: {', '.join(usable)}",
    )


def _inner(kind: type[Objective[Any]]) -> frozenset[Signal]:
    return (kind.needs | kind.needs_of_teacher) & TAPPED


def _activation_steps(network: QatNetwork) -> dict[str, float]:
    return {name: float(network.constant(step).detach().abs()) for name, step in network.activations.items()}


def _teacher(inputs: Inputs, ctx: Context) -> nn.Module | None:
    teacher = inputs.maybe("teacher")
    if teacher is None:
        return None
    module: nn.Module
    if teacher.kind is BundleKind.TORCH:
        module = module_from_bundle(teacher, ctx.blobs)
    else:
        module = OnnxModule(graph_from_file(ctx.path(teacher, MODEL_FILE))).requires_grad_(False)
    return reconciled(module, teacher.model, inputs.one("model").model)


def _answers(inputs: Inputs, ctx: Context, config: TrainConfig) -> Answers | None:
    bundle = inputs.maybe("answers")
    if bundle is None:
        return None
    p, dataset = inputs.one("model").model.preprocessing, training_data(inputs, ctx)
    labels = inputs.one("model").model.labels
    spec = answers_spec(config, p, dataset, ctx.seed, inputs.maybe("teacher"), labels)
    return answers_from_bundle(bundle, spec, ctx.blobs)


def _parity(
    network: QatNetwork, path: Path, images: FloatArray, *, kernels: bool
) -> tuple[Comparison, dict[str, Json], tuple[str, ...]]:
    """How near the written graph, computed with exact rounding, is to the network as it was trained.

    With `kernels` also metrics of how near this CPU's 8-bit kernels come to exact rounding, and a decision where that
    is not near. A trained graph has no FP32 twin, against which the quantize stage measures both.
    """
    with torch.inference_mode():
        expected = network(torch.from_numpy(images)).numpy()
    with emulated(path) as session:
        exact = logits_of(session, images)
    found = compare_logits(expected, exact)
    if found.sqnr_db < LEAST_SQNR_DB:
        raise BuildFailed(
            f"The deployed graph gives other logits than the network that was trained: SQNR {found.sqnr_db:.1f} dB on "
            f"{found.n} images, where {LEAST_SQNR_DB:.0f} dB are asked for."
        )
    if not kernels:
        return found, {}, ()
    with RUNTIME.open(path) as session:
        here = compare_logits(exact, logits_of(session, images))
    metrics: dict[str, Json] = {"parity_here_sqnr_db": here.sqnr_db, "parity_here_agreement": here.agreement}
    if here.sqnr_db >= min(NEAR_DB, found.sqnr_db - SATURATION_DB):
        return found, metrics, ()
    return (
        found,
        metrics,
        (
            "ONNX Runtime's 8-bit kernels on this CPU give other logits than exact rounding: SQNR "
            f"{here.sqnr_db:.1f} dB. On x86 without VNNI 8-bit sums saturate, which reduce_range of the quantize node, "
            "where it is off, avoids.",
        ),
    )


def _metrics(report: FitReport, parity: Comparison, first: _Scores, last: _Scores) -> dict[str, Json]:
    found: dict[str, Json] = {
        "seconds": report.seconds,
        "images_per_s": report.images_per_s,
        "train_loss": report.loss,
        "train_accuracy": report.train_accuracy,
        "parity_sqnr_db": parity.sqnr_db,
        "parity_max_abs": parity.max_abs,
        "parity_agreement": parity.agreement,
        **teacher_metrics(report),
    }
    if last.accuracy is not None:
        found |= {"accuracy_select_before": first.accuracy, "accuracy_select": last.accuracy}
    if last.agreement is not None:
        found |= {"agreement_select_before": first.agreement, "agreement_select": last.agreement}
    return found


def _compared(first: _Scores, last: _Scores) -> tuple[str, ...]:
    """What the training bought on the `select` split, said as plainly when it bought nothing."""
    what, before, after = "Accuracy", first.accuracy, last.accuracy
    if after is None:
        what, before, after = "Agreement with the teacher", first.agreement, last.agreement
    if before is None or after is None:
        return ()
    said = f"{what} on the select split went from {percent(before)} to {percent(after)}"
    return (f"{said}." if after >= before else f"{said}: {points(before - after)} worse than without training.",)


def _widened(names: tuple[str, ...]) -> tuple[str, ...]:
    if not names:
        return ()
    return (
        f"Next to their bias these weights are nearly zero, and their steps are kept so wide that the bias fits into "
        f"32 bits: {_few(names)}.",
    )


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _dead(names: tuple[str, ...], images: int) -> tuple[str, ...]:
    if not names:
        return ()
    return (
        f"Constant on {images} images, so that nothing passes through them and their ranges mean nothing: "
        f"{_few(names)}. "
        "Either these layers are dead, or the calibration samples are unlike the images.",
    )


def _numbers(graph: onnx.GraphProto) -> list[bytes]:
    return [entry.SerializeToString(deterministic=True) for entry in graph.initializer]
