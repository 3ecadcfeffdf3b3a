"""A compression graph as data, and the proof that it can run.

`Graph` is what a recipe holds: nodes that name a stage, its config, and where its inputs come from. `validate_graph`
finds every mistake that can be found without doing work, and gives back the order in which the nodes run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field, JsonValue, field_validator

from edgekd.core.bundle import BundleKind
from edgekd.core.registry import Registry
from edgekd.core.schema import Schema, suggest
from edgekd.core.stage import Port, Stage
from edgekd.errors import UserError

StageRegistry = Registry[type[Stage[Any]]]

ALL = "all"
"""Where nodes are named, this stands for every one of them; so no node may be called that."""

_NAME = r"^[a-z0-9][a-z0-9_-]{0,63}$"


class Node(Schema):
    """One step of a graph.

    Attributes:
        name: Unique, and safe as a file name: lower-case letters, digits, `_` and `-`.
        stage: Registry name of the stage.
        config: The stage's config as plain data.
        inputs: For each port the sources: a node's name, or `@teacher` for the graph input `teacher`. One source may
            stand without its list.
    """

    name: str = Field(pattern=_NAME)
    stage: str
    config: dict[str, JsonValue] = Field(default_factory=dict)
    inputs: dict[str, tuple[str, ...]] = Field(default_factory=dict)

    @field_validator("name")
    @classmethod
    def _not_reserved(cls, value: str) -> str:
        if value == ALL:
            raise ValueError(f"{ALL!r} stands for every node and cannot name one")
        return value

    @field_validator("inputs", mode="before")
    @classmethod
    def _one_source_is_a_list(cls, value: object) -> object:
        if not isinstance(value, Mapping):
            return value
        return {port: (source,) if isinstance(source, str) else source for port, source in value.items()}

    @property
    def sources(self) -> tuple[str, ...]:
        """All sources, port by port."""
        return tuple(source for sources in self.inputs.values() for source in sources)


class Graph(Schema):
    """Nodes and what they are fed with.

    Attributes:
        inputs: Kind of each bundle that comes from outside, by name.
        nodes: In any order; independent nodes run in the order listed.
    """

    inputs: dict[str, BundleKind] = Field(default_factory=dict)
    nodes: tuple[Node, ...]


@dataclass(frozen=True)
class Step:
    """A validated node with its stage, configured."""

    node: Node
    stage: Stage[Any]

    @property
    def name(self) -> str:
        return self.node.name


def validate_graph(graph: Graph, stages: StageRegistry) -> tuple[Step, ...]:
    """The steps in the order they run: each after its sources, otherwise as listed.

    Raises:
        UserError: A name is taken twice; a stage, port or source is unknown; a config does not fit its stage; a port
            is empty, overfull or fed with the wrong kind; the nodes form a cycle; a stage comes before one that it
            must never come before.
    """
    _check_names(graph)
    steps = {node.name: _step(node, stages) for node in graph.nodes}
    for step in steps.values():
        _check_ports(step, graph, steps)
    ordered = _ordered(steps)
    for step in ordered:
        _check_successors(step, ordered)
    return ordered


def _check_names(graph: Graph) -> None:
    seen: set[str] = set(graph.inputs)
    for node in graph.nodes:
        if node.name in seen:
            other = "an input of the graph" if node.name in graph.inputs else "another node"
            raise UserError(f"The node name {node.name!r} is taken: {other} has it.", hint="rename one of them")
        seen.add(node.name)


def _step(node: Node, stages: StageRegistry) -> Step:
    if node.stage not in stages:
        raise UserError(
            f"Node {node.name!r}: unknown stage {node.stage!r}.{suggest(node.stage, stages)}",
            hint=f"known: {', '.join(stages)}",
        )
    stage = stages.get(node.stage)
    return Step(node, stage(stage.Config.parse(node.config, f"node {node.name!r}, config")))


def _check_ports(step: Step, graph: Graph, steps: Mapping[str, Step]) -> None:
    node, ports = step.node, step.stage.ports
    for name in node.inputs:
        if name not in ports:
            known = ", ".join(ports) or "none"
            raise UserError(
                f"Node {node.name!r}: stage {node.stage!r} has no port {name!r}.{suggest(name, ports)}",
                hint=f"its ports: {known}",
            )
    for name, port in ports.items():
        sources = node.inputs.get(name, ())
        where = f"Node {node.name!r}: port {name!r} of stage {node.stage!r}"
        _check_count(where, port, sources)
        for source in sources:
            kinds, producer = _produced(where, source, graph, steps)
            if not kinds <= port.kinds:
                raise UserError(f"{where} takes {_words(port.kinds)}, but {producer} gives {_words(kinds)}.")


def _check_count(where: str, port: Port, sources: Sequence[str]) -> None:
    if not sources and not port.optional:
        raise UserError(f"{where} is not connected.", hint=f"it takes {_words(port.kinds)}")
    if len(sources) > 1 and not port.many:
        raise UserError(f"{where} takes one source, got {len(sources)}: {', '.join(sources)}.")
    if len(set(sources)) < len(sources):
        raise UserError(f"{where} names a source twice: {', '.join(sources)}.")


def _produced(where: str, source: str, graph: Graph, steps: Mapping[str, Step]) -> tuple[frozenset[BundleKind], str]:
    """The kinds that `source` may give, and what to call it in a message."""
    if source.startswith("@"):
        kind = graph.inputs.get(source[1:])
        if kind is None:
            near = suggest(source, (f"@{name}" for name in graph.inputs))
            raise UserError(f"{where} is fed by {source!r}, which is not an input of the graph.{near}")
        return frozenset({kind}), f"the graph input {source!r}"
    if source not in steps:
        hint = f"write '@{source}' for the graph input" if source in graph.inputs else None
        raise UserError(f"{where} is fed by {source!r}, which is not a node.{suggest(source, steps)}", hint=hint)
    producer = steps[source]
    return producer.stage.output_kinds(), f"node {source!r} (stage {producer.node.stage!r})"


def _words(kinds: frozenset[BundleKind]) -> str:
    return " or ".join(sorted(kinds))


def _ordered(steps: Mapping[str, Step]) -> tuple[Step, ...]:
    waiting = dict(steps)
    ordered: list[Step] = []
    while waiting:
        ready = next((s for s in waiting.values() if not any(source in waiting for source in s.node.sources)), None)
        if ready is None:
            raise UserError(f"The graph has a cycle: {' -> '.join(_cycle(waiting))}.")
        ordered.append(waiting.pop(ready.name))
    return tuple(ordered)


def _cycle(waiting: Mapping[str, Step]) -> list[str]:
    """One cycle among nodes that each wait for another of them, in the direction of the edges."""
    path = [next(iter(waiting))]
    while path[-1] not in path[:-1]:
        path.append(next(source for source in waiting[path[-1]].node.sources if source in waiting))
    return path[path.index(path[-1]) :][::-1]


def _check_successors(step: Step, ordered: Sequence[Step]) -> None:
    for path in _paths_after(step, ordered):
        last = path[-1]
        if last.stage.name in step.stage.never_before:
            raise UserError(
                f"Node {step.name!r} (stage {step.node.stage!r}) must not come before node {last.name!r} "
                f"(stage {last.node.stage!r}): {' -> '.join(s.name for s in path)}.",
                hint=f"move {last.name!r} before {step.name!r}",
            )


def _paths_after(step: Step, ordered: Sequence[Step]) -> Iterator[tuple[Step, ...]]:
    """One path from `step` to each node that depends on it."""
    paths: dict[str, tuple[Step, ...]] = {step.name: (step,)}
    for later in ordered:
        before = next((paths[source] for source in later.node.sources if source in paths), None)
        if before is not None:
            paths[later.name] = (*before, later)
            yield paths[later.name]
