"""Rules on what a runtime can read at all, and on what half precision can hold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from onnx import TensorProto

from edgekd.lint.finding import Finding, Severity
from edgekd.lint.float16_ranges import FLOAT16_MAX, HEADROOM, overflowing, risky
from edgekd.lint.rule import Rule, Surroundings
from edgekd.lint.tensorrt_operators import NEWEST_LIST, REFUSED, SINCE, newest_opset, text_of, versions_in
from edgekd.lint.view import LintGraph

TENSORRT = frozenset({"tensorrt"})
DOMAINS = ("", "ai.onnx")


class Opset(Rule):
    """An opset newer than TensorRT's parser reads.

    For runtimes that are installed the rule `refused` asks them instead.
    """

    name: ClassVar[str] = "opset"
    severity: ClassVar[Severity] = "error"
    runtimes: ClassVar[frozenset[str]] = TENSORRT
    summary: ClassVar[str] = "an opset that the target's TensorRT versions do not read"
    why: ClassVar[str] = "The parser refuses the file, or reads an operator by rules that have changed."
    fix: ClassVar[str] = "Export with --opset as given; converting a finished file changes operators."

    def findings(self, graph: LintGraph, where: Surroundings) -> Iterator[Finding]:
        versions = versions_in(where.versions.get("tensorrt", ""))
        beyond = [version for version in versions if newest_opset(version) < graph.opset]
        if beyond:
            names = ", ".join(f"{text_of(v)} (opset {newest_opset(v)})" for v in beyond)
            severity: Severity = "error" if len(beyond) == len(versions) else "warning"
            yield self.finding(
                where,
                None,
                f"the graph is of opset {graph.opset}, which is too new for TensorRT {names}",
                severity=severity,
                fix=f"Export with --opset {min(newest_opset(version) for version in beyond)}.",
            )


class UnsupportedOp(Rule):
    """Operators that TensorRT's parser has no importer for, by NVIDIA's list of each version."""

    name: ClassVar[str] = "unsupported-op"
    severity: ClassVar[Severity] = "error"
    runtimes: ClassVar[frozenset[str]] = TENSORRT
    summary: ClassVar[str] = "operators without an importer in the target's TensorRT versions"
    why: ClassVar[str] = "The parser stops at it: no importer registered, or plugin not found."
    fix: ClassVar[str] = "Replace the operator in the model, or take it out of the graph and compute it outside."

    def findings(self, graph: LintGraph, where: Surroundings) -> Iterator[Finding]:
        versions = versions_in(where.versions.get("tensorrt", "")) or (NEWEST_LIST,)
        for node in graph.model.graph.node:
            since = SINCE.get(node.op_type)
            if node.domain not in DOMAINS:
                yield self.finding(
                    where,
                    node,
                    f"{node.domain}.{node.op_type} is not of the ONNX standard",
                    fix="Export the FP32 graph, not one that another runtime has optimised; or supply a plugin.",
                )
            elif node.op_type in REFUSED:
                yield self.finding(where, node, f"TensorRT {text_of(NEWEST_LIST)} lists {node.op_type} as unsupported")
            elif since is None:
                found = f"{node.op_type} is not in NVIDIA's list for {text_of(NEWEST_LIST)}"
                yield self.finding(where, node, found, severity="warning")
            elif any(version < since for version in versions):
                old = ", ".join(text_of(version) for version in versions if version < since)
                severity: Severity = "error" if versions[-1] < since else "warning"
                yield self.finding(
                    where,
                    node,
                    f"TensorRT {old} does not import {node.op_type}; {text_of(since)} does",
                    severity=severity,
                    fix=f"Deploy on {text_of(since)} or newer, or write the operator out in simpler ones.",
                )


class Float16Range(Rule):
    """Values that leave the range of half precision.

    With samples, by the largest magnitudes seen; without, the operators that sum or square are named once.
    """

    name: ClassVar[str] = "float16-range"
    severity: ClassVar[Severity] = "warning"
    summary: ClassVar[str] = "values that overflow in FP16, on targets that offer it"
    why: ClassVar[str] = (
        f"Half precision ends at {FLOAT16_MAX:.0f}; larger values become infinite, and NaN behind that."
    )
    fix: ClassVar[str] = "Keep them in FP32, as the FP16 export does (edgekd export --precision fp16 --data ...)."

    def findings(self, graph: LintGraph, where: Surroundings) -> Iterator[Finding]:
        if "fp16" not in where.precisions or any(e.data_type == TensorProto.FLOAT16 for e in graph.constants.values()):
            return
        if where.ranges is None:
            yield from self._suspected(graph, where)
            return
        kept = overflowing(graph.model, where.ranges)
        for node in graph.model.graph.node:
            large = [name for name in node.output if name in kept.values]
            if large:
                found = f"{large[0]!r} reaches {where.ranges[large[0]]:.4g} on the samples"
                yield self.finding(where, node, f"{found}; {FLOAT16_MAX * HEADROOM:.0f} leaves headroom")
            elif node.output and node.output[0] in kept.operators:
                most = max(where.ranges.get(name, 0.0) for name in node.input)
                yield self.finding(where, node, f"it squares values up to {most:.4g}")

    def _suspected(self, graph: LintGraph, where: Surroundings) -> Iterator[Finding]:
        suspects = risky(graph.model).operators
        nodes = [node for node in graph.model.graph.node if node.output and node.output[0] in suspects]
        if nodes:
            kinds = ", ".join(sorted({node.op_type for node in nodes}))
            yield self.finding(
                where,
                nodes[0],
                f"{len(nodes)} operators sum or square many values ({kinds}); no samples show their ranges",
                severity="info",
                fix="Give --data, and their ranges are looked at.",
            )
