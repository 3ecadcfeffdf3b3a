"""Runs a graph so that a node that fails stops only what is made from it; the rest of the graph goes on.

`Runner.run` stops at the first failure, which is right where one artifact is made. A table compares many: its nodes run
one at a time, against the same store and with the same keys, so that what a compression made is reused here.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from dataclasses import replace

from edgekd.core.bundle import ModelBundle
from edgekd.core.graph import ALL, Graph, Node
from edgekd.core.lock import Holder
from edgekd.core.plan import NodeReport
from edgekd.core.runner import Runner, RunSettings
from edgekd.errors import EdgekdError

Outcomes = dict[str, NodeReport | EdgekdError]


def run_each(runner: Runner, graph: Graph, inputs: Mapping[str, ModelBundle], settings: RunSettings) -> Outcomes:
    """The report of each node, or the error in its place; in the order of the graph.

    Args:
        runner: Of the stages and the store.
        graph: Its nodes stand in an order in which they can run.
        inputs: The graph's.
        settings: `rebuild` may name any of the nodes.

    Raises:
        UserError: The store is in use, or cannot be written: then no node could run.
    """
    known = {f"@{name}": bundle for name, bundle in inputs.items()}
    found: Outcomes = {}
    with runner.store.lock() as holder:
        for node in graph.nodes:
            lost = [source for source in node.sources if source not in known]
            if lost:
                found[node.name] = EdgekdError(f"It is made from {lost[0]}, which failed.")
                continue
            result = _one(runner, node, known, settings, holder)
            found[node.name] = result
            if isinstance(result, NodeReport):
                known[node.name] = result.bundle
    return found


def _one(
    runner: Runner, node: Node, known: Mapping[str, ModelBundle], settings: RunSettings, holder: Holder
) -> NodeReport | EdgekdError:
    """One node as a graph of its own, whose inputs are what it is made from."""
    bundles = {source.removeprefix("@"): known[source] for source in node.sources}
    alone = node.model_copy(
        update={
            "inputs": {port: tuple(f"@{s.removeprefix('@')}" for s in sources) for port, sources in node.inputs.items()}
        }
    )
    graph = Graph(inputs={name: bundle.kind for name, bundle in bundles.items()}, nodes=(alone,))
    wanted = settings.rebuild & {node.name, ALL}
    try:
        return runner.run(graph, bundles, replace(settings, rebuild=wanted), holder=holder).node(node.name)
    except EdgekdError as err:
        return err
    except Exception as err:  # noqa: BLE001 - a library that fails in its own way must not take the table along
        settings.reporter.message("".join(traceback.format_exception(err)), level="debug")
        return EdgekdError(f"{node.stage} ended with {type(err).__name__}: {err}")
