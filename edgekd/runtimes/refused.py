"""What a library says when it does not open a graph, as an error that names the operator, its node and the way on.

Libraries tell a missing operator in sentences of their own, most without the node that has it, some with the path of a
scratch file. Here the operators are read out of the sentence and found in the graph.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.core.bundle import BundleKind
from edgekd.errors import BuildFailed, EdgekdError, UserError
from edgekd.runtimes.session import RUNTIMES

if TYPE_CHECKING:
    import onnx  # a process that measures does without

_NAMED = (
    # ONNX Runtime: an operator of a foreign domain, one that the opset does not have, one without a kernel.
    re.compile(r"(?P<domain>[\w.]+):(?P<operator>\w+)\(-?\d+\) is not a registered function/op"),
    re.compile(r"No Op registered for (?P<operator>\w+) with domain_version"),
    re.compile(r"Could not find an implementation for (?:(?P<domain>[\w.]+)\.)?(?P<operator>\w+)\(\d+\)"),
)
_LISTED = re.compile(r"No conversion rule found for operations: (?P<names>[^\n]+)")
"""OpenVINO: `com.acme.Fancy, NoSuch-17`."""
_STANDARD = ("", "ai.onnx")
_Operator = tuple[str | None, str]
"""(domain, name); a domain of None was not told."""


def refusal(library: str, message: str, path: Path, *, runtime: str) -> EdgekdError:
    """The error for a graph that a library does not open.

    Args:
        library: Name and version.
        message: The library's own.
        path: The graph.
        runtime: Registry name of what was asked, which is no alternative to itself.

    Returns:
        `BuildFailed` with operator, node and opset where the library lacks one; otherwise `UserError` with its words.
    """
    lacking = dict(_operators(message))
    place = _first_node(path, lacking)
    if place is None:
        return UserError(f"{library} cannot load {path}: {message}")
    node, opset = place
    named = "::".join(part for part in (_shown(node.domain), node.op_type) if part)
    others = [name for name in RUNTIMES if name != runtime and BundleKind.ONNX in RUNTIMES.get(name).accepts]
    more = f", and {len(lacking) - 1} more" if len(lacking) > 1 else ""
    return BuildFailed(
        f"{library} has no {named} at {node.name or node.output[0]} ({_shown(node.domain) or 'ONNX'} opset {opset})"
        f"{more}; it says: {next(iter(lacking.values()))}",
        hint=f"replace the operator, export with another --opset, or use another runtime: {', '.join(others)}",
    )


def _operators(message: str) -> Iterator[tuple[_Operator, str]]:
    """Each operator that the library says it lacks, and the words in which it does."""
    for pattern in _NAMED:
        for found in pattern.finditer(message):
            yield (found.groupdict().get("domain"), found["operator"]), found.group().strip()
    for listed in _LISTED.finditer(message):
        for name in listed["names"].split(","):
            domain, _, operator = name.strip().rpartition(".")
            yield (domain or None, operator.partition("-")[0]), listed.group().strip()


def _first_node(path: Path, lacking: Collection[_Operator]) -> tuple[onnx.NodeProto, int] | None:
    """The first node of the graph, bodies included, with an operator that is lacking; and the opset of its domain."""
    if not lacking:
        return None
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError:
        return None  # what the library says of such a file is all there is to say
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    for node in _nodes(model.graph):
        for domain, operator in lacking:
            if node.op_type == operator and (domain is None or _shown(domain) == _shown(node.domain)):
                return node, opsets.get(node.domain, 0)
    return None


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from _nodes(body)


def _shown(domain: str) -> str:
    return "" if domain in _STANDARD else domain
