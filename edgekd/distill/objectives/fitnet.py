"""FitNet: give the teacher's feature map back, through a regressor that training throws away."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from edgekd.core.schema import Schema
from edgekd.distill.objectives.geometry import at_one_size, precise
from edgekd.errors import UserError
from edgekd.train.objective import LossWeights, Objective, Signal, Signals, SignalSpec, full_precision, present


class FitNetConfig(Schema):
    """Arguments of `fitnet`; its weight is `distill_weight`.

    Attributes:
        stage: At which stage the hint is, from the end: -1 is the last, -2 the one before it. None takes the last
            feature map, the one before the classifier. The authors take a middle stage.
    """

    stage: int | None = Field(default=None, le=-1)


class FitNet(Objective[FitNetConfig]):
    """`mean (r(F_s) - F_t)^2` over samples, channels and pixels; r a 1x1 convolution and BatchNorm, trained along.

    Between networks of equal channels the convolution starts as the identity. BatchNorm keeps the regressor stable at
    the learning rates of a student: without it the loss is quadratic in r with a curvature of about 200. It normalises
    by the batch in training, so that a student that equals its teacher has a loss there until its scale is learned.

    Deviations: the authors hint in a training stage of its own; here it is one training with the labels, as in the
    benchmark codes that name it FitNet and whose weight is taken, and by default the last feature map (they take the
    third of their five maps); their ReLU behind BatchNorm is left out, for a teacher's map may be negative. Where the
    resolutions differ both maps are brought to the smaller one by average pooling.
    """

    name = "fitnet"
    Config = FitNetConfig
    needs: ClassVar = frozenset({Signal.FEATURE_MAP})
    adapts = True
    t_squared = False
    default_weights = LossWeights(supervised=1.0, distill=100.0)
    formula = "mean (bn(conv1x1(F_s)) - F_t)^2"
    source = "Romero, Ballas, Kahou, Chassang, Gatta and Bengio 2015, arXiv 1412.6550"

    def __init__(self, config: FitNetConfig) -> None:
        super().__init__(config)
        if config.stage is not None:
            self.declare(needs=frozenset({Signal.STAGES}))

    def bind(self, student: SignalSpec, teacher: SignalSpec) -> None:
        ours, theirs = self._channels(student), self._channels(teacher)
        convolution = nn.Conv2d(ours, theirs, kernel_size=1, bias=False)
        if ours == theirs:
            nn.init.dirac_(convolution.weight)
        self.regressor = nn.Sequential(convolution, nn.BatchNorm2d(theirs))

    def forward(self, student: Signals, teacher: Signals, labels: Tensor | None) -> Tensor:
        f_s, f_t = at_one_size(full_precision(self._map(student)), self._map(teacher))
        return mean_square(self.regressor(f_s), f_t)

    def _channels(self, of: SignalSpec) -> int:
        stage = self.config.stage
        if stage is None:
            if of.channels is None:
                raise UserError(
                    "The objective 'fitnet' needs the feature maps of both networks, and one of them has none."
                )
            return of.channels
        stages = of.stages or ()
        if len(stages) < -stage:
            raise UserError(
                f"The objective 'fitnet' shall hint at stage {stage}, and one network has {len(stages)} stages.",
                hint=f"set stage to {-len(stages)} or nearer to the end" if stages else "leave stage out",
            )
        return stages[stage][0]

    def _map(self, of: Signals) -> Tensor:
        if self.config.stage is None:
            return present(of.feature_map, Signal.FEATURE_MAP)
        return present(of.stages, Signal.STAGES)[self.config.stage]


@precise
def mean_square(student: Tensor, teacher: Tensor) -> Tensor:
    """Scalar: mean of squared differences."""
    return F.mse_loss(student, teacher)
