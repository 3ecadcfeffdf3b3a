"""`edgekd compare`: which of several bundles is faster on this machine, as ratios with intervals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from edgekd.cli.console import print_table, reporter_for
from edgekd.cli.options import SectionedCommand, names_for, own_code, section, shared, verbosity_of
from edgekd.cli.profile import measuring
from edgekd.errors import UserError


@click.command(cls=SectionedCommand, short_help="Say which of several bundles is faster, and how sure that is.")
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="A B...")
@section(
    "Main",
    click.option("--runtime", "runtimes", multiple=True, help="Where to run; several compare runtimes. Default: the "
                 "first installed one that takes all models; an engine always runs in its own."),
    click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="CPU threads."),
    *measuring(warmup_s=0.5, duration_s=5.0),
    click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the order of turns."),
    own_code,
)  # fmt: skip
@shared
def compare(**flags: Any) -> int:
    """Measure models against each other, in random turns of one run.

    The answer is the ratio of each one's time to the first one's, with a 95 % interval over the rounds: faster, slower,
    or no difference shown. Two separate measurements could not tell a difference from the machine's mood.
    """
    from edgekd.pipeline.single import workbench
    from edgekd.profiling.compare import Contender, compare
    from edgekd.profiling.isolated import Engine
    from edgekd.profiling.measure import MeasurePlan

    reporter = reporter_for(flags["output_format"], verbosity_of(flags["verbose"], flags["quiet"]))
    plan = MeasurePlan(
        warmup_s=flags["warmup_s"], duration_s=flags["duration_s"], precision=flags["precision"], max_rounds=1000
    )
    with workbench(names_for(flags["models"]), flags["archs"]) as bench:
        runtimes = _runtimes_by_bundle(bench.bundles, flags["runtimes"])
        contenders = [
            Contender(candidate=name, engine=Engine(bundle=bundle, runtime=runtime, threads=flags["threads"]))
            for name, bundle in bench.bundles.items()
            for runtime in runtimes[name]
        ]
        report = compare(
            contenders,
            bench.store.blobs,
            plan,
            seed=flags["seed"],
            limit_s=flags["limit_s"],
            on_round=lambda done: reporter.progress("compare, percent", round(99 * done), 100),
        )
    reporter.progress("compare, percent", 100, 100)
    if flags["output_format"] == "json":
        click.echo(json.dumps(report.plain(), indent=2))
    else:
        for note in report.notes:
            reporter.message(f"• {note}")
        _print(report)
    return 0 if any(ratio.answer for ratio in report.ratios) else 3


def _runtimes_by_bundle(bundles: Any, asked: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Where each bundle runs: an engine in the runtime of its format, others as asked or in one that takes them all.

    Raises:
        UserError: There is no common one.
    """
    from edgekd.core.bundle import BundleKind

    others = {name: bundle for name, bundle in bundles.items() if bundle.kind is not BundleKind.ENGINE}
    usual = asked or ((_common_runtime(others),) if others else ())
    return {name: usual if name in others else (bundle.format,) for name, bundle in bundles.items()}


def _common_runtime(bundles: Any) -> str:
    """The first installed runtime that takes every bundle.

    Raises:
        UserError: There is none.
    """
    from edgekd.runtimes.session import RUNTIMES, described

    for name in RUNTIMES:
        if (
            all(RUNTIMES.get(name).takes(bundle) for bundle in bundles.values())
            and RUNTIMES.get(name).availability().ok
        ):
            return name
    kinds = {described(bundle) for bundle in bundles.values()}
    raise UserError(
        f"No installed runtime takes all of these bundles: they are {' and '.join(sorted(kinds))}.",
        hint="compare bundles of one kind; edgekd doctor lists what is installed",
    )


def _print(report: Any) -> None:
    first = report.reference_latency
    rows = [[*report.reference.rsplit("@", 1), f"{first.p50_ms:.3f}", "1", "", "reference", str(first.n)]]
    for ratio in report.ratios:
        shown = [ratio.candidate, ratio.runtime]
        if ratio.answer is None or ratio.latency is None:
            rows.append([*shown, "", "", "", "failed", ""])
            continue
        interval = f"{ratio.low:.3f} to {ratio.high:.3f}"
        rows.append(
            [*shown, f"{ratio.latency.p50_ms:.3f}", f"{ratio.ratio:.3f}", interval, ratio.answer, str(ratio.latency.n)]
        )
    columns = ["model", "runtime", "p50 ms", "ratio", "95 % interval", "answer", "N"]
    print_table(report.device, columns, rows, numeric_from=2)
    for ratio in report.ratios:
        click.echo(ratio.sentence)
