"""`edgekd distill`: train one student, taught by one network or several."""

from __future__ import annotations

from typing import Any

import click

from edgekd.cli.compress import model_options, training_options
from edgekd.cli.options import SectionedCommand, parse_assignments, section, shared
from edgekd.cli.verb import carry_out, existing, fields, places, request_from

TRAINING = ("objective", "effort", "epochs", "batch_size", "lr", "teacher_views", "hard_augment", "augment", "flip")
"""Flags that are options of a compression too."""


@click.command(cls=SectionedCommand, short_help="Train a student, taught by a larger network.")
@click.argument("model", metavar="STUDENT")
@fields
@section(
    "Main",
    click.option("--teacher", help="Model file or package. Without: trained with the labels alone."),
    click.option("--teacher-arch", help="As --arch, for a teacher's state dict."),
    click.option("--teacher-arch-arg", "teacher_arch_args", multiple=True, metavar="KEY=VALUE",
                 help="Argument of the teacher's factory; repeat."),
    click.option("--also-teacher", "also", multiple=True, metavar="PACKAGE",
                 help="A further teacher: a package, .onnx or .pt2; what they say is averaged. Repeat."),
    click.option("--data", required=True, help="Image folder, .npz or calibration card."),
    click.option("--teacher-logits", metavar="FILE",
                 help="A teacher's logits on the training images, .npz with logits and data, instead of --teacher."),
    click.option("--unlabelled", help="Further images without labels: those that the teacher is sure of are added."),
    *places("distilled"),
    click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="Where to train."),
    click.option("--cpu-threads", type=click.IntRange(1), help="CPU threads of training; default: all cores."),
)  # fmt: skip
@training_options
@model_options
@shared
def distill(**flags: Any) -> int:
    """Train STUDENT on images, taught by --teacher, and write it as a package.

    STUDENT is a model file with --arch, a package of another verb, or an architecture that `edgekd search` wrote
    (student-1.json), which starts from random weights; a student with weights takes a fifth of the learning rate and
    half of the epochs. A teacher that is only a graph (.onnx) teaches by its logits. KEY=VALUE reaches any field of the
    training: grad_clip=1 augment.flip=false mixup=0.2 objectives='[{name: kd}, {name: at, weight: 1000}]'.

    \b
    edgekd distill search/student-1.json --teacher model.pt --teacher-arch timm:resnet18 --data photos/
    """
    teacher = None
    if flags["teacher"] is not None:
        teacher = {
            "path": existing(flags["teacher"]),
            "arch": flags["teacher_arch"],
            "arch_kwargs": parse_assignments(tuple(flags["teacher_arch_args"]), "--teacher-arch-arg"),
            "trust_pickle": flags["trust_pickle"] and flags["teacher_arch"] is None,
        }
    training = {name: flags[name] for name in TRAINING if flags[name] is not None}
    if training.get("epochs") is not None:
        training["recover_epochs"] = training["epochs"]  # so many were asked for, whatever the student starts from
    if flags["also"] and teacher is None:
        raise click.UsageError("--also-teacher adds to --teacher: give the first one with it.")
    also = [{"path": existing(path)} for path in flags["also"]]
    more: dict[str, Any] = {"teacher": teacher, "also": also, "training": training}
    more |= {name: existing(flags[name]) for name in ("unlabelled", "teacher_logits")}
    return carry_out(request_from("distill", flags, **more), flags)
