"""AT: look where the teacher looks."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from edgekd.core.schema import Schema
from edgekd.distill.objectives.geometry import at_one_size, directions, precise
from edgekd.train.objective import LossWeights, Objective, Signal, Signals, present


class ATConfig(Schema):
    """Arguments of `at`; its weight is `distill_weight`.

    Attributes:
        stages: `last` compares the last feature map; `all` each stage, paired from the end, as the authors do.
    """

    stages: Literal["last", "all"] = "last"


class AT(Objective[ATConfig]):
    """`mean_{i,p} (a_s[i,p] - a_t[i,p])^2`: a the mean of squares over channels at each pixel p, at length 1.

    Deviations: the authors sum over the stages, as `stages: all` does; the default is the last feature map alone. Where
    the resolutions differ both attention maps are brought to the smaller one by average pooling.
    """

    name = "at"
    Config = ATConfig
    needs: ClassVar = frozenset({Signal.FEATURE_MAP})
    t_squared = False
    default_weights = LossWeights(supervised=1.0, distill=1000.0)
    formula = "mean (a_s/|a_s| - a_t/|a_t|)^2, a = mean_c F_c^2 at each pixel"
    source = "Zagoruyko and Komodakis 2017, arXiv 1612.03928"

    def __init__(self, config: ATConfig) -> None:
        super().__init__(config)
        if config.stages == "all":
            self.declare(needs=frozenset({Signal.STAGES}))

    def forward(self, student: Signals, teacher: Signals, labels: Tensor | None) -> Tensor:
        if self.config.stages == "last":
            return attention_distance(
                present(student.feature_map, Signal.FEATURE_MAP), present(teacher.feature_map, Signal.FEATURE_MAP)
            )
        ours, theirs = present(student.stages, Signal.STAGES), present(teacher.stages, Signal.STAGES)
        pairs = zip(reversed(ours), reversed(theirs), strict=False)  # the longer one has stages before the first pair
        return torch.stack([attention_distance(*pair) for pair in pairs]).sum()


@precise
def attention_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Scalar: mean squared difference of the normalised attention of (N, C, H, W) maps, channels may differ."""
    a_s, a_t = at_one_size(student.square().mean(1, keepdim=True), teacher.square().mean(1, keepdim=True))
    return (directions(a_s.flatten(1)) - directions(a_t.flatten(1))).square().mean()
