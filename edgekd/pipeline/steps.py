"""One row per engine: what each stage on the way to it bought, in accuracy, size and time."""

from __future__ import annotations

from collections.abc import Mapping

from edgekd.core.bundle import BundleKind
from edgekd.core.digest import Json
from edgekd.core.graph import Graph, Node
from edgekd.core.plan import Action
from edgekd.core.report import METRIC_NAMES, Metric
from edgekd.core.text import mib, ms, percent, points, significant
from edgekd.pipeline.compose import FINAL, PROFILE
from edgekd.pipeline.draft import TEACHER
from edgekd.pipeline.few_bits import CODEBOOK
from edgekd.pipeline.results import CONVERT, EXPORT, Results
from edgekd.report.data import Step

MADE_OF = ("model", "student")
"""Ports that take the network which a stage changes; a stage without them (`pick`) starts a new one."""
RECOVERED = "recover"
DONE = {"distill": "distilled", RECOVERED: "pruned"}
ON_LEVELS = {"qd": "weights", "dq": "learned levels"}
"""What weights of few bits are called, by how the node that trained them is named before their bits."""


def steps_of(results: Results) -> tuple[Step, ...]:
    """A step per deployable engine, the teacher's FP32 engine first."""
    nodes = {node.name: node for node in results.graph.nodes}
    parents = parents_of(results.graph)
    seen: set[str] = set()
    steps = []
    for name, parent in parents.items():
        ancestors = [n for n in ancestors_of(name, results.graph) if n not in seen]
        seen |= set(ancestors)
        steps.append(_step(name, parent, ancestors, nodes, results))
    return tuple(steps)


def parents_of(graph: Graph) -> dict[str, str]:
    """The engine that each deployable engine is compared with, in the order of the candidates.

    A twin is compared with its model's FP32 engine; that one with the FP32 engine of the network that the model was
    made from, or of the teacher where it began from nothing. The teacher's FP32 engine has no parent, "".
    """
    nodes = {node.name: node for node in graph.nodes}
    full: dict[str, str] = {}
    parents: dict[str, str] = {}
    for name in nodes[FINAL].inputs["candidates"]:
        model = trained_source(nodes[name], nodes)
        if model in full:
            parents[name] = full[model]
            continue
        # The FP32 engine comes first among the engines of a model, and a model after what it was made from.
        full[model] = name
        while model != TEACHER and full.get(model) in (None, name):
            model = _made_of(nodes[model])
        parents[name] = "" if full.get(model) in (None, name) else full[model]
    return parents


def table_of(steps: tuple[Step, ...], metric: Metric | None) -> tuple[str, list[str], list[list[str]]]:
    """(title, columns, rows) of the table on the console; the metric is None when nothing was evaluated."""
    first, by_detail = steps[0].latency_ms, {step.detail: step for step in steps}
    rows = []
    for step in steps:
        faster = "" if not (first and step.latency_ms) else f"{significant(first / step.latency_ms, 2)}x"
        latency = "" if step.latency_ms is None else ms(step.latency_ms)
        if latency and step.latency_origin == "predicted":
            latency = f"~{latency} predicted"
        rows.append(
            [
                ("→ " if step.chosen else "  ") + step.name,
                "" if step.accuracy is None else percent(step.accuracy.value),
                _against_full(step, by_detail.get(step.parent)),
                "" if step.size_mib is None else mib(step.size_mib),
                latency,
                faster,
                step.runtime,
            ]
        )
    said = "accuracy" if metric is None else METRIC_NAMES[metric]
    columns = ["model", said, "vs FP32", "size", "latency", "vs teacher", "runtime"]
    what = "median latency" if metric is None else f"{said} on the select split, median latency"
    return f"What each model buys ({what})", columns, rows


