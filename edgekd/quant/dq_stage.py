"""The stage of differentiable quantization: a trained student whose weights move onto learned levels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field, JsonValue
from torch import Tensor, nn

from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.stage import Context, Inputs, Stage, StageResult
from edgekd.data.batches import epoch_order
from edgekd.data.dataset import UNLABELLED, Dataset
from edgekd.data.transform import preprocess
from edgekd.quant.bucket import Bits
from edgekd.quant.coded import require_equal_codes, sizes, with_codes
from edgekd.quant.differentiable_quantization import (
    Init,
    chosen_layers,
    freeze_levels_,
    gradient_norms,
    learn_levels_,
    shared_points,
)
from edgekd.quant.quantized_distillation import left_float, outer_layers
from edgekd.train.config import TrainConfig
from edgekd.train.fit import distil_
from edgekd.train.pool import training_data
from edgekd.train.student import (
    STUDENT_PORTS,
    check_student_and_teacher,
    deployed_form,
    networks,
    stored_answers,
    trained_bundle,
    training_metrics,
)
from edgekd.train.teachers import teacher_decisions

GRADIENT_BATCHES = 5


class DifferentiableQuantizeConfig(TrainConfig):
    """A short training of levels.

    Attributes:
        epochs: The authors take 10 at 4 bits and 20 at 2.
        lr: In the unit that `edgekd.quant.differentiable_quantization` explains.
        weight_decay: Levels are not weights: they do not decay, whatever this says.
        bits: Per weight; a tensor has 2^bits levels.
        bucket_size: Values per bucket.
        init: Where levels begin: at the quantiles of the weights, or evenly spaced.
        redistribute: Shares half of all levels out by the norms of the weights' gradients, so that sensitive layers
            have more of them. Counts are then no powers of two, and an entropy code stores them best.
        exclude: Paths of layers that stay float32; None leaves out the first layer that runs and the classifier.
    """

    epochs: int = Field(default=10, ge=1)
    lr: float = Field(default=0.1, gt=0)
    bits: Bits = 4
    bucket_size: int = Field(default=256, ge=2)
    init: Init = "quantile"
    redistribute: bool = False
    exclude: tuple[str, ...] | None = None


class DifferentiableQuantizeStage(Stage[DifferentiableQuantizeConfig]):
    """The student of the port `student` on learned levels; its teacher is itself in full precision, or the port's.

    The bundle's `weights.safetensors` holds the quantized weights as float32, its `codes.safetensors` the same numbers
    as codes, levels and buckets; its tags say `weights_bits` and `weights_granularity`.
    """

    name = "differentiable-quantize"
    version = 3
    Config = DifferentiableQuantizeConfig
    ports: ClassVar = STUDENT_PORTS
    produces = BundleKind.TORCH
    reads = frozenset({"data"})
    never_before = frozenset({"distill", "prune", "quantized-distill", "sparse-distill"})  # all would leave the levels
    distributed = True

    def requires(self, inputs: Inputs, ctx: Context) -> None:
        check_student_and_teacher(_with_teacher(inputs), ctx, self.config)

    def run(self, inputs: Inputs, ctx: Context) -> StageResult:
        config, data = self.config, training_data(inputs, ctx)
        branches, teacher = networks(_with_teacher(inputs), ctx)
        student, before = deployed_form(branches, inputs.one("student"))
        preprocessing = before.model.preprocessing
        exclude = outer_layers(student, preprocessing.input_shape) if config.exclude is None else config.exclude
        counts = self._counts(student, chosen_layers(student, exclude), before, data, ctx.seed)
        learned = learn_levels_(student, counts, bucket_size=config.bucket_size, init=config.init)
        answers = stored_answers(inputs, ctx, config)
        report = distil_(student, teacher, data, preprocessing, config, ctx, answers=answers)
        if not report.leads:
            return StageResult(bundle=before)  # only the leader's result counts, and only it writes files
        coded = freeze_levels_(student, learned)
        tags: dict[str, JsonValue] = {"weights_bits": config.bits, "weights_granularity": "levels"}
        bundle = with_codes(trained_bundle(student, before, ctx, tags), student, coded, ctx)
        few, most = min(counts.values()), max(counts.values())
        said = (
            f"Weights of {len(coded)} layers lie on {few if few == most else f'{few} to {most}'} learned levels each; "
            f"{', '.join(exclude) or 'no layer'} stayed float32.{left_float(student)}"
        )
        return StageResult(
            bundle=bundle,
            metrics=training_metrics(student, teacher, bundle, report, ctx) | sizes(bundle, student, coded, ctx),
            decisions=(*report.decisions, *teacher_decisions(inputs), said),
        )

    def ensures(self, inputs: Inputs, result: StageResult, ctx: Context) -> None:
        require_equal_codes(result.bundle, ctx)

    def _counts(
        self, student: nn.Module, paths: tuple[str, ...], bundle: ModelBundle, data: Dataset, seed: int
    ) -> dict[str, int]:
        """Number of levels by layer."""
        even = [2**self.config.bits] * len(paths)
        if not self.config.redistribute:
            return dict(zip(paths, even, strict=True))
        batches = _mixed_batches(student, bundle, data, self.config.batch_size, seed)
        norms = gradient_norms(student, paths, batches)
        return dict(zip(paths, shared_points(norms, even), strict=True))


def _with_teacher(inputs: Inputs) -> Inputs:
    """The student teaches itself where nobody else does, neither a teacher nor the stored logits of one."""
    if inputs.maybe("teacher") is not None or inputs.maybe("answers") is not None:
        return inputs
    return Inputs({**inputs.by_port, "teacher": [("teacher", inputs.one("student"))]})


def _mixed_batches(
    student: nn.Module, bundle: ModelBundle, data: Dataset, batch_size: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images and labels of the training split; where there is no label the student's own answer stands for it.

    In the order of an epoch: folders of images are stored class by class.
    """
    split, preprocessing = data.train, bundle.model.preprocessing
    order = epoch_order(len(split), seed, 0)[: GRADIENT_BATCHES * batch_size]
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        pixels = torch.from_numpy(preprocess(split.images(indices, preprocessing), preprocessing))
        labels = torch.from_numpy(np.full(len(indices), UNLABELLED) if split.labels is None else split.labels[indices])
        if (labels == UNLABELLED).any():
            with torch.no_grad():
                labels = torch.where(labels == UNLABELLED, student(pixels).argmax(1), labels)
        yield pixels, labels
