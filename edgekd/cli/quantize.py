"""`edgekd quantize`: the INT8 graph of one network, for one device."""

from __future__ import annotations

from typing import Any

import click

from edgekd.cli.compress import calib_select, model_options
from edgekd.cli.options import SectionedCommand, section, shared
from edgekd.cli.verb import carry_out, fields, places, request_from

FIELDS = ("scheme", "calib_method", "rounding", "max_drop")
"""Flags that are fields of the stage's config."""


@click.command(cls=SectionedCommand, short_help="Make the INT8 graph of a network.")
@click.argument("model", metavar="MODEL")
@fields
@section(
    "Main",
    click.option("--target", default="host", show_default=True, help="Device: its first runtime decides the form."),
    click.option("--data", help="Images that show the ranges of activations: folder, .npz or calibration card."),
    click.option("--scheme", type=click.Choice(["ort-u8s8", "openvino", "tensorrt-s8", "weight-only"]),
                 help="Form of INT8, instead of the target's; weight-only needs no images."),
    click.option("--calib-samples", type=click.IntRange(1), help="Calibration images; default: 300."),
    calib_select,
    click.option("--calib-method", type=click.Choice(["auto", "minmax", "percentile", "entropy", "mse"]),
                 help="How ranges are found; default: the best on held-out samples."),
    click.option("--rounding", type=click.Choice(["nearest", "reconstruct"]),
                 help="Of weights: nearest level, or so that each layer's output changes least."),
    click.option("--max-drop", type=float,
                 help="Leave the most sensitive layers in float until no more is lost; exit code 1 if it is."),
    *places("quantized"),
)  # fmt: skip
@model_options
@shared
def quantize(**flags: Any) -> int:
    """Quantize MODEL after training, measure what it loses against FP32, and write the graph as a package.

    MODEL is a model file with --arch, a package of another verb, or an .onnx file. KEY=VALUE reaches any field of the
    stage. The loss is printed as the signal-to-noise ratio of the logits and the agreement of the predictions;
    `edgekd evaluate` gives the accuracy, `edgekd compare` the speed.

    \b
    edgekd quantize model.pt --arch timm:resnet18 --target host --data photos/
    """
    given = {name: flags[name] for name in FIELDS if flags[name] is not None}
    samples = {name: flags[name] for name in ("calib_samples", "calib_select")}
    return carry_out(request_from("quantize", flags, config=given, **samples), flags)
