"""`edgekd build`: the graphs of a bundle as TensorRT engines, built on the device and put into the bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekd.cli.console import print_table, reporter_for
from edgekd.cli.device import board_from_flags
from edgekd.cli.options import SectionedCommand, section, verbosity_of
from edgekd.cli.work import live
from edgekd.core.text import mib, ms

if TYPE_CHECKING:
    from edgekd.pipeline.build import BuildOutcome, BuildPlan, BuildRequest

_CONFIG = ("builder", "builds", "workspace_mib", "optimization_level", "time_limit_s", "allow_fp16", "dla_core",
           "version_compatible", "hardware_compatible", "probes", "duration_s", "atol", "rtol")  # fmt: skip


@click.command(cls=SectionedCommand, short_help="Build the TensorRT engines of a bundle on its device.")
@click.argument("bundle", type=click.Path(path_type=Path), metavar="BUNDLE")
@section(
    "Main",
    click.option("--engine", "engines", multiple=True, metavar="NAME",
                 help="Build this graph of the bundle. Repeat; default: all that TensorRT reads."),
    click.option("--builder", type=click.Choice(["auto", "python", "trtexec"]), default="auto", show_default=True,
                 help="TensorRT's Python API, or the program that JetPack ships."),
    click.option("--builds", type=click.IntRange(1, 16), default=1, show_default=True,
                 help="Build each so often and keep the fastest that passes parity."),
    click.option("--duration", "duration_s", type=click.FloatRange(0), default=2.0, show_default=True,
                 help="Seconds to time each engine."),
    click.option("-o", "--out", type=click.Path(path_type=Path),
                 help="Folder or .edgekd file; default: into the bundle itself."),
    click.option("--dry-run", is_flag=True, help="Print what would be built and the trtexec commands, and stop."),
)  # fmt: skip
@section(
    "Engine",
    click.option("--min-shapes", metavar="NAME:NxCxHxW", help="Smallest input; default: one image."),
    click.option("--opt-shapes", metavar="NAME:NxCxHxW", help="Input that kernels are chosen for; default: one image."),
    click.option("--max-shapes", metavar="NAME:NxCxHxW", help="Largest input; default: one image."),
    click.option("--max-batch", type=click.IntRange(1), help="The same as --max-shapes, as a number of images."),
    click.option("--allow-fp16", is_flag=True,
                 help="Let float32 layers run in half precision (TensorRT below 11)."),
    click.option("--no-tf32", is_flag=True, help="Keep float32 layers from TensorFloat-32."),
    click.option("--dla-core", type=click.IntRange(0), metavar="N",
                 help="Run what it can on a deep learning accelerator; the GPU takes the rest."),
    click.option("--version-compatible", is_flag=True,
                 help="The engine also runs in later releases of the same major version (8.6 and newer)."),
    click.option("--hardware-compatible", is_flag=True,
                 help="The engine also runs on other GPUs from Ampere on, usually slower (8.6 and newer)."),
)  # fmt: skip
@section(
    "Build",
    click.option("--workspace-mib", type=click.IntRange(1), metavar="MIB",
                 help="Scratch memory of a kernel; default: a quarter of the device's; halved when memory is short."),
    click.option("--optimization-level", type=click.IntRange(0, 5), help="0 builds fastest, 5 searches longest."),
    click.option("--time-limit-s", type=click.FloatRange(1), default=1800.0, show_default=True,
                 help="Seconds after which a build is ended."),
    click.option("--timing-cache", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
                 help="Read timings from it and write them to it; default: those in the bundle."),
)  # fmt: skip
@section(
    "Parity",
    click.option("--data", help="Images that parity is judged on; default: noise."),
    click.option("--probes", type=click.IntRange(1, 64), default=4, show_default=True, help="How many images."),
    click.option("--atol", type=float, help="Tolerance relative to the spread of the outputs."),
    click.option("--rtol", type=float, help="Added tolerance relative to each output."),
    click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the noise."),
)  # fmt: skip
@section(
    "On a board",
    click.option("--device", metavar="ssh://USER@HOST[:PORT]", help="Build on this board; default: on this machine."),
    click.option("--device-python", metavar="PATH", help="The board's Python; default python3."),
)  # fmt: skip
@section(
    "Running",
    click.option("--format", "output_format", type=click.Choice(["text", "table", "json"]), default="text",
                 help="Of output and progress; text and table are the same."),
    click.option("-v", "--verbose", is_flag=True, help="Say more; show the traceback of an error."),
    click.option("-q", "--quiet", is_flag=True, help="Only the result, warnings and errors."),
)  # fmt: skip
def build(**flags: Any) -> int:
    """Build the TensorRT engines of BUNDLE on the device it is for, and put them into it with their fingerprints.

    Each engine is built in a process of its own, run on a few images, compared with ONNX Runtime on the same graph, and
    kept only when it computes the same. Without a GPU the exit code is 3 and the trtexec command is printed. Not run on
    hardware by this version's tests.

    \b
    edgekd build out --device ssh://jetson@10.0.0.7 --builds 3
    """
    from edgekd.pipeline.build import build_package, plan_build

    request = _request(flags)
    if flags["dry_run"]:
        return _print_plan(request, plan_build(request), flags["output_format"])
    one = {**flags, "lab": None, "tag": (), "lock_clocks": False}
    board = board_from_flags(one)
    with live(reporter_for(flags["output_format"], verbosity_of(flags["verbose"], flags["quiet"]))) as reporter:
        outcome = build_package(request, board, reporter)
    _print_outcome(outcome, flags["output_format"])
    return 0


def _request(flags: dict[str, Any]) -> BuildRequest:
    """The request that the flags spell.

    Raises:
        UserError: Flags that contradict each other or do not fit the graph's input.
    """
    from edgekd.errors import UserError
    from edgekd.export.archive import open_package
    from edgekd.export.tensorrt import batches_from_shapes
    from edgekd.pipeline.build import BuildRequest

    shapes = {which: flags[f"{which}_shapes"] for which in ("min", "opt", "max")}
    if flags["max_batch"] is not None and flags["max_shapes"] is not None:
        raise UserError("--max-batch and --max-shapes say the same.", hint="give one of them")
    batches = {} if flags["max_batch"] is None else {"max_batch": flags["max_batch"]}
    if any(shapes.values()):
        with open_package(flags["bundle"]) as package:
            batches |= batches_from_shapes(shapes, package.bundle)
    config = {name: flags[name] for name in _CONFIG} | batches | {"tf32": not flags["no_tf32"]}
    given = {
        "source": str(flags["bundle"]),
        "out": None if flags["out"] is None else str(flags["out"]),
        "engines": flags["engines"],
        "config": config,
        "data": flags["data"],
        "timing_cache": None if flags["timing_cache"] is None else str(flags["timing_cache"]),
        "seed": flags["seed"],
    }
    return BuildRequest.parse(given, "the flags")


def _print_plan(request: BuildRequest, plan: BuildPlan, output_format: str) -> int:
    if output_format == "json":
        builds = [
            {"graph": planned.entry.name, "engine": planned.name, "commands": dict(planned.commands)}
            for planned in plan.builds
        ]
        found = {"schema_version": 1, "builds": builds, "skipped": list(plan.skipped), "config": request.config.plain()}
        click.echo(json.dumps(found, indent=2))
        return 0
    for planned in plan.builds:
        click.echo(f"{planned.name}, from {planned.entry.name} ({planned.entry.precision}):")
        for family, command in planned.commands.items():
            click.echo(f"  TensorRT {family}: {command}")
    for sentence in plan.skipped:
        click.echo(f"• {sentence}")
    click.echo("\nNothing was built. On the device or with --device, edgekd build also judges parity.")
    return 0


def _print_outcome(outcome: BuildOutcome, output_format: str) -> None:
    if output_format == "json":
        engines = {
            name: {
                "fingerprint": made.fingerprint.plain(),
                "gpu_compute_median_ms": made.median_ms,
                "build_s": made.build_s,
                "decisions": list(made.decisions),
            }
            for name, made in outcome.made.items()
        }
        found = {"schema_version": 1, "out": str(outcome.out), "digest": outcome.digest, "engines": engines}
        click.echo(json.dumps(found, indent=2))
        return
    rows = [
        [
            name,
            made.fingerprint.summary,
            made.fingerprint.builder,
            mib(made.size_mib),
            "" if made.median_ms is None else ms(made.median_ms),
            f"{made.build_s:.0f} s",
        ]
        for name, made in outcome.made.items()
    ]
    print_table("", ["engine", "runs only on", "builder", "size", "GPU compute", "build"], rows, numeric_from=3)
    click.echo(f"\nbundle   {outcome.out}")
    click.echo(f"digest   {outcome.digest}")
