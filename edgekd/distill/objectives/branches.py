"""Classifiers on inner maps: training-only exits from a network's stages, shared by `ofa` and `exits`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from edgekd.train.objective import full_precision


class Branch(nn.Module):
    """Maps (N, C, H, W) of one stage to logits (N, K).

    Separable convolutions halve the map until it has about the size of the network's last stage, for a shallow map
    that is merely averaged knows little of classes; then the average over pixels, and a linear layer.

    Args:
        shape: (C, H, W) of the stage.
        last: (C, H, W) of the network's last stage.
        classes: K.
        level: Number of separable convolutions that keep the size, behind those that halve it.
    """

    def __init__(self, shape: tuple[int, int, int], last: tuple[int, int, int], classes: int, level: int = 0) -> None:
        super().__init__()
        channels, height, _ = shape
        layers: list[nn.Module] = []
        while height >= 2 * last[1]:
            layers.append(_separable(channels, last[0], stride=2))
            channels, height = last[0], -(-height // 2)
        for _ in range(level):
            layers.append(_separable(channels, last[0], stride=1))
            channels = last[0]
        self.body = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, stage: Tensor) -> Tensor:
        out: Tensor = self.classifier(self.body(full_precision(stage)).mean((2, 3)))
        return out


def branches(stages: Sequence[tuple[int, int, int]], which: Sequence[int], classes: int) -> nn.ModuleList:
    """One branch for each number in `which` of a network whose stages have these (C, H, W).

    Transformers and mixers have stages of one size, so that nothing is to be halved. Each stage of the last one's size
    gets a block for each stage behind it instead, and the last itself one, as in OFA-KD (Hao et al. 2023, arXiv
    2310.19444). Where the last stage is the only one of its size, as in convolutional networks, it gets none.
    """
    last = stages[-1]
    level = [stage[1:] == last[1:] for stage in stages]
    flat = sum(level) > 1
    blocks = [max(1, len(stages) - 1 - number) if flat and level[number] else 0 for number in range(len(stages))]
    return nn.ModuleList(Branch(stages[number], last, classes, blocks[number]) for number in which)


def _separable(channels: int, out: int, *, stride: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, stride=stride, padding=1, groups=channels, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, out, 1, bias=False),
        nn.BatchNorm2d(out),
        nn.ReLU(),
    )
