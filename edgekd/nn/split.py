"""Gives a flat program parts again: an exported graph has layers, but no blocks that could be exchanged.

A rebuilt program (`edgekd.nn.rebuild`) is one graph of layers and operators. Wherever a single value carries
everything on, the graph can be cut; it is cut in front of convolutions, so that what follows one (BatchNorm,
activation, the addition of a shortcut) stays with it. The residual blocks of a network come back that way.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import fx, nn

from edgekd.errors import UserError


def places_to_cut(module: fx.GraphModule) -> tuple[str, ...]:
    """Names of the nodes after which `split_` may cut, in order; none where the graph has no such place."""
    nodes = _working(module.graph)
    last_use = {node: max((nodes.index(user) for user in node.users if user in nodes), default=-1) for node in nodes}
    open_until = -1
    single = []
    for index, node in enumerate(nodes):
        # What came before is used up, so this node alone carries on.
        if open_until <= index and last_use[node] >= 0:
            single.append(index)
        open_until = max(open_until, last_use[node])
    cuts = []
    for index, following in zip(single, [*single[1:], len(nodes) - 1], strict=True):
        if any(_convolves(module, node) for node in nodes[index + 1 : following + 1]):
            cuts.append(nodes[index].name)
    return tuple(cuts)


def split_(module: nn.Module, cuts: Collection[str]) -> None:
    """Turns a flat graph in place into one that calls `part0`, `part1` ..., cut after the named nodes.

    Raises:
        UserError: The module is no graph, or lacks one of the nodes.
    """
    if not isinstance(module, fx.GraphModule):
        raise UserError(f"Only a rebuilt program can be split into parts, not a {type(module).__name__}.")
    nodes = _working(module.graph)
    missing = set(cuts) - {node.name for node in nodes}
    if missing:
        raise UserError(
            f"The recipe cuts the program after {min(missing)!r}, which it does not have.",
            hint="the code behind the rebuilding has changed since the bundle was made; use the version that made it",
        )
    parts: list[list[fx.Node]] = [[]]
    for node in nodes:
        parts[-1].append(node)
        if node.name in cuts:
            parts.append([])
    source = next(node for node in module.graph.nodes if node.op == "placeholder")
    whole = fx.Graph()
    value = whole.placeholder("images")
    made = []
    for index, part in enumerate(parts):
        made.append(fx.GraphModule(module, _graph_of(part, source), f"Part{index}"))
        value = whole.call_module(f"part{index}", (value,))
        source = part[-1]
    whole.output(value)
    for name in [name for name, _ in module.named_children()]:
        delattr(module, name)
    for name in [*module._parameters, *module._buffers]:
        delattr(module, name)
    for index, part_module in enumerate(made):
        module.add_module(f"part{index}", part_module)
    module.graph = whole


def _graph_of(part: Sequence[fx.Node], source: fx.Node) -> fx.Graph:
    """A graph of some consecutive nodes, which reads one value and gives the last one."""
    graph = fx.Graph()
    copies = {source: graph.placeholder("x")}
    for node in part:
        for read in node.all_input_nodes:
            if read.op == "get_attr" and read not in copies:
                copies[read] = graph.get_attr(str(read.target))
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(copies[part[-1]])
    return graph


def _working(graph: fx.Graph) -> list[fx.Node]:
    """The nodes that compute, in order."""
    return [node for node in graph.nodes if node.op in ("call_module", "call_function", "call_method")]


def _convolves(module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(module.get_submodule(str(node.target)), nn.Conv2d)
    return "conv2d" in str(node.target)
