"""Puts chosen replacements into a teacher: the network, the recipe that rebuilds it, and what it costs."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import JsonValue
from torch import nn

from edgekd.core.cost import OpCost
from edgekd.core.recipe import Edit
from edgekd.nn.count import count_params, layer_costs
from edgekd.nn.edits import replay_edits_
from edgekd.nn.reparam import reparameterised
from edgekd.search.blocks.chain import Block
from edgekd.search.blocks.choose import Choice
from edgekd.search.blocks.costs import Pricing, own_costs
from edgekd.search.blocks.replacement import IDENTITY, OWN, Replacement
from edgekd.search.blocks.report import LibraryReport, State

COSTS = ("compared", "params", "macs")
"""Of a choice, in this order: what limits are about, then parameters and multiply-accumulates."""


@dataclass(frozen=True, kw_only=True)
class Option:
    """A choice, and what it stands for.

    Attributes:
        choice: Its score is the divergence; its costs are those of `COSTS`.
        replacement: None keeps the teacher's block.
        error: Loss of the local training, None without one.
    """

    choice: Choice
    replacement: Replacement | None
    error: float | None = None

    @property
    def name(self) -> str:
        """For tables: `keep`, or the replacement without its place."""
        return "keep" if self.replacement is None else self.replacement.key.split("-", 2)[2]


@dataclass(frozen=True, kw_only=True)
class Menu:
    """All options for a teacher.

    Attributes:
        blocks: Of the teacher.
        options: For each block and run.
        rest: Costs of what no block holds, in the order of a choice's costs.
    """

    blocks: tuple[Block, ...]
    options: tuple[Option, ...]
    rest: tuple[float, ...]

    @property
    def apart(self) -> list[tuple[int, int]]:
        """Pairs of options that must not stand together: blocks left out side by side.

        Each alone does little harm to a residual network, together they do much; a run of which one block is left and
        trained is the option that does it right.
        """
        gone = {
            option.choice.first: index
            for index, option in enumerate(self.options)
            if option.replacement is not None and option.replacement.block == IDENTITY
        }
        return [(index, gone[first + 1]) for first, index in gone.items() if first + 1 in gone]

    def cost(self, chosen: Sequence[Option]) -> tuple[float, ...]:
        """Costs of a whole network, by its parts."""
        parts = [option.choice.costs for option in chosen]
        return tuple(sum(values) for values in zip(self.rest, *parts, strict=True))


def menu(teacher: nn.Module, report: LibraryReport, pricing: Pricing, input_shape: tuple[int, int, int]) -> Menu:
    """The library's replacements, and keeping each block, with their prices.

    Args:
        teacher: As the library saw it.
        report: Of the library.
        pricing: Of the device.
        input_shape: (C, H, W).
    """
    blocks = report.blocks
    deployed = reparameterised(teacher)
    operations = own_costs(layer_costs(deployed, input_shape), blocks)
    own = [
        _costs(pricing, part, count_params(deployed.get_submodule(block.path)))
        for part, block in zip(operations, blocks, strict=True)
    ]
    options = [
        Option(choice=Choice(first=index, last=index, score=0.0, costs=costs), replacement=None)
        for index, costs in enumerate(own)
    ]
    for scored in report.scored:
        one = scored.replacement
        costs = own[one.first] if one.block == OWN else _costs(pricing, (), 0)
        if one.block not in (OWN, IDENTITY):
            block = one.deployed()
            costs = _costs(pricing, layer_costs(block, blocks[one.first].input), count_params(block))
        choice = Choice(first=one.first, last=one.last, score=scored.kl, costs=costs)
        options.append(Option(choice=choice, replacement=one, error=scored.error))
    whole = pricing.of_network(teacher, input_shape)
    rest = [
        float(total) - sum(part) for total, *part in zip((whole.compared, whole.params, whole.macs), *own, strict=True)
    ]
    return Menu(blocks=blocks, options=tuple(options), rest=tuple(rest))


def _costs(pricing: Pricing, operations: Sequence[OpCost], params: int) -> tuple[float, ...]:
    return pricing.of_operations(operations), float(params), float(sum(cost.macs for cost in operations))


def assembled(
    teacher: nn.Module, blocks: Sequence[Block], chosen: Sequence[Option], states: Mapping[str, State]
) -> tuple[nn.Module, tuple[Edit, ...]]:
    """The teacher with the chosen options in place, trained weights included, and the edits that lead there.

    Args:
        teacher: Left as it was.
        blocks: Of the teacher.
        chosen: One option for each block or run.
        states: Weights by the replacements' keys.
    """
    replacements = [option.replacement for option in chosen if option.replacement is not None]
    edits = tuple(edit for one in replacements for edit in one.edits(blocks))
    student = copy.deepcopy(teacher)
    replay_edits_(student, edits)
    for one in replacements:
        if one.trained:
            student.get_submodule(blocks[one.first].path).load_state_dict(states[one.key])
    return student.eval(), edits


def rows_of(offered: Menu, chosen: Sequence[Option]) -> tuple[dict[str, JsonValue], ...]:
    """The table of all options: which blocks, what stands for them, cost, divergence, and whether it was chosen."""
    return tuple(
        {
            "first": offered.blocks[option.choice.first].path,
            "last": offered.blocks[option.choice.last].path,
            "by": option.name,
            "cost": option.choice.costs[0],
            "error": option.error,
            "kl": option.choice.score,
            "chosen": option in chosen,
        }
        for option in sorted(offered.options, key=lambda o: (o.choice.first, o.choice.last, o.choice.score))
    )
