"""`edgekd quantize`: the INT8 graph of one network, for one device."""

from __future__ import annotations

from typing import Any

import click

from edgekd.cli.compress import model_options
from edgekd.cli.options import SectionedCommand, section, shared
from edgekd.cli.verb import carry_out, fields, places, request_from


@click.command(cls=SectionedCommand, short_help="Make the INT8 graph of a network.")
@click.argument("model", metavar="MODEL")
@fields
@section(
    "Main",
    click.option("--target", default="host", show_default=True, help="Device: its first runtime decides the form."),
    click.option("--data", help="Images that show the ranges of activations: folder, .npz or calibration card."),
    click.option("--scheme", help="Form of INT8: ort-u8s8, openvino, tensorrt-s8 or weight-only (needs no images)."),
    click.option("--calib-samples", type=click.IntRange(1), help="Calibration images; default: 300."),
    click.option("--calib-method", help="How ranges are found from what the images show."),
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
    given = {name: flags[name] for name in ("scheme", "calib_method") if flags[name] is not None}
    calibration = {} if flags["calib_samples"] is None else {"samples": flags["calib_samples"]}
    return carry_out(request_from("quantize", flags, config=given, calibration=calibration), flags)
