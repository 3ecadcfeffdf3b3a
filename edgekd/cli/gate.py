"""`edgekd gate`: may this be merged? The verdict of a finished run, or of a bundle that is measured now."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from edgekd.cli.compress import budget_options
from edgekd.cli.device import board_from_flags, one_board_options
from edgekd.cli.options import SectionedCommand, section, verbosity_of
from edgekd.core.report import Budget
from edgekd.errors import UserError
from edgekd.export.manifest import is_package
from edgekd.gate.artifacts import METRICS_FILE, baseline_of_run, entry_of, judge_run, read_baseline, read_run
from edgekd.gate.baseline import Baseline, tolerating
from edgekd.gate.report import GateReport

LIMITS = ("max_latency_ms", "max_drop", "max_size_mib")
MEASURING_ONLY = {
    "baseline_bundle": "--baseline-bundle",
    "runtime": "--runtime",
    "threads": "--threads",
    "time_s": "--time",
    "data": "--data",
    "seed": "--seed",
    "device": "--device",
    "lab": "--lab",
    "tag": "--tag",
    "lock_clocks": "--lock-clocks",
    "device_python": "--device-python",
}


@click.command(cls=SectionedCommand, short_help="Judge a run or a bundle; the exit code is the verdict.")
@click.argument("target", type=click.Path(path_type=Path))
@budget_options
@section(
    "Baseline",
    click.option("--baseline", type=click.Path(path_type=Path), metavar="FILE", help="Accepted numbers (JSON)."),
    click.option(
        "--baseline-bundle",
        type=click.Path(path_type=Path),
        metavar="BUNDLE",
        help="Accepted bundle: measured in turns with TARGET, and the ratio is judged.",
    ),
    click.option(
        "--max-regression",
        metavar="SHARE",
        help="How much slower is allowed: 5% or 0.05. Default: the baseline's own tolerance, or 5%.",
    ),
    click.option("--write-baseline", type=click.Path(path_type=Path), help="Write a finished run as a baseline."),
)
@section(
    "Measuring a bundle",
    click.option("--runtime", help="Where to run; default: the one the bundle was chosen for."),
    click.option("--threads", type=click.IntRange(1), help="CPU threads; default: 1."),
    click.option(
        "--time",
        "time_s",
        type=click.FloatRange(min=0.1),
        metavar="SECONDS",
        help="Longest time of measuring; it stops earlier when the answer is clear. Default: 60.",
    ),
    click.option("--data", help="Labelled data to count the drop on."),
    click.option("--seed", type=click.IntRange(0), help="Of orders, and of the split of the data."),
)
@one_board_options
@section(
    "Answer",
    click.option("--on-inconclusive", type=click.Choice(["fail", "warn"]), default="fail", show_default=True,
                 help="fail: exit code 5; warn: exit code 0."),
    click.option("--allow-predicted", is_flag=True, help="A predicted latency may keep or miss the limit."),
    click.option("--format", "output_format", type=click.Choice(["text", "json", "junit", "markdown", "github"]),
                 default="text", help="Of the answer on standard output."),
    click.option("--junit", type=click.Path(path_type=Path), metavar="FILE", help="Also write JUnit XML."),
    click.option("--history", type=click.Path(path_type=Path), metavar="FILE", help="Also append to this history."),
    click.option("--label", help="What the code is, for the history. Default: the commit that CI names."),
    click.option("-v", "--verbose", is_flag=True, help="Say more; show the traceback of an error."),
    click.option("-q", "--quiet", is_flag=True, help="Only the answer, warnings and errors."),
)  # fmt: skip
def gate(**flags: Any) -> int:
    """Judge TARGET: the folder of a finished run from its records, or a bundle by measuring it.

    A bundle is a folder, an .edgekd file or an .onnx file.

    With --device the bundle, and the baseline's in turns with it, are measured on a board.

    Limits of a finished run that are not given are its own; a bundle needs at least one, or a baseline. Exit codes: 0
    PASS, 1 FAIL, 5 INCONCLUSIVE (too noisy for the time, predicted, or another device than the baseline's).
    """
    from edgekd.cli.gate_output import add_to_history, exit_code, show, write_junit

    warn = flags["on_inconclusive"] == "warn"
    report, asked = _judged_run(flags) if is_run(flags["target"]) else _judged_bundle(flags)
    if flags["junit"]:
        write_junit(report, flags["junit"], warn=warn)
    if flags["history"]:
        add_to_history(report, flags["history"], flags["label"])
    show(report, flags["output_format"], warn=warn)
    return exit_code(report.status, asked=asked, warn=warn)


def parse_share(text: str | None, flag: str) -> float | None:
    """0.05 from `5%` or `0.05`; None from None.

    Raises:
        UserError: Not a share from 0 to below 1: `5` could mean either.
    """
    if text is None:
        return None
    found = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*(%?)\s*", text)
    value = float(found[1]) / (100 if found[2] else 1) if found else -1.0
    if not 0 <= value < 1:
        raise UserError(f"{flag} {text!r}: expected a share such as 5% or 0.05.", hint=f"{flag} 5%")
    return value


def is_run(target: Path) -> bool:
    """Whether the target holds the records of a finished run, and not a bundle.

    Raises:
        UserError: It is not there.
    """
    if not target.exists():
        hint = "give the folder of a finished run, a bundle (a folder or an .edgekd file), or an .onnx file"
        raise UserError(f"No such file or folder: {target}.", hint=hint)
    if target.is_file():
        return target.suffix == ".json"
    if is_package(target):
        return False  # it holds the figures of its run as well, and is measured anew all the same
    is_bundle = (target / "manifest.json").exists() or (target / "bundle").is_dir()
    return (target / METRICS_FILE).is_file() or not is_bundle


def _judged_run(flags: dict[str, Any]) -> tuple[GateReport, bool]:
    """The verdict from a run's records, and whether anything was asked."""
    from edgekd.pipeline.gating.files import write_baseline

    run = read_run(flags["target"])
    for name, flag in MEASURING_ONLY.items():
        if flags[name] not in (None, (), False):
            raise UserError(
                f"{flag} is for a bundle that is measured; {flags['target']} is judged from the records of its run.",
                hint=f"give {flags['target']}/bundle",
            )
    budget, baseline = _budget(flags, run.budget), _baseline(flags)
    verdict = judge_run(run, budget, baseline, allow_predicted=flags["allow_predicted"])
    if flags["write_baseline"]:
        write_baseline(baseline_of_run(run), flags["write_baseline"])
        click.echo(f"wrote the baseline {flags['write_baseline']}", err=True)
    report = GateReport.of(
        verdict,
        subject=str(flags["target"]),
        device=run.profile.device,
        latency=entry_of(run.choice, run.profile).latency,
    )
    return report, _asked(budget, baseline is not None)


def _judged_bundle(flags: dict[str, Any]) -> tuple[GateReport, bool]:
    """The verdict of a measurement that is made now, and whether anything was asked."""
    from edgekd.cli.console import reporter_for
    from edgekd.cli.work import live
    from edgekd.pipeline.gating.judge import gate_bundle
    from edgekd.pipeline.gating.request import DEFAULT_TIME_S, GateRequest

    if flags["write_baseline"]:
        raise UserError("--write-baseline is for a finished run.", hint="edgekd baseline update FILE BUNDLE")
    if flags["max_regression"] and not (flags["baseline"] or flags["baseline_bundle"]):
        raise UserError("--max-regression needs a baseline.", hint="add --baseline FILE or --baseline-bundle BUNDLE")
    budget = _budget(flags, Budget())
    if not _asked(budget, bool(flags["baseline"] or flags["baseline_bundle"])):
        raise UserError(
            f"Nothing to judge {flags['target']} by: a bundle has no limits of its own, and none was given.",
            hint="add --max-latency-ms, --max-drop, --max-size-mib, --baseline or --baseline-bundle; "
            "edgekd profile measures without judging",
        )
    request = GateRequest(
        target=flags["target"],
        budget=budget,
        baseline=read_baseline(flags["baseline"]) if flags["baseline"] else None,
        baseline_path=flags["baseline"],
        baseline_bundle=flags["baseline_bundle"],
        max_regression=parse_share(flags["max_regression"], "--max-regression"),
        runtime=flags["runtime"],
        threads=flags["threads"] or 1,
        time_limit_s=flags["time_s"] or DEFAULT_TIME_S,
        data=flags["data"],
        seed=flags["seed"],
        allow_predicted=flags["allow_predicted"],
        board=board_from_flags(flags),
    )
    plain = "json" if flags["output_format"] == "json" else "text"
    with live(reporter_for(plain, verbosity_of(flags["verbose"], flags["quiet"]))) as reporter:
        report = gate_bundle(request, reporter)
    return report, _asked(request.budget, bool(request.baseline or request.baseline_bundle))


def _baseline(flags: dict[str, Any]) -> Baseline | None:
    share = parse_share(flags["max_regression"], "--max-regression")
    if not flags["baseline"]:
        if share is not None:
            raise UserError("--max-regression needs a baseline.", hint="add --baseline FILE")
        return None
    return tolerating(read_baseline(flags["baseline"]), max_regression=share)


def _budget(flags: dict[str, Any], own: Budget) -> Budget:
    """The limits of the run, with those that were given in their place."""
    given = {name: flags[name] for name in LIMITS if flags[name] is not None}
    if flags["max_latency_ms"] is not None:
        given["percentile"] = int(flags["percentile"])
    elif flags["percentile"] != "50":
        raise UserError("--percentile needs a latency limit to apply to.", hint="add --max-latency-ms 5")
    if flags["max_drop"] is not None:
        given["drop_type"] = flags["drop_type"]
    elif flags["drop_type"] != "absolute":
        raise UserError("--drop-type needs a drop to apply to.", hint="add --max-drop 0.01")
    return Budget.parse(own.plain() | given, "the budget flags")


def _asked(budget: Budget, against_baseline: bool) -> bool:
    return against_baseline or any(getattr(budget, name) is not None for name in LIMITS)
