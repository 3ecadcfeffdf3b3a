"""Where the nodes of a compression graph stand: phases from left to right, one lane per engine from top to bottom.

Training chains differ in length, yet all exports stand in one column and so do all quantized engines: a column belongs
to a phase. Each node has a main source (its first input), which makes the graph a forest with the engines as leaves;
giving every leaf a row and every other node the middle of its children keeps lanes from crossing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MAKE, EXPORT, ENGINE, MEASURE, JUDGE = range(5)
_PHASES = {
    "export": EXPORT,
    "fp16": ENGINE,
    "quantize": ENGINE,
    "int8-fp16": ENGINE,
    "qat": ENGINE,
    "codebook": ENGINE,
    "build": ENGINE,
    "evaluate": MEASURE,
    "profile": MEASURE,
    "select": JUDGE,
    "gate": JUDGE,
}


@dataclass(frozen=True, kw_only=True)
class Block:
    """Something to place.

    Attributes:
        inputs: Names of earlier blocks; the first one is the main source.
    """

    name: str
    stage: str
    inputs: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Spot:
    """A place on the grid; rows may be fractions."""

    column: int
    row: float


def phases(blocks: Sequence[Block]) -> dict[str, int]:
    """The phase of each block, never before that of its inputs."""
    found: dict[str, int] = {}
    for block in blocks:
        found[block.name] = max([_PHASES.get(block.stage, MAKE), *(found[source] for source in block.inputs)])
    return found


def placed(blocks: Sequence[Block]) -> dict[str, Spot]:
    """The spot of every block.

    Args:
        blocks: Each one after its inputs.
    """
    phase = phases(blocks)
    columns = _columns(blocks, phase)
    rows = _lanes([block for block in blocks if phase[block.name] <= ENGINE])
    middle = (max(rows.values(), default=0.0) + min(rows.values(), default=0.0)) / 2
    late: dict[int, list[str]] = defaultdict(list)
    for block in blocks:
        if phase[block.name] > ENGINE:
            late[columns[block.name]].append(block.name)
    for names in late.values():
        for index, name in enumerate(names):
            rows[name] = middle + 1.5 * (index - (len(names) - 1) / 2)
    lowest = min(rows.values(), default=0.0)
    return {name: Spot(column=columns[name], row=row - lowest) for name, row in rows.items()}


def reduced(blocks: Sequence[Block]) -> list[tuple[str, str]]:
    """(source, target) of the edges that no longer way implies, in the order of the blocks."""
    before: dict[str, set[str]] = {}
    edges = []
    for block in blocks:
        implied = set().union(*(before[source] for source in block.inputs))
        edges += [(source, block.name) for source in dict.fromkeys(block.inputs) if source not in implied]
        before[block.name] = implied | set(block.inputs)
    return edges


def _columns(blocks: Sequence[Block], phase: Mapping[str, int]) -> dict[str, int]:
    """Longest way within a block's phase, after the columns of all earlier phases."""
    within: dict[str, int] = {}
    width: dict[int, int] = defaultdict(int)
    for block in blocks:
        own = phase[block.name]
        within[block.name] = 1 + max((within[s] for s in block.inputs if phase[s] == own), default=-1)
        width[own] = max(width[own], within[block.name] + 1)
    start = {own: sum(width[earlier] for earlier in range(own)) for own in range(JUDGE + 1)}
    return {block.name: start[phase[block.name]] + within[block.name] for block in blocks}


def _lanes(blocks: Sequence[Block]) -> dict[str, float]:
    """Rows of the forest of main sources: one per leaf in depth-first order, the middle of the children elsewhere."""
    children: dict[str, list[str]] = defaultdict(list)
    names = {block.name for block in blocks}
    roots: list[str] = []
    for block in blocks:
        if block.inputs and block.inputs[0] in names:
            children[block.inputs[0]].append(block.name)
        else:
            roots.append(block.name)
    rows: dict[str, float] = {}
    leaves = 0

    def settle(name: str) -> float:
        nonlocal leaves
        if not children[name]:
            rows[name] = float(leaves)
            leaves += 1
        else:
            places = [settle(child) for child in children[name]]
            rows[name] = (places[0] + places[-1]) / 2
        return rows[name]

    for root in sorted(roots, key=lambda name: bool(children[name])):
        settle(root)
    return rows
