"""`edgekd compress`: the main job in one command."""

from __future__ import annotations

from pathlib import Path

import click

from edgekd.cli.options import (
    SectionedCommand,
    parse_assignments,
    parse_counts,
    parse_input_shape,
    parse_names,
    parse_numbers,
    running,
    section,
    shared,
)
from edgekd.core.report import Budget
from edgekd.errors import UserError
from edgekd.nn.overrides import PreprocessingOverrides
from edgekd.pipeline.request import SYNTHETIC, ModelSource, Options, Request, absolute

model_options = section(
    "Model",
    click.option(
        "--arch", help="timm:NAME, package.module:factory or edgekd:FAMILY; not needed for a torch.export file."
    ),
    click.option(
        "--arch-arg", "arch_args", multiple=True, metavar="KEY=VALUE", help="Argument of the factory; repeat."
    ),
    click.option("--input-shape", metavar="CxHxW", help="Input of the network, 3x224x224 or images:1x3x224x224."),
    click.option("--mean", metavar="R,G,B", help="Per channel, of pixels in [0, 1]. Default: the architecture's own."),
    click.option("--std", metavar="R,G,B", help="Per channel, of pixels in [0, 1]. Default: the architecture's own."),
    click.option(
        "--interpolation",
        type=click.Choice(["nearest", "bilinear", "bicubic", "lanczos"]),
        help="How images are resized.",
    ),
    click.option("--crop-fraction", type=float, help="Input size over resized size, 0.875 for 224 of 256."),
    click.option(
        "--channel-order", type=click.Choice(["RGB", "BGR"]), help="Order of channels that the network expects."
    ),
    click.option(
        "--labels", type=click.Path(path_type=Path), help="Class names in the order of the logits, one a line."
    ),
    click.option(
        "--trust-pickle", is_flag=True, help="Read a whole-module pickle: it can run any code on this machine."
    ),
    click.option("--license", metavar="TEXT", help="Of the model, for NOTICE.txt and the bill of materials."),
)
budget_options = section(
    "Budget",
    click.option("--max-latency-ms", type=float, help="Limit of the latency at batch 1."),
    click.option("--percentile", type=click.Choice(["50", "90", "95", "99"]), default="50", show_default=True,
                 help="Which percentile the latency limit is for."),
    click.option("--max-drop", type=click.FloatRange(0, 1),
                 help="Largest loss of accuracy against the teacher: 0.01 is one point."),
    click.option("--drop-type", type=click.Choice(["absolute", "relative"]), default="absolute", show_default=True,
                 help="What --max-drop counts: points, or a share of the teacher's accuracy."),
    click.option("--max-size-mib", type=float, help="Limit of the deployed model file."),
)  # fmt: skip
student_options = section(
    "Students",
    click.option("--students", default="search,prune", show_default=True, metavar="LIST",
                 help="search: find and distil a small network; prune: cut the teacher; blocks: replace its blocks by "
                 "cheaper ones. none: only quantize."),
    click.option("--space", help="Search space; default: residual up to 64 px, inverted above."),
    click.option("--searcher", help="How the search goes through the space; default: exhaustive where few fit."),
    click.option("--proxy", help="How the search ranks what fits the budget; see `edgekd search --list`."),
    click.option("--evaluations", type=click.IntRange(1), help="Architectures to score."),
    click.option("--picks", type=click.IntRange(1, 8), help="Searched students that go on, each on its own branch."),
    click.option("--prune-keep", type=float,
                 help="Share of MACs a searched student keeps; default: 0.75; 1 does not prune it."),
    click.option("--teacher-keep", type=float, help="Share of MACs the pruned teacher keeps; default: by the budget."),
    click.option("--importance", help="How pruning ranks channels: l2, l1, bn, lamp, flap, taylor, fisher or kd."),
    click.option("--prune-follow", type=click.Choice(["macs", "latency", "measured"]),
                 help="Cut evenly by MACs, or where the latency falls most for what is lost: as predicted, or by a "
                 "table of engines at several widths that is timed on the target first."),
    click.option("--prune-rounds", type=click.IntRange(1, 16),
                 help="Cuts, each of them recovered, measured and drawn; default: one."),
    click.option("--weight-bits", type=click.Choice(["2", "3", "4", "8"]),
                 help="Add a training after which weights have so few bits, and engines that store them so."),
    click.option("--weight-levels", type=click.Choice(["channel", "bucket", "learned"]),
                 help="Where the levels of those weights lie: even per output channel, even per 256 weights, or "
                 "trained. Default: channel."),
)  # fmt: skip
training_options = section(
    "Training",
    click.option("--objective", help="Distillation objective or a sum, kd:0.5+dist:1; see `edgekd objectives`."),
    click.option("--effort", type=click.Choice(["quick", "standard", "thorough"]), help="0.1, 1 or 5 million images."),
    click.option("--epochs", type=click.IntRange(1), help="Passes over the images, instead of --effort."),
    click.option("--recover-epochs", type=click.IntRange(1), help="After pruning; default: half of the epochs."),
    click.option("--batch-size", type=click.IntRange(2), help="Images per step."),
    click.option("--lr", type=float, help="Peak learning rate of a new student; recovery takes a fifth."),
    click.option("--teacher-views", type=click.IntRange(1), help="Augmented views of each image."),
    click.option("--hard-augment", type=click.FloatRange(0, 1), metavar="SHARE",
                 help="Vary images as far as student and teacher disagree; 0.4 is usual, 0 is none."),
    click.option("--augment/--no-augment", default=None, help="Vary training images at all."),
    click.option("--flip/--no-flip", default=None, help="Mirror training images; not for digits, text, signs."),
)  # fmt: skip
calib_select = click.option(
    "--calib-select",
    type=click.Choice(["stratified", "random", "coverage"]),
    help="How they are chosen; coverage: as far apart as possible for the model. Default: stratified.",
)
engine_options = section(
    "Engines",
    click.option(
        "--precision", "precisions", metavar="LIST", help="Of fp32, fp16, int8: which to build. Default: all."
    ),
    click.option(
        "--quantize",
        type=click.Choice(["ptq", "qat"]),
        help="ptq: calibrate INT8 engines; qat: also train each one. Default: ptq.",
    ),
    click.option("--calib-samples", type=click.IntRange(1), help="Calibration images."),
    calib_select,
    click.option(
        "--calib-method",
        type=click.Choice(["auto", "minmax", "percentile", "entropy", "mse"]),
        help="How activation ranges are found; default: the best on held-out samples.",
    ),
    click.option(
        "--rounding",
        type=click.Choice(["nearest", "reconstruct"]),
        help="Of INT8 weights: nearest level, or so that each layer's output changes least.",
    ),
    click.option("--equalize/--no-equalize", default=None, help="Give neighbouring layers like weight ranges first."),
    click.option(
        "--mixed",
        type=click.IntRange(0, 6),
        metavar="N",
        help="Add N INT8 engines with 1, 2, 4 ... of the most sensitive layers in float.",
    ),
    click.option("--opset", type=click.IntRange(17), help="ONNX opset."),
    click.option("--atol", type=float, help="Parity with PyTorch: tolerance relative to the spread of the logits."),
    click.option("--rtol", type=float, help="Parity with PyTorch: added tolerance relative to each logit."),
    click.option("--threads", metavar="LIST", help="CPU threads of the measurement, 1 or 1,2."),
    click.option("--warmup", "warmup_s", type=float, help="Seconds before measuring."),
    click.option("--duration", "duration_s", type=float, help="Seconds of measuring per engine."),
    click.option(
        "--bundle-engines",
        type=click.Choice(["twins", "chosen"]),
        help="Hand over the chosen engine with its FP32 and other runtimes' twins, or alone. Default: twins.",
    ),
)


