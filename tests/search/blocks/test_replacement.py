from __future__ import annotations

from edgekd.nn.build import module_from_recipe
from edgekd.nn.count import layer_costs
from edgekd.nn.edits import replay_edits_
from edgekd.search.blocks.chain import Block, find_blocks
from edgekd.search.blocks.costs import own_costs
from edgekd.search.blocks.replacement import DENSE, DEPTHWISE, Family, Replacement, candidates, default_families
from edgekd.testing.toys import toy_recipe

SHAPE = (3, 8, 8)
RECIPE = toy_recipe().model_copy(
    update={"kwargs": {"depths": [4, 3], "widths": [8, 8, 16], "classes": 4, "in_channels": 3}}
)


def plan(*families: Family, multiple: int = 4) -> tuple[tuple[Block, ...], list[list[Replacement]]]:
    module = module_from_recipe(RECIPE)
    blocks = find_blocks(module, SHAPE)
    macs = [sum(cost.macs for cost in part) for part in own_costs(layer_costs(module, SHAPE), blocks)]
    return blocks, candidates(blocks, families, macs=macs, multiple=multiple)


def test_runs_stay_within_a_stage_and_cover_all_of_it() -> None:
    blocks, planned = plan(*DENSE)
    assert len(blocks) == 8
    runs = [{(one.first, one.last) for one in part} for part in planned]
    assert all(last <= 4 for _, last in runs[0])
    assert all(first >= 5 for first, _ in runs[1])
    assert (0, 4) in runs[0]
    assert (5, 7) in runs[1]


def test_every_candidate_fits_into_the_network_in_its_place() -> None:
    blocks, planned = plan(*DENSE, *DEPTHWISE)
    for one in {one.block: one for part in planned for one in part}.values():
        module = module_from_recipe(RECIPE)
        replay_edits_(module, one.edits(blocks))
        assert find_blocks(module, SHAPE)


def test_no_candidate_needs_more_than_what_it_replaces() -> None:
    _, planned = plan(Family(block="basic", width=1), Family(block="basic", width=0.5), multiple=1)
    one_block = {one.key for part in planned for one in part if one.length == 1}
    # The stem is a single convolution, and a block of the same width saves nothing.
    assert not any(key.startswith("0-0") or key.endswith("-basic-8") for key in one_block if key[0] in "01234")
    assert "1-1-basic-4" in one_block


def test_an_identity_stands_only_where_shapes_agree() -> None:
    _, planned = plan(Family(block="identity", longest=1))
    assert [one.first for part in planned for one in part] == [1, 2, 3, 4, 6, 7]


def test_inner_widths_are_multiples() -> None:
    _, planned = plan(Family(block="basic", width=0.3), multiple=4)
    widths = {one.kwargs["hidden"] for part in planned for one in part}
    assert widths == {4}


def test_long_and_short_runs_come_before_those_in_between() -> None:
    _, planned = plan(Family(block="own", shortest=1))
    lengths = list(dict.fromkeys(one.length for one in planned[0]))
    assert lengths == [5, 2, 4, 3]


def test_the_families_follow_the_teacher_s_own_blocks() -> None:
    blocks, _ = plan()
    assert default_families(blocks) == DENSE
    assert default_families([block.model_copy(update={"depthwise": True}) for block in blocks]) == DEPTHWISE