def _step(name: str, parent: str, made_for_it: list[str], nodes: dict[str, Node], results: Results) -> Step:
    trained = trained_source(nodes[name], nodes)
    run = results.run.node(name)
    counted = results.run.node(_exported(nodes[name], nodes)).metrics
    latency = results.latency(name)
    chosen = name == results.choice.candidate
    runtime = results.choice.runtime if chosen else latency.runtime if latency is not None else ""
    precision = str(run.bundle.tags.get("precision", "fp32")).upper()
    converted = run.bundle.kind is BundleKind.ENGINE and nodes[name].stage == CONVERT
    scheme = run.bundle.format if converted else run.bundle.tags.get("scheme")
    if nodes[name].stage == CODEBOOK:
        scheme = "packed"
    if scheme and run.bundle.tags.get("qat"):
        scheme = f"{scheme}, trained"
    return Step(
        name=f"{_title(trained)}, {precision}" + (f" ({scheme})" if scheme else "") + _floats(run.metrics),
        detail=name,
        branch="teacher" if trained == TEACHER else trained_parts(trained)[0],
        parent=parent,
        model=trained,
        accuracy=results.accuracy(name, "select", runtime or None) or results.accuracy(name, "select"),
        params_m=_number(counted.get("params_m")),
        macs_m=_number(counted.get("macs_m")),
        size_mib=results.size_mib(name),
        latency_ms=None if latency is None else latency.median_ms,
        latency_origin="measured" if latency is None else latency.origin,
        runtime=runtime,
        seconds=sum(results.run.node(n).seconds for n in made_for_it),
        reused=all(results.run.node(n).action is Action.REUSE for n in made_for_it) and bool(made_for_it),
        chosen=chosen,
    )


def _against_full(step: Step, full: Step | None) -> str:
    """What an engine loses or gains against the FP32 engine of the same model; nothing for that one itself.

    A student may distil well and still quantize badly: its INT8 engine then loses more here than the teacher's.
    """
    if full is None or step.accuracy is None or full.accuracy is None or step.model != full.model:
        return ""
    change = step.accuracy.value - full.accuracy.value
    return ("+" if change > 0 else "") + points(change)


def _floats(metrics: Mapping[str, Json]) -> str:
    """How many layers an INT8 engine leaves in float."""
    count = metrics.get("layers_in_float")
    return f", {count} layer{'' if count == 1 else 's'} in float" if count else ""


def trained_source(node: Node, nodes: dict[str, Node]) -> str:
    """The TORCH model an engine was made from: a node's name or the teacher."""
    while True:
        source = node.inputs["model"][0]
        if node.stage == EXPORT or (node.stage == CONVERT and (source not in nodes or nodes[source].stage != EXPORT)):
            return source
        node = nodes[source]


def _made_of(node: Node) -> str:
    """The TORCH model that a node changed; the teacher for a node that starts a new one, for it is to do the same."""
    return next((node.inputs[port][0] for port in MADE_OF if port in node.inputs), TEACHER)


def _exported(node: Node, nodes: dict[str, Node]) -> str:
    """The export node of the network that an engine was made from; it counts what the network holds."""
    model = trained_source(node, nodes)
    return next(n.name for n in nodes.values() if n.stage == EXPORT and n.inputs["model"][0] == model)


def _title(trained: str) -> str:
    """`Student 2, distilled`, from the name of the node that trained it."""
    if trained == TEACHER:
        return "Teacher"
    label, last, cut = trained_parts(trained)
    bits = last[2:]
    done = f"{bits}-bit {ON_LEVELS[last[:2]]}" if last[:2] in ON_LEVELS and bits.isdecimal() else DONE.get(last, last)
    return f"{title_of_label(label)}, {done}" + (f", cut {cut}" if cut else "")


def title_of_label(label: str) -> str:
    """`Student 2`, from the label of a branch."""
    return label.replace("-", " ").capitalize()


def trained_parts(trained: str) -> tuple[str, str, str]:
    """(label, what was done, number of the cut or ""): `student-2-recover-1` is cut 1 of student 2."""
    label, _, last = trained.rpartition("-")
    if last.isdecimal() and label.endswith(f"-{RECOVERED}"):
        return label.removesuffix(f"-{RECOVERED}"), RECOVERED, last
    return label, last, ""


def ancestors_of(name: str, graph: Graph) -> list[str]:
    """The node and everything before it, in the graph's order."""
    nodes = {node.name: node for node in graph.nodes}
    found: set[str] = set()
    waiting = [name]
    while waiting:
        current = waiting.pop()
        if current not in found and current in nodes and current != PROFILE:
            found.add(current)
            waiting += nodes[current].sources
    return [node.name for node in graph.nodes if node.name in found]


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None
