"""The stage of quantized distillation: the student comes out with weights on a grid, and packed to their bits."""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import Field, JsonValue, model_validator

from edgekd.core.bundle import BundleKind
from edgekd.core.stage import Context, Inputs, Stage, StageResult
from edgekd.nn.reparam import fusable_blocks
from edgekd.quant.bucket import Bits, Granularity, Rounding, WeightGrid
from edgekd.quant.coded import require_equal_codes, sizes, with_codes
from edgekd.quant.quantized_distillation import QuantizedWeights, left_float, outer_layers
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


class QuantizedDistillConfig(TrainConfig):
    """A training, and the grid of its weights.

    Attributes:
        bits: Per weight.
        granularity: `channel`: symmetric grids that integer kernels take; `bucket`: the paper's, for storage only.
        bucket_size: Values per bucket; the channel grid has no use for it.
        rounding: Of the weights that a step is taken at; `stochastic` is unbiased and noisier. What comes out is always
            rounded to the nearest level.
        reduce_range: At 8 bits per channel: the grid of INT8 with `reduce_range`, for x86 CPUs without VNNI.
        exclude: Paths of layers that stay float32; None leaves out the first layer that runs and the classifier.
    """

    bits: Bits = 8
    granularity: Granularity = "channel"
    bucket_size: int = Field(default=256, ge=2)
    rounding: Rounding = "nearest"
    reduce_range: bool = False
    exclude: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _has_a_grid(self) -> Self:
        assert self.grid
        return self

    @property
    def grid(self) -> WeightGrid:
        """The grid of the weights."""
        return WeightGrid(
            bits=self.bits,
            granularity=self.granularity,
            bucket_size=self.bucket_size,
            reduce_range=self.reduce_range,
        )


class QuantizedDistillStage(Stage[QuantizedDistillConfig]):
    """The student of the port `student`, trained at quantized weights.

    The bundle's `weights.safetensors` holds the weights on the grid as float32, its `codes.safetensors` the same
    numbers packed; its tags say `weights_bits` and `weights_granularity`. A student with branches to fuse is fused
    first (`edgekd.nn.reparam`): sums of weights on a grid would not lie on it.
    """

    name = "quantized-distill"
    version = 4
    Config = QuantizedDistillConfig
    ports: ClassVar = STUDENT_PORTS
    produces = BundleKind.TORCH
    reads = frozenset({"data"})
    never_before = frozenset({"distill", "prune", "sparse-distill", "differentiable-quantize"})  # all leave the grid
    distributed = True

    def requires(self, inputs: Inputs, ctx: Context) -> None:
        check_student_and_teacher(inputs, ctx, self.config)

    def run(self, inputs: Inputs, ctx: Context) -> StageResult:
        config, before = self.config, inputs.one("student")
        branches, teacher = networks(inputs, ctx)
        student, before = deployed_form(branches, before)
        preprocessing = before.model.preprocessing
        exclude = outer_layers(student, preprocessing.input_shape) if config.exclude is None else config.exclude
        weights = QuantizedWeights(config.grid, exclude, config.rounding)
        data = training_data(inputs, ctx)
        answers = stored_answers(inputs, ctx, config)
        report = distil_(student, teacher, data, preprocessing, config, ctx, projection=weights, answers=answers)
        if not report.leads:
            return StageResult(bundle=before)  # only the leader's result counts, and only it writes files
        tags: dict[str, JsonValue] = {"weights_bits": config.bits, "weights_granularity": config.granularity}
        coded = weights.codes()
        bundle = with_codes(trained_bundle(student, before, ctx, tags), student, coded, ctx)
        metrics = training_metrics(student, teacher, bundle, report, ctx) | sizes(bundle, student, coded, ctx)
        said = (
            f"Weights of {len(coded)} layers have {config.bits} bits per {config.granularity}; "
            f"{', '.join(exclude) or 'no layer'} stayed float32.{left_float(student)}"
        )
        if fused := len(fusable_blocks(branches)):
            said += f" The branches of {fused} blocks became one convolution each before that."
        return StageResult(
            bundle=bundle, metrics=metrics, decisions=(*report.decisions, *teacher_decisions(inputs), said)
        )

    def ensures(self, inputs: Inputs, result: StageResult, ctx: Context) -> None:
        require_equal_codes(result.bundle, ctx)
