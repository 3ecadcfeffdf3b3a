"""`edgekd export`: one network as an ONNX graph that provably computes the same."""

from __future__ import annotations

from typing import Any

import click

from edgekd.cli.compress import model_options
from edgekd.cli.options import SectionedCommand, section, shared
from edgekd.cli.verb import carry_out, fields, places, request_from


@click.command(cls=SectionedCommand, short_help="Write a network as an ONNX graph.")
@click.argument("model", metavar="MODEL")
@fields
@section(
    "Main",
    click.option("--target", default="host", show_default=True, help="Device: decides the opset."),
    click.option("--data", help="Images that parity is proven on; default: noise."),
    click.option("--precision", type=click.Choice(["fp32", "fp16"]), default="fp32", show_default=True,
                 help="fp16 keeps in FP32 what would overflow."),
    click.option("--opset", type=click.IntRange(17), help="ONNX opset; default: the newest that the target reads."),
    click.option("--atol", type=float, help="Parity: tolerance relative to the spread of the logits."),
    click.option("--rtol", type=float, help="Parity: added tolerance relative to each logit."),
    *places("exported"),
)  # fmt: skip
@model_options
@shared
def export(**flags: Any) -> int:
    """Export MODEL with a dynamic batch, prove that ONNX Runtime computes what PyTorch does, and write a package.

    MODEL is a model file with --arch, or a package of another verb. KEY=VALUE reaches any field of the stage.

    \b
    edgekd export pruned --target jetson --precision fp16
    """
    given = {name: flags[name] for name in ("opset", "atol", "rtol") if flags[name] is not None}
    return carry_out(request_from("export", flags, config=given, half=flags["precision"] == "fp16"), flags)
