"""`edgekd inspect`: what a device will make of an ONNX graph, and what to change before anything is built."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgekd.cli.options import SectionedCommand, section
from edgekd.core.text import counted
from edgekd.errors import UserError

if TYPE_CHECKING:
    from edgekd.lint.finding import Finding, LintReport
    from edgekd.lint.repair import Repair

SHOWN_NODES = 3
COLOURS = {"error": "red", "warning": "yellow", "info": "cyan"}
WIDTH = 110


@click.command("inspect", cls=SectionedCommand, short_help="Say what a device makes of an ONNX graph.")
@click.argument("model", type=click.Path(path_type=Path), metavar="MODEL.onnx|PACKAGE")
@section(
    "Main",
    click.option("--target", default="host", show_default=True, help="Device: its runtimes are asked about."),
    click.option("--runtime", "runtimes", multiple=True, help="Only this one of them. Repeat."),
    click.option("--data", help="Images whose ranges are looked at, for FP16; also what repairs are proven on."),
    click.option("--fix", is_flag=True, help="Mend what is safe, prove that it computes the same, write it to -o."),
    click.option("-o", "--out", type=click.Path(path_type=Path, dir_okay=False), help="The mended graph."),
    click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of drawn images and noise."),
)  # fmt: skip
@section(
    "Output",
    click.option("--all", "show_all", is_flag=True, help="Name every node, not the first three of a rule."),
    click.option("--format", "output_format", type=click.Choice(["text", "json"]), default="text", help="Output."),
)  # fmt: skip
def inspect_verb(
    model: Path,
    target: str,
    runtimes: tuple[str, ...],
    data: str | None,
    fix: bool,
    out: Path | None,
    seed: int,
    show_all: bool,
    output_format: str,
) -> int:
    """Look at MODEL for a device: placement of quantizers, grids, operators, opset, ranges, fusions.

    Every finding names the node, what is there, what it costs, and the fix; docs/lints.md lists the rules. ONNX Runtime
    and OpenVINO are asked what they make of the graph where they are installed; TensorRT is judged by the graph. Exit
    codes: 0 no errors, 1 errors (it will not build, or computes something else).

    \b
    edgekd inspect model.onnx --target jetson --fix -o fixed.onnx
    """
    if fix != (out is not None):
        missing, given = ("-o FILE", "--fix") if fix else ("--fix", "-o")
        raise UserError(f"{given} needs {missing}.", hint="edgekd inspect model.onnx --fix -o fixed.onnx")
    from edgekd.pipeline.inspecting import inspect_graph

    found = inspect_graph(model, target, runtimes=runtimes, data=data, out=out, seed=seed)
    final = found.after or found.report
    if output_format == "json":
        plain = {
            "report": found.report.plain(),
            "repair": found.repair and found.repair.plain(),
            "after": found.after and found.after.plain(),
            "notes": list(found.notes),
        }
        click.echo(json.dumps(plain, indent=2))
        return int(final.count("error") > 0)
    for note in found.notes:
        click.echo(f"• {note}")
    print_lint(found.report, show_all=show_all)
    if found.repair is not None and out is not None:
        _print_repair(found.repair, final, out)
    return int(final.count("error") > 0)


def print_lint(report: LintReport, *, show_all: bool) -> None:
    """Prints a report: a head, the findings by rule, what was not checked."""
    macs = "" if report.macs_m is None else f", {report.macs_m:,.1f} M multiply-accumulates"
    int8 = "" if not report.int8_macs_share else f", {report.int8_macs_share:.0%} of them on 8-bit values"
    click.echo(
        f"{report.target} ({', '.join(report.runtimes)}): {report.family}, opset {report.opset}, {report.nodes} "
        f"nodes{macs}{int8}"
    )
    groups: dict[tuple[str, str, tuple[str, ...], str, str], list[Finding]] = {}
    for finding in report.findings:
        key = (finding.rule, finding.severity, finding.runtimes, finding.why, finding.fix)
        groups.setdefault(key, []).append(finding)
    for findings in groups.values():
        _print_group(findings, show_all)
    for text in report.not_checked:
        click.echo(f"not checked: {text}")
    fixable = f"; --fix mends {report.fixable}" if report.fixable else ""
    click.echo(f"{_counts(report)}{fixable}" if report.findings else "nothing found")


def _counts(report: LintReport) -> str:
    errors, warnings = (counted(report.count(kind), kind) for kind in ("error", "warning"))
    return f"{errors}, {warnings}, {report.count('info')} info"


def _print_group(findings: list[Finding], show_all: bool) -> None:
    first = findings[0]
    head = f"{first.severity} {first.rule}"
    shares = [finding.macs_share for finding in findings if finding.macs_share is not None]
    share = f", {min(sum(shares), 1.0):.1%} of the multiply-accumulates" if shares else ""
    many = f" x{len(findings)}" if len(findings) > 1 else ""
    asked = f" [{first.measured}]" if first.measured else ""
    styled = click.style(head, fg=COLOURS[first.severity], bold=True)
    click.echo(f"\n{styled}{many} ({', '.join(first.runtimes)}{share}){asked}")
    shown = findings if show_all else findings[:SHOWN_NODES]
    for finding in shown:
        click.echo(_wrapped(f"{finding.op} {finding.node}: {finding.found}" if finding.node else finding.found, "  "))
    if len(findings) > len(shown):
        click.echo(f"  ... and {len(findings) - len(shown)} more (--all names them)")
    click.echo(_wrapped(f"why: {first.why}", "  "))
    fixable = sum(finding.fixable for finding in findings)
    marked = "" if not fixable else " (--fix does it)" if fixable == len(findings) else f" (--fix mends {fixable})"
    click.echo(_wrapped(f"fix: {first.fix}{marked}", "  "))


def _print_repair(repair: Repair, after: LintReport, out: Path) -> None:
    if not repair.changes:
        click.echo(f"\nNothing to mend; {out} is a copy.")
        return
    click.echo(f"\n{counted(len(repair.changes), 'change')}:")
    click.echo("\n".join(_unique(f"  {change}" for change in repair.changes)))
    click.echo(
        f"Proven with ONNX Runtime on {repair.samples} samples of {repair.origin}: outputs agree to "
        f"{repair.sqnr_db:.0f} dB, largest difference {repair.max_abs:.2g}."
    )
    click.echo(f"Written to {out}; left: {_counts(after)}.")


def _unique(lines: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(lines))


def _wrapped(text: str, indent: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent=indent, subsequent_indent=f"{indent}     ", break_long_words=False)
