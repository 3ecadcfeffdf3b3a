"""What of each family's couplings is followed, how far its networks can be cut, and what the refusals say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from edgekd.nn.channels.analysis import Analysis, analyse
from edgekd.nn.channels.ends import chunk_ends
from edgekd.nn.count import layer_costs
from edgekd.prune.schedule import MacModel
from tests.nn.channels import couplings
from tests.prune.nets import seeded

SHAPE = (3, 8, 8)


@dataclass(frozen=True, kw_only=True)
class Family:
    """What is expected of a network.

    Attributes:
        groups: Names of those that are cut.
        reach: Smallest share of the multiply-accumulates, to within 0.01.
        refused: The beginning of the reason by name of each group that stays whole.
    """

    kind: Callable[[], nn.Module]
    groups: set[str]
    reach: float
    refused: Mapping[str, str] = field(default_factory=dict)


NOT_MADE = "the cut network cannot be made: the trace names channels that a layer does not have"
HALVED = "the cut network does not run: it fails in a layer of type Gated"
FIXED = "the cut network does not run: it fails in a layer of type FixedAttention"
FAMILIES = [
    Family(kind=couplings.Inverted, groups={"squeeze", "excite", "project"}, reach=0.05),
    Family(kind=couplings.Bottleneck, groups={"conv2", "conv3"}, reach=0.18),
    Family(kind=couplings.GroupedChain, groups={"two", "last"}, reach=0.45),
    Family(kind=couplings.Concatenated, groups={"stem", "grow1", "grow2", "transition"}, reach=0.03),
    Family(
        kind=couplings.Shuffled,
        groups={"first", "last"},
        reach=0.59,
        refused={"second": "it holds only 8 of the 16 channels of stem"},
    ),
    Family(kind=couplings.Gated, groups={"stem", "plain"}, reach=0.125, refused={"wide": HALVED}),
    Family(kind=couplings.Upsampled, groups={"stem", "plain"}, reach=0.125, refused={"wide": NOT_MADE}),
    Family(kind=couplings.Windowed, groups={"attn.qkv", "fc1", "fc2"}, reach=0.06),
    Family(kind=couplings.FixedHeads, groups={"fc1"}, reach=0.70, refused={"attn.qkv": FIXED, "fc2": FIXED}),
    Family(kind=couplings.Mixer, groups={"fc1", "tokens1"}, reach=0.21, refused={"fc2": NOT_MADE}),
    Family(
        kind=couplings.Recurrent,
        groups={"stem"},
        reach=0.16,
        refused={"conv": "its channels cannot be followed through GRU 'rnn'"},
    ),
]


def smallest_share(module: nn.Module, analysis: Analysis) -> float:
    macs = MacModel(module, layer_costs(module, SHAPE), analysis.groups)
    for group in analysis.groups:
        macs.remove(group, chunk_ends(group, 1)[-1])
    return macs.now / macs.total


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.kind.__name__)
def test_the_couplings_of_a_family_are_followed_or_refused_by_name(family: Family) -> None:
    module = seeded(family.kind)  # type: ignore[arg-type]
    analysis = analyse(module, SHAPE)
    assert {group.name for group in analysis.groups} == family.groups
    assert smallest_share(module, analysis) == pytest.approx(family.reach, abs=0.01)
    assert set(analysis.kept_whole) == set(family.refused)
    for name, why in family.refused.items():
        assert analysis.kept_whole[name].startswith(why)
    thirds = [(group, torch.arange(group.units // 3)) for group in analysis.groups]
    assert analysis.proof.why_not(thirds) is None
