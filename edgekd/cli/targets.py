"""`edgekd targets`: the devices, in a table or one in full."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekd.cli.console import print_table, reporter_for
from edgekd.cli.device import board_from_flags, one_board_options
from edgekd.cli.options import SectionedCommand, section
from edgekd.cli.work import live
from edgekd.core.schema import suggest
from edgekd.core.text import counted
from edgekd.errors import DeviceUnavailable, UserError
from edgekd.targets.calibration import save_calibration
from edgekd.targets.load import HOST, known_targets, load_target
from edgekd.targets.schema import Target

if TYPE_CHECKING:
    from edgekd.core.stage import BoardAccess
    from edgekd.profiling.predict.calibrate import Measure

CALIBRATE = "calibrate"


@click.command(cls=SectionedCommand, short_help="List the devices, explain one, or calibrate one.")
@click.argument("words", nargs=-1, metavar="[NAME | calibrate NAME]")
@click.option("--format", "output_format", type=click.Choice(["text", "json"]), default="text", help="Output.")
@section(
    "Calibrate",
    click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="CPU threads."),
    click.option("--duration", "duration_s", type=click.FloatRange(0.01), default=1.0, show_default=True,
                 help="Seconds per network, at most."),
)  # fmt: skip
@one_board_options
def targets(words: tuple[str, ...], output_format: str, threads: int, duration_s: float, **board: Any) -> int:
    """List the devices that have cards; with NAME (or a card's path) explain one, with the source of each number.

    `edgekd targets calibrate NAME` times a designed set of small networks on the device and keeps the fitted latency
    model beside its card; later runs predict with it and say so. With --device the networks are timed on that board.
    """
    access = board_from_flags(board)
    if words[:1] == (CALIBRATE,):
        if len(words) != 2:
            raise UserError("targets calibrate takes the name of one target.", hint="edgekd targets calibrate host")
        return _calibrate(load_target(words[1]), threads, duration_s, output_format, access)
    if access is not None:
        raise UserError(
            "--device and --lab are for calibrating.", hint="edgekd targets calibrate NAME --device ssh://..."
        )
    if len(words) > 1:
        raise UserError(f"targets takes one name, got {len(words)}.{suggest(words[0], [CALIBRATE])}")
    found = known_targets() if not words else (load_target(words[0]),)
    if output_format == "json":
        click.echo(json.dumps([target.plain() for target in found], indent=2))
    elif not words:
        _print_list(found)
    else:
        _print_card(found[0])
    return 0


def _calibrate(target: Target, threads: int, duration_s: float, output_format: str, access: BoardAccess | None) -> int:
    from tempfile import TemporaryDirectory

    from edgekd.profiling.predict.calibrate import calibration_of

    with (
        live(reporter_for(output_format, 0)) as reporter,
        TemporaryDirectory() as folder,
    ):
        if access is None:
            runtime, measure, version = *_here(target, threads, duration_s), None
        else:
            from edgekd.profiling.remote.calibrate import board_calibrator

            found = board_calibrator(access, target)
            runtime, version = found.runtime, found.version
            measure = found.measure(threads=threads, duration_s=duration_s, reporter=reporter)
        calibration = calibration_of(target, runtime, threads, measure, Path(folder), version=version)
    path = save_calibration(calibration)
    if output_format == "json":
        click.echo(json.dumps({"path": str(path), **calibration.plain()}, indent=2))
        return 0
    error = calibration.model.relative_error
    click.echo(
        f"{target.name} is calibrated by {calibration.networks} networks timed in {calibration.runtime} with "
        f"{counted(threads, 'thread')}; median error {'unknown' if error is None else f'{error:.0%}'} on networks left "
        "out of the fit."
    )
    click.echo(f"Kept in {path}; later runs predict with it.")
    return 0


def _here(target: Target, threads: int, duration_s: float) -> tuple[str, Measure]:
    """The runtime of this machine, and what times networks in it.

    Raises:
        DeviceUnavailable: This machine is not the target, or has none of its runtimes.
    """
    from edgekd.profiling.predict.calibrate import local_measure
    from edgekd.profiling.predict.stage import main_runtime

    runtime = main_runtime(target) if target.measured_here else None
    if runtime is None:
        why = "this machine is not the device" if not target.measured_here else "none of its runtimes is installed here"
        raise DeviceUnavailable(
            f"{target.name} cannot be calibrated: {why}.",
            hint="reach the device with --device ssh://user@host, or run the command on it",
        )
    return runtime, local_measure(runtime, threads=threads, duration_s=duration_s)


def _print_list(found: tuple[Target, ...]) -> None:
    # Only a processor can be the host; the boards among them come before their families.
    host = load_target(HOST).name if any(t.measured_here and t.kind == "cpu" for t in found) else None
    rows = [
        [
            target.name + (" (this machine)" if target.measured_here else ""),
            ", ".join([HOST, *target.aliases] if target.name == host else target.aliases),
            ", ".join(support.runtime for support in target.runtimes),
            ", ".join(target.precisions),
            target.description,
        ]
        for target in found
    ]
    print_table("", ["target", "also", "runtimes", "precisions", "device"], rows, numeric_from=5)
    click.echo(
        "\nedgekd targets NAME explains one. Latency is measured where the target is this machine, else predicted."
    )


def _print_card(target: Target) -> None:
    click.secho(target.name, bold=True)
    click.echo(target.description)
    where = "measured here" if target.measured_here else "predicted: this machine is not the device"
    click.echo(f"\nlatency           {where}")
    click.echo(f"memory            {target.memory_mib:,} MiB")
    click.echo(f"channels          kept at multiples of {target.channel_multiple}")
    click.echo(f"threads           {', '.join(map(str, target.threads))}")
    if target.features:
        click.echo(f"instructions      {', '.join(target.features)}")
    for support in target.runtimes:
        scheme = f", INT8 as {support.scheme}" if support.scheme else ""
        click.echo(f"{support.runtime:<17} {support.versions}  {', '.join(support.precisions)}{scheme}")
        if support.notes:
            click.echo(f"{'':<17} {support.notes}")
    for precision, rate in target.peak.gmacs_per_s.items():
        click.echo(f"peak {precision:<12} {rate:,.0f} GMAC/s")
    click.echo(f"bandwidth         {target.peak.bandwidth_gb_s:,.1f} GB/s")
    if target.calibrated is not None:
        click.echo(f"calibration       {target.calibrated}")
    if target.peak.relative_error is not None:
        against = "published latencies" if target.calibrated is None else "networks left out of the fit"
        click.echo(f"prediction error  {target.peak.relative_error:.0%} (median, against {against})")
    click.echo("\nsources")
    for source in (*target.sources, *target.peak.sources):
        click.echo(f"  - {source}")
    if target.notes:
        click.echo(f"\n{target.notes}")
