"""ReviewKD: each stage of the teacher is matched by the student's stage and all that lies behind it."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from edgekd.core.schema import Schema
from edgekd.distill.objectives.geometry import at_one_size, precise
from edgekd.errors import UserError
from edgekd.train.objective import LossWeights, Objective, Signal, Signals, SignalSpec, full_precision, present

_PYRAMID = (4, 2, 1)


class ReviewKDConfig(Schema):
    """Arguments of `reviewkd`.

    Attributes:
        stages: How many of the last stages are matched.
        width: Channels in which the student's stages are fused; None takes those of the teacher's widest stage. The
            authors' 512 costs more than a small student itself.
    """

    stages: int = Field(default=4, ge=1)
    width: int | None = Field(default=None, ge=1)


class ReviewKD(Objective[ReviewKDConfig]):
    """`sum_l HCL(fuse_l(F_s,l, fused_{l+1}), F_t,l)`, from the deepest stage to the shallowest.

    fuse mixes the student's stage and what was fused so far by an attention of two weights per pixel; HCL is the mean
    square at full, 4x4, 2x2 and 1x1 resolution, weighted 1, 1/2, 1/4, 1/8 over their sum. The fusing layers are
    training only. Stages are paired from the end; where their resolutions differ both maps are pooled to the smaller.

    Deviations: the maps are those behind each stage (the authors take the teacher's before its last activation), and
    the pooled embedding is not one stage more.
    """

    name = "reviewkd"
    Config = ReviewKDConfig
    needs: ClassVar = frozenset({Signal.STAGES})
    adapts = True
    t_squared = False
    default_weights = LossWeights(supervised=1.0, distill=1.0, warmup=20 / 240)
    formula = "sum_l HCL(fuse_l(F_s,l, fused_(l+1)), F_t,l), HCL = mean square over a pyramid of resolutions"
    source = "Chen, Liu, Zhao and Jia 2021, arXiv 2104.09044"

    def bind(self, student: SignalSpec, teacher: SignalSpec) -> None:
        if student.stages is None or teacher.stages is None:
            raise UserError("The objective 'reviewkd' needs the stages of both networks, and one of them has none.")
        count = min(self.config.stages, len(student.stages), len(teacher.stages))
        pairs = list(zip(student.stages[-count:], teacher.stages[-count:], strict=True))
        width = self.config.width or max(of_teacher[0] for _, of_teacher in pairs)
        self.fusions = nn.ModuleList(
            Fusion(of_student[0], width, of_teacher[0], first=number == count - 1)
            for number, (of_student, of_teacher) in enumerate(pairs)
        )

    def forward(self, student: Signals, teacher: Signals, labels: Tensor | None) -> Tensor:
        count = len(self.fusions)
        ours, theirs = present(student.stages, Signal.STAGES)[-count:], present(teacher.stages, Signal.STAGES)[-count:]
        fused: Tensor | None = None
        loss = student.logits.new_zeros(()).float()
        for fusion, f_s, f_t in reversed(list(zip(self.fusions, ours, theirs, strict=True))):
            answer, fused = fusion(full_precision(f_s), fused)
            loss = loss + pyramid_distance(answer, f_t)
        return loss


class Fusion(nn.Module):
    """From one of the student's stages and what lies behind it: a map like the teacher's, and what is fused so far."""

    def __init__(self, channels: int, width: int, out: int, *, first: bool) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width))
        self.attention = None if first else nn.Conv2d(2 * width, 2, 1)
        self.leave = nn.Sequential(nn.Conv2d(width, out, 3, padding=1, bias=False), nn.BatchNorm2d(out))

    def forward(self, stage: Tensor, behind: Tensor | None) -> tuple[Tensor, Tensor]:
        x: Tensor = self.enter(stage)
        if self.attention is not None and behind is not None:
            behind = F.interpolate(behind, size=x.shape[2:], mode="nearest")
            weights = torch.sigmoid(self.attention(torch.cat([x, behind], dim=1)))
            x = x * weights[:, :1] + behind * weights[:, 1:]
        return self.leave(x), x


@precise
def pyramid_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Scalar: mean square of (N, C, H, W) maps at several resolutions, the finer ones weighted more."""
    f_s, f_t = at_one_size(student, teacher)
    loss, weight, total = F.mse_loss(f_s, f_t), 1.0, 1.0
    for size in _PYRAMID:
        if size >= min(f_s.shape[2:]):
            continue
        weight /= 2
        total += weight
        loss = loss + weight * F.mse_loss(F.adaptive_avg_pool2d(f_s, size), F.adaptive_avg_pool2d(f_t, size))
    return loss / total
