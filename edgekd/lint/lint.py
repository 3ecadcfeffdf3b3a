"""Runs the rules on a graph, and sums up what they found."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from edgekd.errors import BuildFailed
from edgekd.lint.family import family_of_graph
from edgekd.lint.finding import SEVERITIES, Finding, LintReport
from edgekd.lint.measured import ASKED
from edgekd.lint.rule import LINTS, Surroundings
from edgekd.lint.view import LintGraph
from edgekd.runtimes.engines.settings import INT8, INT8_FP16
from edgekd.runtimes.session import RUNTIMES

SHOWN_NODES = 3
RUNTIME_OF_SCHEME = {
    INT8: "tensorrt",
    INT8_FP16: "tensorrt",
    "ort-u8s8": "onnxruntime",
    "openvino": "openvino",
}


def lint(model: onnx.ModelProto, where: Surroundings, *, rules: Sequence[str] = ()) -> LintReport:
    """What the rules find on a graph.

    Args:
        model: Left as it was.
        where: What it is judged for.
        rules: Names of the rules to ask; empty for all.

    Raises:
        UserError: An unknown rule.
    """
    graph = LintGraph(model)
    found: list[Finding] = []
    for name in rules or LINTS:
        rule = LINTS.get(name)()
        if rule.concerned(where) and (where.measures or not rule.measures):
            found += rule.findings(graph, where)
    found.sort(key=lambda finding: (SEVERITIES.index(finding.severity), graph.place.get(finding.node, -1)))
    return LintReport(
        target=where.target,
        runtimes=where.runtimes,
        family=family_of_graph(graph),
        opset=graph.opset,
        nodes=len(graph.nodes),
        macs_m=graph.macs / 1e6 if graph.macs else None,
        int8_macs_share=graph.int8_share,
        findings=tuple(found),
        not_checked=_not_checked(graph, where),
    )


def check_built(model: onnx.ModelProto, scheme: str, made_by: str) -> tuple[str, ...]:
    """What a stage says of the INT8 graph that it built: a sentence per rule that warns; no runtime is asked.

    Args:
        model: The graph.
        scheme: Form of INT8; one without a runtime of its own is not judged.
        made_by: The step, for the message.

    Raises:
        BuildFailed: The runtime that the scheme is for would refuse the graph, or compute something else.
    """
    runtime = RUNTIME_OF_SCHEME.get(scheme)
    if runtime is None:
        return ()
    where = Surroundings(target=scheme, runtimes=(runtime,), precisions=("int8",), measures=False)
    report = lint(model, where, rules=[name for name in LINTS if name not in ("channel-multiple", "float16-range")])
    errors = [finding for finding in report.findings if finding.severity == "error"]
    if errors:
        first = errors[0]
        raise BuildFailed(
            f"The graph that {made_by} made does not suit {runtime}: {first.node or 'graph'}: {first.found}. "
            f"{first.why} ({len(errors)} such findings)",
            hint=first.fix,
        )
    warnings: dict[str, list[Finding]] = {}
    for finding in report.findings:
        if finding.severity == "warning":
            warnings.setdefault(finding.rule, []).append(finding)
    return tuple(_sentence(rule, findings) for rule, findings in warnings.items())


def _sentence(rule: str, findings: list[Finding]) -> str:
    names = list(dict.fromkeys(finding.node for finding in findings if finding.node))
    shown = ", ".join(names[:SHOWN_NODES])
    if len(names) > SHOWN_NODES:
        shown += f" and {len(names) - SHOWN_NODES} more"
    return f"Lint {rule}: {shown or 'the graph'}: {findings[0].found}. {findings[0].why}"


def _not_checked(graph: LintGraph, where: Surroundings) -> tuple[str, ...]:
    said = []
    for name in where.runtimes:
        if name not in ASKED:
            continue
        found = RUNTIMES.get(name).availability()
        if where.measures and not found.ok:
            said.append(f"What {name} makes of the graph: {found.reason}; {found.install}")
    if not graph.macs:
        said.append("Shares of multiply-accumulates: axes beside the batch are open, or an operator has no shape rule")
    if where.ranges is None and "fp16" in where.precisions:
        said.append("Ranges in FP16: no samples; --data DATA gives them")
    return tuple(said)
