"""A graph while it is being written: nodes in order, and the decisions that shaped them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import JsonValue

from edgekd.core.bundle import BundleKind
from edgekd.core.graph import Graph, Node

TEACHER = "@teacher"


@dataclass
class Draft:
    """Collects nodes; `graph()` freezes them."""

    nodes: list[Node] = field(default_factory=list)
    decisions: list[str] = field(default_factory=list)

    def add(
        self,
        name: str,
        stage: str,
        config: Mapping[str, JsonValue] | None = None,
        inputs: Mapping[str, str | Sequence[str] | None] | None = None,
    ) -> str:
        """Adds a node and returns its name; an input of None leaves the port unconnected."""
        connected = {
            port: (source,) if isinstance(source, str) else tuple(source)
            for port, source in (inputs or {}).items()
            if source is not None
        }
        self.nodes.append(Node(name=name, stage=stage, config=dict(config or {}), inputs=connected))
        return name

    def say(self, sentence: str) -> None:
        """Notes why the graph has the shape it has."""
        self.decisions.append(sentence)

    def graph(self) -> Graph:
        """The finished graph with the teacher as its only input."""
        return Graph(inputs={TEACHER.removeprefix("@"): BundleKind.TORCH}, nodes=tuple(self.nodes))
