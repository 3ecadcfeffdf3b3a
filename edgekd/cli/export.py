"""`edgekd export`: one network as an ONNX graph or as another runtime's engine, which provably computes the same."""

from __future__ import annotations

from typing import Any

import click

from edgekd.cli.compress import model_options
from edgekd.cli.options import SectionedCommand, section, shared
from edgekd.cli.verb import carry_out, fields, places, request_from
from edgekd.errors import UserError
from edgekd.export.convert import CONVERTERS


@click.command(cls=SectionedCommand, short_help="Write a network as an ONNX graph, or for ExecuTorch, ncnn, LiteRT.")
@click.argument("model", metavar="MODEL")
@fields
@section(
    "Main",
    click.option("--target", default="host", show_default=True, help="Device: decides the opset."),
    click.option("--data", help="Images that parity is proven on and INT8 is calibrated on; default: noise."),
    click.option("--runtime", type=click.Choice(["onnxruntime", *CONVERTERS]), default="onnxruntime", show_default=True,
                 help="onnxruntime: an ONNX graph, which OpenVINO and TensorRT read too. Others: their own format."),
    click.option("--precision", type=click.Choice(["fp32", "fp16", "int8"]), default="fp32", show_default=True,
                 help="fp16 keeps in FP32 what would overflow; int8 for executorch, litert (ONNX: edgekd quantize)."),
    click.option("--calib-samples", type=click.IntRange(1), help="Calibration images for INT8; default: 300."),
    click.option("--opset", type=click.IntRange(17), help="ONNX opset; default: the newest that the target reads."),
    click.option("--atol", type=float, help="Parity: tolerance relative to the spread of the logits."),
    click.option("--rtol", type=float, help="Parity: added tolerance relative to each logit."),
    *places("exported"),
)  # fmt: skip
@model_options
@shared
def export(**flags: Any) -> int:
    """Export MODEL, prove that the runtime computes what PyTorch does, and write a package.

    ONNX graphs have a dynamic batch; engines of ExecuTorch (.pte, computed by XNNPACK: FP32, INT8), ncnn (.param, .bin:
    FP32, FP16) and LiteRT (.tflite: FP32, INT8) take one image a run.

    MODEL is a model file with --arch, or a package of another verb. KEY=VALUE reaches any field of the stage.

    \b
    edgekd export pruned --target jetson --precision fp16
    edgekd export pruned --target raspberry-pi-5 --runtime executorch --precision int8 --data data/
    """
    given = {name: flags[name] for name in ("opset", "atol", "rtol") if flags[name] is not None}
    precision, samples = flags["precision"], flags["calib_samples"]
    if flags["runtime"] in CONVERTERS:
        if flags["opset"] is not None:
            raise UserError(f"--opset is of ONNX graphs, and {flags['runtime']} reads none.", hint="leave it out")
        given["precision"] = precision
        request = request_from("export", flags, config=given, convert_to=flags["runtime"], calib_samples=samples)
        return carry_out(request, flags)
    if precision == "int8":
        raise UserError(
            "An ONNX graph is quantized by a verb of its own, in the form that the target runs fast.",
            hint="edgekd quantize MODEL --target T --data D, or --runtime executorch",
        )
    return carry_out(
        request_from("export", flags, config=given, half=precision == "fp16", calib_samples=samples), flags
    )
