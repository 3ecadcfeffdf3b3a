"""The stage of quantized distillation: the student comes out with weights on a grid, and packed to their bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import Field, JsonValue
from torch import nn

from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.digest import Json
from edgekd.core.stage import Context, Inputs, Stage, StageResult
from edgekd.data.dataset import Dataset
from edgekd.errors import BuildFailed
from edgekd.nn.build import module_from_bundle
from edgekd.nn.reparam import FUSE, fusable_blocks, reparameterised
from edgekd.quant.bucket import Bits, Granularity, Quantized, WeightGrid
from edgekd.quant.codes import CODES_FILE, code_counts, huffman_bits, packed_bytes, read_codes, write_codes
from edgekd.quant.quantized_distillation import QuantizedWeights, outer_layers
from edgekd.train.config import TrainConfig
from edgekd.train.fit import distil_
from edgekd.train.student import (
    STUDENT_PORTS,
    check_student_and_teacher,
    networks,
    trained_bundle,
    training_metrics,
)
from edgekd.train.teachers import stored_answers

_MIB = 1 << 20


class QuantizedDistillConfig(TrainConfig):
    """A training, and the grid of its weights.

    Attributes:
        bits: Per weight.
        granularity: `channel`: symmetric grids that integer kernels take; `bucket`: the paper's, for storage only.
        bucket_size: Values per bucket; the channel grid has no use for it.
        exclude: Paths of layers that stay float32; None leaves out the first layer that runs and the classifier.
    """

    bits: Bits = 8
    granularity: Granularity = "channel"
    bucket_size: int = Field(default=256, ge=2)
    exclude: tuple[str, ...] | None = None

    @property
    def grid(self) -> WeightGrid:
        """The grid of the weights."""
        return WeightGrid(bits=self.bits, granularity=self.granularity, bucket_size=self.bucket_size)


class QuantizedDistillStage(Stage[QuantizedDistillConfig]):
    """The student of the port `student`, trained at quantized weights.

    The bundle's `weights.safetensors` holds the weights on the grid as float32, its `codes.safetensors` the same
    numbers packed; its tags say `weights_bits` and `weights_granularity`. A student with branches to fuse is fused
    first (`edgekd.nn.reparam`): sums of weights on a grid would not lie on it.
    """

    name = "quantized-distill"
    version = 2
    Config = QuantizedDistillConfig
    ports: ClassVar = STUDENT_PORTS
    produces = BundleKind.TORCH
    reads = frozenset({"data"})
    never_before = frozenset({"distill", "prune"})  # both would leave the grid
    distributed = True

    def requires(self, inputs: Inputs, ctx: Context) -> None:
        check_student_and_teacher(inputs, ctx, self.config)

    def run(self, inputs: Inputs, ctx: Context) -> StageResult:
        with networks(inputs, ctx) as (student, teacher, said):
            result = self._trained(student, teacher, inputs, ctx)
        return replace(result, decisions=(*result.decisions, *said))

    def _trained(self, branches: nn.Module, teacher: nn.Module | None, inputs: Inputs, ctx: Context) -> StageResult:
        config, before = self.config, inputs.one("student")
        student = reparameterised(branches)
        if student is not branches:
            before = before.model_copy(update={"recipe": before.model.with_edit(FUSE)})
        preprocessing = before.model.preprocessing
        exclude = outer_layers(student, preprocessing.input_shape) if config.exclude is None else config.exclude
        weights = QuantizedWeights(config.grid, exclude)
        data = ctx.resource("data", Dataset)
        answers = stored_answers(inputs, ctx, config)
        report = distil_(student, teacher, data, preprocessing, config, ctx, projection=weights, answers=answers)
        if not report.leads:
            return StageResult(bundle=before)  # only the leader's result counts, and only it writes files
        tags: dict[str, JsonValue] = {"weights_bits": config.bits, "weights_granularity": config.granularity}
        coded = weights.codes()
        bundle = _with_codes(trained_bundle(student, before, ctx, tags), student, coded, config.grid, ctx)
        metrics = training_metrics(student, teacher, bundle, report, ctx) | _sizes(bundle, student, coded, ctx)
        said = (
            f"Weights of {len(coded)} layers have {config.bits} bits per {config.granularity}; "
            f"{', '.join(exclude) or 'no layer'} stayed float32."
        )
        if fused := len(fusable_blocks(branches)):
            said += f" The branches of {fused} blocks became one convolution each before that."
        return StageResult(bundle=bundle, metrics=metrics, decisions=(*report.decisions, said))

    def ensures(self, inputs: Inputs, result: StageResult, ctx: Context) -> None:
        state = module_from_bundle(result.bundle, ctx.blobs).state_dict()
        packed = read_codes(ctx.path(result.bundle, CODES_FILE))
        off = [name for name in state if not torch.equal(state[name], packed[name])]
        if off:
            raise BuildFailed(f"Packed weights differ from those of the model in {', '.join(off[:8])}.")


def _with_codes(
    bundle: ModelBundle, student: nn.Module, coded: Mapping[str, Quantized], grid: WeightGrid, ctx: Context
) -> ModelBundle:
    path = ctx.scratch / CODES_FILE
    write_codes(path, student.state_dict(), coded, grid)
    files = {**bundle.files, CODES_FILE: ctx.blobs.add(path)}
    path.unlink()
    return bundle.model_copy(update={"files": files})


def _sizes(bundle: ModelBundle, student: nn.Module, coded: Mapping[str, Quantized], ctx: Context) -> dict[str, Json]:
    """Size of the packed file, and what Huffman codes would make of it, by formula."""
    full = sum(x.numel() for name, x in student.state_dict().items() if name not in coded)
    huffman = packed_bytes(full=full, coded=coded.values(), bits=huffman_bits(code_counts(coded.values())))
    packed = ctx.path(bundle, CODES_FILE).stat().st_size
    return {"size_mib_packed": packed / _MIB, "size_mib_huffman": huffman / _MIB}
