"""Isotropy: how evenly the features of a random network fill their channels, whatever its size.

Most training-free scores are sums over layers, blocks or units, and so mostly count them. This one is a mean of shares;
it is the largest part of what the combined ranking adds to counting.
"""

from __future__ import annotations

import math
from typing import ClassVar

from torch import Tensor, nn

from edgekd.search.proxies.aznas import NOISE_SEED, channel_entropy
from edgekd.search.proxies.blocks import channels_first, features
from edgekd.search.proxies.network import noise_batch
from edgekd.search.proxy import Batch, Proxy, ScoreStudent


class Isotropy(Proxy):
    """`mean_l H_l / log D_l`: how evenly features fill the directions they have behind block l; in [0, 1].

    `Expressivity` divided by what it could be at most, so that neither blocks nor channels are counted: D_l is the
    number of channels, or of positions less one where these are fewer.
    """

    uses_weights: ClassVar[bool] = True
    formula: ClassVar[str] = "mean_l H_l / log D_l, H_l as in expressivity, D_l = min(channels, positions - 1)"
    source: ClassVar[str] = "after Lee and Ham 2024, arXiv 2403.19232"

    def bind(self, teacher: nn.Module, batch: Batch) -> ScoreStudent:
        noise = noise_batch(batch.images, seed=NOISE_SEED)

        def score(student: nn.Module) -> float:
            shares = features(student, noise, channel_isotropy)
            return sum(shares) / len(shares)

        return score


def channel_isotropy(x: Tensor) -> float:
    """`channel_entropy` over its largest value, in [0, 1]; a single direction counts as 1."""
    images, channels, height, width = channels_first(x).shape
    directions = min(channels, images * height * width - 1)
    return channel_entropy(x) / math.log(directions) if directions > 1 else 1.0
