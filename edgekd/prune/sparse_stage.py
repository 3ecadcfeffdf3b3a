"""The stage of N:M sparsity: the student trains on with a mask, and keeps zeros where the pattern wants them."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import JsonValue
from torch import nn

from edgekd.core.bundle import BundleKind
from edgekd.core.stage import Context, Inputs, Stage, StageResult
from edgekd.core.text import percent
from edgekd.errors import BuildFailed
from edgekd.nn.build import module_from_bundle
from edgekd.nn.count import layer_costs
from edgekd.nn.reparam import fusable_blocks
from edgekd.prune.sparsity import SparseWeights, follows_pattern
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

WHO_USES_IT = (
    "Zeros alone make nothing faster. TensorRT may choose kernels for 2:4 on GPUs since Ampere, when its builder is "
    "told to; ONNX Runtime and OpenVINO compute these layers densely on CPUs. Only a profile of the engine says "
    "whether it paid."
)


class SparseDistillConfig(TrainConfig):
    """A training, and the pattern of its weights.

    Attributes:
        pattern: At most so many of so many neighbouring input channels; the one that hardware takes.
        exclude: Paths of layers that stay dense.
    """

    pattern: Literal["2:4"] = "2:4"
    exclude: tuple[str, ...] = ()

    @property
    def weights(self) -> SparseWeights:
        """The projection of this config, not yet bound."""
        n, m = (int(number) for number in self.pattern.split(":"))
        return SparseWeights(n, m, self.exclude)


class SparseDistillStage(Stage[SparseDistillConfig]):
    """The student of the port `student`, masked by magnitude and trained on with the mask.

    The bundle's shapes are those of the student; its tags say `sparsity`, and `sparse_layers` by path. A student with
    branches to fuse is fused first (`edgekd.nn.reparam`): a sum of sparse kernels is not sparse.
    """

    name = "sparse-distill"
    version = 3
    Config = SparseDistillConfig
    ports: ClassVar = STUDENT_PORTS
    produces = BundleKind.TORCH
    reads = frozenset({"data"})
    # All of them would fill the zeros, or move them to a level near zero.
    never_before = frozenset({"distill", "prune", "quantized-distill", "differentiable-quantize", "qat"})
    distributed = True

    def requires(self, inputs: Inputs, ctx: Context) -> None:
        check_student_and_teacher(inputs, ctx, self.config)

    def run(self, inputs: Inputs, ctx: Context) -> StageResult:
        config, before = self.config, inputs.one("student")
        branches, teacher = networks(inputs, ctx)
        student, before = deployed_form(branches, before)
        preprocessing, weights = before.model.preprocessing, config.weights
        data, answers = training_data(inputs, ctx), stored_answers(inputs, ctx, config)
        report = distil_(student, teacher, data, preprocessing, config, ctx, projection=weights, answers=answers)
        if not report.leads:
            return StageResult(bundle=before)  # only the leader's result counts, and only it writes files
        tags: dict[str, JsonValue] = {"sparsity": config.pattern, "sparse_layers": list(weights.names)}
        bundle = trained_bundle(student, before, ctx, tags)
        shares = _shares(student, weights, preprocessing.input_shape)
        stayed = "; ".join(f"{path} ({why})" for path, why in weights.stayed.items())
        said = (
            f"{len(weights.names)} layers with {percent(shares['sparse_macs_share'])} of the multiply-accumulates "
            f"follow {config.pattern}; dense stayed: {stayed or 'none'}."
        )
        if fused := len(fusable_blocks(branches)):
            said += f" The branches of {fused} blocks became one convolution each before that."
        return StageResult(
            bundle=bundle,
            metrics=training_metrics(student, teacher, bundle, report, ctx) | shares,
            decisions=(*report.decisions, *teacher_decisions(inputs), said, WHO_USES_IT),
        )

    def ensures(self, inputs: Inputs, result: StageResult, ctx: Context) -> None:
        module, weights = module_from_bundle(result.bundle, ctx.blobs), self.config.weights
        weights.bind(module)
        off = [path for path in weights.names if not follows_pattern(_weight(module, path), weights.n, weights.m)]
        if off:
            raise BuildFailed(f"Weights do not follow {self.config.pattern} after the training: {', '.join(off[:8])}.")


def _weight(module: nn.Module, path: str) -> torch.Tensor:
    return module.get_parameter(f"{path}.weight")


def _shares(module: nn.Module, weights: SparseWeights, shape: tuple[int, int, int]) -> dict[str, float]:
    """Share of the weights that are zero, and of the multiply-accumulates that stand in sparse layers."""
    costs = layer_costs(module, shape)
    zeros = sum(int((parameter == 0).sum()) for parameter in module.parameters())
    inside = sum(cost.macs for cost in costs if cost.name in weights.names)
    return {
        "zero_weights_share": zeros / sum(parameter.numel() for parameter in module.parameters()),
        "sparse_macs_share": inside / max(1, sum(cost.macs for cost in costs)),
    }
