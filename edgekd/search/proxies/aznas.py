"""The three proxies of AZ-NAS that look at the blocks of a network: expressivity, progressivity, trainability.

Each sees Gaussian noise in the place of images, as the authors do. Deviations: at most eight images of noise, whatever
the batch, for their positions are samples too; and the networks keep their own initialisation, the one they will be
trained from, where the authors redraw all weights with He's fan-in rule.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgekd.search.proxies.blocks import channels_first, features, flows
from edgekd.search.proxies.network import noise_batch
from edgekd.search.proxy import Batch, Proxy, ScoreStudent, Unscorable
from edgekd.search.sharing import shared

_SOURCE = "Lee and Ham 2024, arXiv 2403.19232"
NOISE_SEED = 20240328
_SMALLEST_GAIN = 1e-6
_CONSTANT = 1e-12
"""A variance that is smaller, relative to the mean square, is rounding."""


class Expressivity(Proxy):
    """`sum_l H_l`, H_l the entropy of the normalised eigenvalues of the channels' covariance behind block l.

    Features count from the input of the first block on. Higher where features fill the space of their channels.
    """

    uses_weights: ClassVar[bool] = True
    formula: ClassVar[str] = "sum_l H_l, H_l = -sum_i p_i log p_i, p = eig(cov of channels behind block l) / sum"
    source: ClassVar[str] = _SOURCE

    def bind(self, teacher: nn.Module, batch: Batch) -> ScoreStudent:
        noise = noise_batch(batch.images, seed=NOISE_SEED)
        return lambda student: sum(features(student, noise, channel_entropy))


class Progressivity(Proxy):
    """`min_l(H_l - H_(l-1))`: how much the least expanding block adds to the entropy of `Expressivity`."""

    uses_weights: ClassVar[bool] = True
    formula: ClassVar[str] = "min_l(H_l - H_(l-1)), H as in expressivity"
    source: ClassVar[str] = _SOURCE

    def bind(self, teacher: nn.Module, batch: Batch) -> ScoreStudent:
        noise = noise_batch(batch.images, seed=NOISE_SEED)

        def score(student: nn.Module) -> float:
            return min(after - before for before, after in pairwise(features(student, noise, channel_entropy)))

        return score


class Trainability(Proxy):
    """`mean_l(2 - s_l - 1 / s_l)`, s_l the largest singular value of E[g_in g_out^T] of block l; 0 at best.

    g_out is +1 or -1 at random, and g_in what comes back at the block's input. Of a block that reduces the resolution,
    the input's pixels of one output pixel count as channels. Deviations: a block that returns g_out unchanged counts
    as one that returns nothing (the authors: -infinity for the network); one that enlarges the map is left out.
    """

    uses_weights: ClassVar[bool] = True
    formula: ClassVar[str] = "mean_l(2 - s_l - 1/s_l), s_l = largest singular value of E[g_in g_out^T] of block l"
    source: ClassVar[str] = _SOURCE

    def bind(self, teacher: nn.Module, batch: Batch) -> ScoreStudent:
        noise = noise_batch(batch.images, seed=NOISE_SEED)

        def score(student: nn.Module) -> float:
            gains = block_gains(student, noise)
            return sum(2 - gain - 1 / (gain + _SMALLEST_GAIN) for gain in gains) / len(gains)

        return score


@shared
def channel_entropy(x: Tensor) -> float:
    """Entropy, in nats, of the share that each principal direction of the channels has in the variance.

    Args:
        x: See `channels_first`.

    Raises:
        Unscorable: The channels do not vary.
    """
    rows = channels_first(x).transpose(0, 1).flatten(1)
    centred = rows - rows.mean(1, keepdim=True)
    eigenvalues = torch.linalg.eigvalsh((centred @ centred.T).double()).clamp_min(0)
    total = eigenvalues.sum()
    if not bool(total > _CONSTANT * rows.square().sum()):
        raise Unscorable("A block gives the same features for all images, or features that are not finite.")
    return float(torch.special.entr(eigenvalues / total).sum())


def block_gains(module: nn.Module, images: Tensor) -> list[float]:
    """s_l for each block; 0 for a block that passes no gradient or only copies it.

    Raises:
        Unscorable: No block can be compared.
    """
    found = flows(module, images)
    generator = torch.Generator().manual_seed(NOISE_SEED)
    sent = [(2.0 * torch.randint(2, flow.left.shape, generator=generator) - 1).to(flow.left) for flow in found]
    reached = [number for number, flow in enumerate(found) if flow.left.requires_grad]
    # The graphs of the blocks are separate, so one backward pass serves all.
    back = torch.autograd.grad(
        [found[number].left for number in reached],
        [found[number].entered for number in reached],
        [sent[number] for number in reached],
        allow_unused=True,
    )
    returned = dict(zip(reached, back, strict=True))
    gains = [_gain(sent[number], returned.get(number), flow.entered) for number, flow in enumerate(found)]
    known = [gain for gain in gains if gain is not None]
    if not known:
        raise Unscorable("None of its blocks maps features to features of the same or a lower resolution.")
    return known


def _gain(sent: Tensor, returned: Tensor | None, entered: Tensor) -> float | None:
    """The largest singular value; None where input pixels cannot be assigned to output pixels."""
    height, width = channels_first(sent).shape[2:]
    entered_height, entered_width = channels_first(entered).shape[2:]
    if entered_height < height or entered_width < width or entered.ndim != sent.ndim:
        return None
    if returned is None or (returned.shape == sent.shape and torch.equal(returned, sent)):
        return 0.0
    down, right = math.ceil(entered_height / height), math.ceil(entered_width / width)
    missing = (0, right * width - entered_width, 0, down * height - entered_height)
    patches = F.unfold(F.pad(channels_first(returned), missing), (down, right), stride=(down, right))
    inner = patches.transpose(0, 1).flatten(1)
    outer = channels_first(sent).transpose(0, 1).flatten(1)
    product = (inner @ outer.T).double() / outer.shape[1]
    small = product @ product.T if len(product) < product.shape[1] else product.T @ product
    return math.sqrt(max(0.0, float(torch.linalg.eigvalsh(small)[-1])))
