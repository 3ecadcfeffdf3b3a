from __future__ import annotations

import pytest
import torch
from torch import nn

from edgekd.errors import UserError
from edgekd.nn.channels.analysis import analyse
from edgekd.nn.channels.apply import remove_channels_
from edgekd.nn.channels.groups import ChannelGroup
from edgekd.testing.toys import toy_cnn
from tests.prune.nets import Dense, Grouped, PaddedShortcut, Transformer, seeded

SHAPE = (3, 8, 8)


def names(module: nn.Module, **options: tuple[str, ...]) -> set[str]:
    return {group.name for group in analyse(module, SHAPE, **options).groups}


def test_layers_joined_by_a_shortcut_are_one_group() -> None:
    groups = analyse(toy_cnn(), SHAPE).groups
    together = {member.path for group in groups for member in group.members if "stages.0.0.conv2" in _makers(group)}
    assert {"stem.0", "stages.0.0.conv2", "stages.0.0.bn2"} <= together


def _makers(group: ChannelGroup) -> set[str]:
    return {member.path for member in group.members if member.axis == "out"}


@pytest.mark.parametrize("kind", [PaddedShortcut, Dense, Transformer, Grouped])
def test_the_logits_are_never_cut(kind: type[nn.Module]) -> None:
    module = seeded(kind)
    last = "head" if kind is Transformer else "classifier"
    assert all(last not in _makers(group) for group in analyse(module, SHAPE).groups)


def test_padded_shortcuts_keep_the_width_of_their_stages_and_free_the_inner_channels() -> None:
    analysis = analyse(seeded(PaddedShortcut), SHAPE)
    assert {group.name for group in analysis.groups} == {"first.conv1", "second.conv1"}
    assert set(analysis.kept_whole) == {"stem"}


def test_concatenated_gated_depthwise_and_flattened_channels_are_all_cut() -> None:
    analysis = analyse(seeded(Dense), SHAPE)
    assert analysis.kept_whole == {}
    made = {path for group in analysis.groups for path in _makers(group)}
    assert {"stem", "grow", "squeeze", "excite", "project", "depthwise", "bn", "act"} <= made


def test_concatenated_layers_are_cut_independently_of_each_other() -> None:
    groups = {group.name: group for group in analyse(seeded(Dense), SHAPE).groups}
    assert {"stem", "grow"} <= set(groups)
    assert "grow" not in _makers(groups["stem"])
    assert (groups["stem"].units, groups["grow"].units) == (8, 8)


def test_heads_leave_as_a_whole_and_tokens_with_their_position_and_scale() -> None:
    groups = {group.name: group for group in analyse(seeded(Transformer), SHAPE).groups}
    heads = groups["attn.qkv"]
    assert (heads.units, heads.width) == (4, 8)
    assert heads.numbers == (("attn", "num_heads", 1), ("attn", "attn_dim", 8))
    stream = next(group for group in groups.values() if "position" in _makers(group))
    assert {"embed", "scale", "norm1", "norm", "attn.proj", "fc2"} <= _makers(stream)


def test_a_grouped_convolution_loses_whole_groups_with_the_layers_around_it() -> None:
    module = seeded(Grouped)
    groups = {group.name: group for group in analyse(module, SHAPE).groups}
    group = groups["grouped"]
    assert (group.units, group.width) == (2, 4)
    assert _makers(group) == {"stem", "grouped", "norm"}
    remove_channels_(module, [(group, torch.tensor([0]))])
    grouped = module.get_submodule("grouped")
    assert (grouped.groups, grouped.in_channels, grouped.out_channels) == (1, 4, 4)
    assert module(torch.zeros(1, *SHAPE)).shape == (1, 4)


class Separate(nn.Sequential):
    """Each colour has filters of its own: the channels that the convolution reads are those of the image."""

    def __init__(self) -> None:
        pool = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
        super().__init__(nn.Conv2d(3, 6, 3, groups=3), nn.ReLU(), nn.Conv2d(6, 8, 1), *pool)


def test_a_grouped_convolution_of_which_a_side_is_not_known_stays_whole_with_the_reason() -> None:
    analysis = analyse(seeded(Separate), SHAPE)
    assert {group.name for group in analysis.groups} == {"2"}
    assert analysis.kept_whole["0"] == "0 is a convolution of 3 groups"


def test_excluded_layers_keep_their_output_channels_only() -> None:
    everything, left = names(seeded(PaddedShortcut)), names(seeded(PaddedShortcut), exclude=("first.*",))
    assert everything - left == {"first.conv1"}


def test_a_pattern_that_matches_nothing_is_refused_with_the_near_path() -> None:
    with pytest.raises(UserError, match=r"no module matches 'first.conv3'. Did you mean 'first.conv"):
        analyse(seeded(PaddedShortcut), SHAPE, exclude=("first.conv3",))


def test_the_network_is_left_as_it_was() -> None:
    module = seeded(Dense)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    module.requires_grad_(False)
    analyse(module, SHAPE)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_progress_reaches_the_number_of_groups() -> None:
    steps: list[tuple[int, int]] = []
    analysis = analyse(toy_cnn(), SHAPE, on_progress=lambda done, total: steps.append((done, total)))
    assert steps[-1] == (len(analysis.groups), len(analysis.groups))


def test_a_single_head_cannot_leave() -> None:
    module = seeded(lambda: Transformer(heads=1))  # type: ignore[arg-type]
    assert analyse(module, SHAPE).kept_whole["attn.qkv"] == "it has a single unit"
