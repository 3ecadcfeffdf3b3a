"""FitNet: give the teacher's feature map back, through a regressor that training throws away."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from edgekd.core.schema import Schema
from edgekd.distill.objectives.geometry import at_one_size, precise
from edgekd.errors import UserError
from edgekd.train.objective import LossWeights, Objective, Signal, Signals, SignalSpec, full_precision, present


class FitNetConfig(Schema):
    """`fitnet` has no arguments; its weight is `distill_weight`."""


class FitNet(Objective[FitNetConfig]):
    """`mean (r(F_s) - F_t)^2` over samples, channels and pixels; r a 1x1 convolution and BatchNorm, trained along.

    Between networks of equal channels the convolution starts as the identity. BatchNorm keeps the regressor stable at
    the learning rates of a student: without it the loss is quadratic in r with a curvature of about 200.

    Deviations: the authors hint at a middle layer in a training stage of its own; here it is the last feature map, in
    one training with the labels, as in the benchmark codes that name it FitNet and whose weight is taken; their ReLU
    behind BatchNorm is left out, for a teacher's map may be negative. Where the resolutions differ both maps are
    brought to the smaller one by average pooling.
    """

    name = "fitnet"
    Config = FitNetConfig
    needs: ClassVar = frozenset({Signal.FEATURE_MAP})
    t_squared = False
    default_weights = LossWeights(supervised=1.0, distill=100.0)
    formula = "mean (bn(conv1x1(F_s)) - F_t)^2"
    source = "Romero, Ballas, Kahou, Chassang, Gatta and Bengio 2015, arXiv 1412.6550"

    def bind(self, student: SignalSpec, teacher: SignalSpec) -> None:
        if student.channels is None or teacher.channels is None:
            raise UserError("The objective 'fitnet' needs the feature maps of both networks, and one of them has none.")
        convolution = nn.Conv2d(student.channels, teacher.channels, kernel_size=1, bias=False)
        if student.channels == teacher.channels:
            nn.init.dirac_(convolution.weight)
        self.regressor = nn.Sequential(convolution, nn.BatchNorm2d(teacher.channels))

    def forward(self, student: Signals, teacher: Signals, labels: Tensor | None) -> Tensor:
        f_s, f_t = at_one_size(
            full_precision(present(student.feature_map, Signal.FEATURE_MAP)),
            present(teacher.feature_map, Signal.FEATURE_MAP),
        )
        return mean_square(self.regressor(f_s), f_t)


@precise
def mean_square(student: Tensor, teacher: Tensor) -> Tensor:
    """Scalar: mean of squared differences."""
    return F.mse_loss(student, teacher)