@click.command(cls=SectionedCommand, short_help="Compress a model for a device within a latency budget.")
@click.argument("model", metavar="MODEL.PT")
@section(
    "Main",
    click.option("--target", required=True, help="Device: a name from `edgekd targets`, or a card (YAML)."),
    click.option("--data", help="Image folder, .npz, calibration card, or `synthetic`. Without: what needs no data."),
    click.option(
        "--teacher-logits",
        metavar="FILE",
        help="Learn from the logits of another teacher on the training images: .npz with logits and data.",
    ),
    click.option("--unlabelled", help="Further images without labels: those that the teacher is sure of are added."),
    click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="The only source of randomness."),
    *running("out"),
)
@budget_options
@model_options
@student_options
@training_options
@engine_options
@shared
def compress(**flags: object) -> int:
    """Compress MODEL.PT for a device: search, distil, prune, quantize, export, measure and judge.

    MODEL.PT is a torch.export program (.pt2), a state dict (torch.save or safetensors) with --arch, or a package that
    `distill` or `prune` wrote. Results: OUT/bundle (what deploys), OUT/report.html, OUT/metrics.json and
    OUT/resolved.yaml, which `edgekd run` takes.
    """
    from edgekd.cli.work import Job, start

    request = request_from_flags(flags)
    options = options_from_flags(flags)
    return start(Job.from_flags(flags), request=request, options=options)


