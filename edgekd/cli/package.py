"""`edgekd package`: a bundle as one file to hand over, and what such a file holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekd.cli.console import print_table
from edgekd.cli.options import SectionedCommand, section
from edgekd.core.text import mib, ms, percent
from edgekd.errors import UserError

if TYPE_CHECKING:
    from edgekd.core.deployment import DeployedEngine
    from edgekd.export.package import Package

_SHOWN = 16


@click.command(cls=SectionedCommand, short_help="Put a bundle into one file, or verify one.")
@click.argument("bundle", type=click.Path(path_type=Path), metavar="BUNDLE")
@section(
    "Main",
    click.option("-o", "--out", type=click.Path(path_type=Path), metavar="FILE.edgekd",
                 help="The file; default: model.edgekd."),
    click.option("--verify", is_flag=True, help="Write nothing: check every byte and say what is in it."),
    click.option("--expect-digest", metavar="SHA256",
                 help="Refuse any other package: the digest that its maker printed."),
    click.option("--format", "output_format", type=click.Choice(["text", "json"]), default="text",
                 show_default=True, help="Of the output."),
    click.option("-v", "--verbose", is_flag=True, help="Show the traceback of an error."),
)  # fmt: skip
def package(**flags: Any) -> int:
    """Put BUNDLE into one file that `edgekd-runtime` and every verb take in its place; the same bundle, the same bytes.

    BUNDLE is the folder of a run or of a package, or an .edgekd file. The printed digest stands for every byte in it:
    hand it over on another way than the file, or sign it with the tool you trust, and the receiver checks it with
    --expect-digest.

    \b
    edgekd package out -o model.edgekd
    edgekd package model.edgekd --verify --expect-digest 3b1f...
    """
    from edgekd.export.archive import SUFFIX, open_package, pack

    out: Path | None = flags["out"]
    if flags["verify"] and out is not None:
        raise UserError("--verify writes nothing, and -o says where to write.", hint="leave one of them out")
    with open_package(flags["bundle"], flags["expect_digest"]) as found:
        if not flags["verify"]:
            _require_current(found, flags["bundle"])
            out = out or Path(f"model{SUFFIX}")
            pack(found, out)
        _show(found, flags["bundle"], out, flags["output_format"])
    return 0


def _require_current(found: Package, source: Path) -> None:
    if found.manifest.schema_version < 2:
        raise UserError(
            f"{source} is a package of schema {found.manifest.schema_version}: no runtime can tell what to run in it.",
            hint="make it anew with this version: edgekd run OUT/resolved.yaml reuses all results",
        )


def _show(found: Package, source: Path, out: Path | None, output_format: str) -> None:
    engines = found.deployment.engines if found.deployment else ()
    sizes = {name: (found.folder / name).stat().st_size for name in found.manifest.files}
    if output_format == "json":
        plain = {
            "schema_version": 1,
            "source": str(source),
            "file": None if out is None else str(out),
            "digest": found.digest,
            "package_schema_version": found.manifest.schema_version,
            "files": {name: {"sha256": d, "size_bytes": sizes[name]} for name, d in found.manifest.files.items()},
            "engines": [engine.plain() for engine in engines],
            "facts": found.manifest.facts,
            "versions": found.manifest.versions,
        }
        click.echo(json.dumps(plain, indent=2, sort_keys=True))
        return
    rows = [[name, f"{size:,}", found.manifest.files[name][:_SHOWN]] for name, size in sorted(sizes.items())]
    print_table("", ["file", "bytes", "sha256"], rows, numeric_from=1)
    if engines:
        columns = ["engine", "format", "precision", "runtimes", "median", "accuracy", "size"]
        print_table("", columns, [_row(engine) for engine in engines], numeric_from=4)
        for engine in engines:
            click.echo(f"{engine.name}: {engine.reason}")
    else:
        click.echo("Nothing in it runs on a device yet: it has no deploy.json.")
    click.echo(f"\nevery byte of {source} is what its manifest says" if out is None else f"\npackage  {out}")
    click.echo(f"digest   {found.digest}")


def _row(engine: DeployedEngine) -> list[str]:
    latency = engine.latency
    mark = "" if latency is None or latency.origin == "measured" else "~"
    return [
        engine.name + (" (chosen)" if engine.chosen else ""),
        engine.format,
        engine.precision,
        ", ".join(engine.runtimes),
        "" if latency is None else mark + ms(latency.median_ms),
        "" if engine.accuracy is None else percent(engine.accuracy),
        mib(engine.size_mib),
    ]
