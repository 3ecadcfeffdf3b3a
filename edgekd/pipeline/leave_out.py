"""Goes on without an engine that cannot be made, instead of ending a run that has others.

An operator that one runtime lacks, or a graph that 8 bits do not suit, shows only when it is converted or quantized,
which may be hours into a run. Everything that was finished before is in the store, so the run without the engine takes
up where the failure stopped it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from edgekd.core.graph import ALL, Graph, Node, validate_graph
from edgekd.errors import BuildFailed
from edgekd.pipeline.few_bits import CODEBOOK, ON_LEVELS
from edgekd.pipeline.pruning import LATENCY_TABLE
from edgekd.pipeline.results import CONVERT
from edgekd.pipeline.stages import STAGES

SPARED = frozenset(
    {CODEBOOK, CONVERT, LATENCY_TABLE, "build", "fp16", "int8-fp16", "prune", "qat", "quantize", "sensitivity"}
)
"""Stages that make a twin of a graph or network that is a candidate itself, or prepare one."""
SELECT = "select"
BY_TABLE = ("follow", "kernel_block", "precision", "budget_ms", "rounds_left", "macs_floor")
"""What a cut along a latency table has in its config and an even one has not."""


def spared(graph: Graph, failure: BuildFailed) -> str | None:
    """The node that a run can go on without: one of `SPARED` that failed, unless all engines are compared with it."""
    compared = {node.config.get("reference") for node in graph.nodes if node.stage == SELECT}
    return next(
        (n.name for n in graph.nodes if n.name == failure.node and n.stage in SPARED and n.name not in compared), None
    )


def without(graph: Graph, name: str) -> Graph:
    """The graph without a node and what needs it: its accuracy, and whatever else follows it alone.

    Without the table of latencies networks are cut evenly, and without a cut the training that puts weights on levels
    takes the network before it.
    """
    failed = next(node for node in graph.nodes if node.name == name)
    gone, nodes = {name}, [node for node in graph.nodes if node.name != name]
    if failed.stage == LATENCY_TABLE:
        nodes = [_cut_evenly(node) if name in node.sources else node for node in nodes]
    if failed.stage == "prune":
        cut = _cut_from(name, nodes)
        nodes = [_takes_whole(node, cut, failed.inputs["model"]) for node in nodes]
    while True:
        kept = [_unplugged(node, gone) for node in nodes]
        lost = {node.name for node, trimmed in zip(nodes, kept, strict=True) if trimmed is None}
        if not lost:
            return graph.model_copy(update={"nodes": tuple(node for node in kept if node is not None)})
        gone |= lost
        nodes = [node for node in nodes if node.name not in lost]


def still_to_rebuild(graph: Graph, rebuild: Iterable[str], failed: str) -> frozenset[str]:
    """Of the nodes to rebuild, those that are left and that the run had not come to when `failed` stopped it."""
    order = [step.name for step in validate_graph(graph, STAGES)]
    later = set(order[order.index(failed) + 1 :]) & {node.name for node in without(graph, failed).nodes}
    wanted = set(rebuild)
    return frozenset(later if ALL in wanted else wanted & later)


def _cut_evenly(node: Node) -> Node:
    """A cut that no table steers."""
    config = {field: value for field, value in node.config.items() if field not in BY_TABLE} | {"follow": "macs"}
    ports = {port: sources for port, sources in node.inputs.items() if port != "latency_table"}
    return node.model_copy(update={"config": config, "inputs": ports})


def _cut_from(name: str, nodes: Sequence[Node]) -> set[str]:
    """A cut, and what recovers from it or is cut further; nodes are in the order of the graph."""
    found = {name}
    for node in nodes:
        if node.stage in ("prune", "distill") and found & {
            *node.inputs.get("model", ()),
            *node.inputs.get("student", ()),
        }:
            found.add(node.name)
    return found


def _takes_whole(node: Node, cut: set[str], whole: tuple[str, ...]) -> Node:
    """A training of weights on levels takes the network before the cut; other nodes stay as they are."""
    if node.stage not in ON_LEVELS or not cut & {*node.inputs["student"]}:
        return node
    return node.model_copy(update={"inputs": {**node.inputs, "student": whole}})


def _unplugged(node: Node, gone: set[str]) -> Node | None:
    """The node without sources that are gone; None when a port that takes a single one is left empty."""
    inputs = {port: tuple(s for s in sources if s not in gone) for port, sources in node.inputs.items()}
    ports = STAGES.get(node.stage).ports
    if any(not sources and not ports[port].many for port, sources in inputs.items()):
        return None
    return node.model_copy(update={"inputs": {port: sources for port, sources in inputs.items() if sources}})