def request_from_flags(flags: dict[str, object]) -> Request:
    """The request that the flags spell.

    Raises:
        UserError: A value of the wrong form.
    """
    model = model_source_from_flags(flags)
    budget = {
        "max_latency_ms": flags["max_latency_ms"],
        "percentile": int(str(flags["percentile"])),
        "max_drop": flags["max_drop"],
        "drop_type": flags["drop_type"],
        "max_size_mib": flags["max_size_mib"],
    }
    data, unlabelled = _place(flags["data"]), _place(flags.get("unlabelled"))
    target = str(flags["target"])
    if target.endswith((".yaml", ".yml")):
        target = absolute(target)
    return Request(
        model=model,
        target=target,
        data=data,
        unlabelled=unlabelled,
        teacher_logits=_place(flags.get("teacher_logits")),
        budget=Budget.parse(budget, "the budget flags"),
        seed=int(str(flags["seed"])),
    )


def model_source_from_flags(flags: dict[str, object]) -> ModelSource:
    """The model that the argument and the flags of `model_options` name.

    Raises:
        UserError: A value of the wrong form.
    """
    shape = flags["input_shape"]
    return ModelSource(
        path=absolute(str(flags["model"])),
        arch=_text(flags["arch"]),
        arch_kwargs=parse_assignments(_texts(flags["arch_args"]), "--arch-arg"),
        input_shape=parse_input_shape(str(shape)) if shape else None,
        preprocessing_overrides=_preprocessing_overrides(flags),
        labels=_labels(flags["labels"]),
        trust_pickle=bool(flags["trust_pickle"]),
        license=_text(flags["license"]),
    )


def options_from_flags(flags: dict[str, object]) -> Options:
    """The options that the flags spell; those that were not given keep their defaults.

    Raises:
        UserError: A value that does not fit.
    """
    given = {name: flags[name] for name in Options.model_fields if flags.get(name) is not None}
    given["students"] = parse_names(str(flags["students"]), "--students", ("search", "prune", "blocks"))
    if flags["precisions"]:
        given["precisions"] = parse_names(str(flags["precisions"]), "--precision", ("fp32", "fp16", "int8"))
    if flags["threads"]:
        given["threads"] = parse_counts(str(flags["threads"]), "--threads")
    if flags["weight_bits"]:
        given["weight_bits"] = int(str(flags["weight_bits"]))
    return Options.parse(given, "the flags")


def _preprocessing_overrides(flags: dict[str, object]) -> PreprocessingOverrides:
    """What the preprocessing flags say; the rest stays the architecture's own."""
    given: dict[str, object] = {
        name: flags[name] for name in ("interpolation", "crop_fraction", "channel_order") if flags[name] is not None
    }
    given |= {name: parse_numbers(str(flags[name]), f"--{name}") for name in ("mean", "std") if flags[name]}
    return PreprocessingOverrides.parse(given, "the preprocessing flags")


def _labels(path: object) -> tuple[str, ...]:
    if path is None:
        return ()
    try:
        lines = Path(str(path)).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as err:
        raise UserError(f"--labels {path}: cannot be read ({err}).", hint="a text file, one class name a line") from err
    return tuple(line.strip() for line in lines if line.strip())


def _place(value: object) -> str | None:
    """A path that exists in its absolute form, any other text as it is."""
    text = _text(value)
    if text is None or text == SYNTHETIC or not Path(text).expanduser().exists():
        return text
    return absolute(text)


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _texts(value: object) -> tuple[str, ...]:
    return tuple(str(item) for item in value) if isinstance(value, tuple) else ()
