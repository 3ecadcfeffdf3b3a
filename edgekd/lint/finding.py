"""What a lint says, as plain data: findings that name a node, and the report that holds them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from edgekd.core.schema import Schema

Severity = Literal["error", "warning", "info"]
"""`error`: will not build, or computes something else; `warning`: costs speed or accuracy; `info`: worth knowing."""
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")


class Finding(Schema):
    """One thing that one node does to one kind of engine.

    Attributes:
        rule: Registry key of the rule.
        severity: See `Severity`.
        runtimes: Of the target, that it concerns.
        node: The node's name; a node without one is called by its operator and first output. Empty for the graph.
        op: The node's operator; empty for the graph.
        found: What is there, with figures.
        why: What it costs.
        fix: What to do.
        fixable: `--fix` does it.
        macs_share: Share of the graph's multiply-accumulates that is affected, in [0, 1]; None where it says nothing.
        measured: By which runtime and version this was seen; empty for what follows from the graph.
    """

    rule: str
    severity: Severity
    runtimes: tuple[str, ...]
    node: str = ""
    op: str = ""
    found: str
    why: str
    fix: str
    fixable: bool = False
    macs_share: float | None = Field(default=None, ge=0, le=1)
    measured: str = ""


class LintReport(Schema):
    """All findings on one graph, for one target.

    Attributes:
        schema_version: Of this layout.
        target: Name of the card, or what stands for one.
        runtimes: That were asked about.
        family: What the graph looks like; see `edgekd.lint.family`.
        opset: Of the default domain.
        nodes: Number of nodes, constants left out.
        macs_m: Multiply-accumulates of one image in millions; None where shapes are open.
        int8_macs_share: Share of them that reads 8-bit values, in [0, 1]; None likewise.
        findings: The worst first, then in the graph's order.
        not_checked: What was left out, each with the reason.
    """

    schema_version: Literal[1] = 1
    target: str
    runtimes: tuple[str, ...]
    family: str
    opset: int
    nodes: int
    macs_m: float | None = None
    int8_macs_share: float | None = None
    findings: tuple[Finding, ...] = ()
    not_checked: tuple[str, ...] = ()

    def count(self, severity: Severity) -> int:
        """How many findings are of a severity."""
        return sum(finding.severity == severity for finding in self.findings)

    @property
    def fixable(self) -> int:
        """How many `--fix` takes care of."""
        return sum(finding.fixable for finding in self.findings)
