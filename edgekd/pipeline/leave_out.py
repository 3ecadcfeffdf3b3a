"""Goes on without an engine that cannot be made, instead of ending a run that has others.

An operator that one runtime lacks, or a graph that 8 bits do not suit, shows only when it is converted or quantized,
which may be hours into a run. Everything that was finished before is in the store, so the run without the engine takes
up where the failure stopped it.
"""

from __future__ import annotations

from collections.abc import Iterable

from edgekd.core.graph import ALL, Graph, Node, validate_graph
from edgekd.errors import BuildFailed
from edgekd.pipeline.few_bits import CODEBOOK
from edgekd.pipeline.results import CONVERT
from edgekd.pipeline.stages import STAGES

SPARED = frozenset({CODEBOOK, CONVERT, "fp16", "int8-fp16", "latency-table", "prune", "qat", "quantize", "sensitivity"})
"""Stages that make a smaller twin of a graph or network that is a candidate itself, or prepare one."""


def spared(graph: Graph, failure: BuildFailed) -> str | None:
    """The node that a run can go on without: one of `SPARED` that failed; None where it was another stage."""
    return next((node.name for node in graph.nodes if node.name == failure.node and node.stage in SPARED), None)


def without(graph: Graph, name: str) -> Graph:
    """The graph without a node and what needs it: its accuracy, and whatever else follows it alone."""
    gone, nodes = {name}, [node for node in graph.nodes if node.name != name]
    while True:
        kept = [_unplugged(node, gone) for node in nodes]
        lost = {node.name for node, trimmed in zip(nodes, kept, strict=True) if trimmed is None}
        if not lost:
            return graph.model_copy(update={"nodes": tuple(node for node in kept if node is not None)})
        gone |= lost
        nodes = [node for node in nodes if node.name not in lost]


def still_to_rebuild(graph: Graph, rebuild: Iterable[str], failed: str) -> frozenset[str]:
    """Of the nodes to rebuild, those that the run had not come to when `failed` stopped it."""
    order = [step.name for step in validate_graph(graph, STAGES)]
    later = set(order[order.index(failed) + 1 :])
    wanted = set(rebuild)
    return frozenset(later if ALL in wanted else wanted & later)


def _unplugged(node: Node, gone: set[str]) -> Node | None:
    """The node without sources that are gone; None when a port that takes a single one is left empty."""
    inputs = {port: tuple(s for s in sources if s not in gone) for port, sources in node.inputs.items()}
    ports = STAGES.get(node.stage).ports
    if any(not sources and not ports[port].many for port, sources in inputs.items()):
        return None
    return node.model_copy(update={"inputs": {port: sources for port, sources in inputs.items() if sources}})
