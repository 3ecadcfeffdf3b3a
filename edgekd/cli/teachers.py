"""`edgekd teachers`: which of several teachers should teach a student, by short pilots."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import click

from edgekd.cli.console import print_table, reporter_for
from edgekd.cli.options import (
    SectionedCommand,
    names_for,
    parse_assignments,
    parse_input_shape,
    parse_numbers,
    section,
    shared,
    verbosity_of,
)
from edgekd.core.stage import Execution
from edgekd.core.text import percent, points, significant
from edgekd.errors import UserError

PROGRAM = "-"
"""Stands for the architecture of a torch.export file, which holds its own."""


@click.command(cls=SectionedCommand, short_help="Find out which teacher suits a student.")
@section(
    "Main",
    click.option("--student", required=True, metavar="ARCH", help="Architecture, with arguments behind it: "
                 '"edgekd:residual depths=[1,1,1] widths=[16,16,32,64]" or timm:NAME.'),
    click.option("--student-weights", type=click.Path(path_type=Path), help="Where it starts; default: at random."),
    click.option("--teacher", "teachers", multiple=True, required=True, type=click.Path(path_type=Path),
                 metavar="FILE", help="A trained model: a torch.export file, or weights with --arch. Repeat."),
    click.option("--arch", "archs", multiple=True, metavar="ARCH",
                 help=f"Of each --teacher, in their order, as for --student; {PROGRAM} for a torch.export file."),
    click.option("--data", required=True, help="Labelled image folder, .npz or calibration card."),
    click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the split and the pilots."),
    click.option("--dry-run", is_flag=True, help="Print the shortlist and what would be piloted; train nothing."),
)  # fmt: skip
@section(
    "Input",
    click.option("--input-shape", metavar="CxHxW", help="Of the networks, 3x224x224; default: the architecture's own."),
    click.option("--mean", metavar="R,G,B", help="Per channel, of pixels in [0, 1]. Default: the architecture's own."),
    click.option("--std", metavar="R,G,B", help="Per channel, of pixels in [0, 1]. Default: the architecture's own."),
)
@section(
    "Pilots",
    click.option("--pilot-share", type=click.FloatRange(0, 1, min_open=True), default=0.1, show_default=True,
                 help="Length of a pilot over that of a full training."),
    click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Pilots of each teacher."),
    click.option("--most", type=click.IntRange(1), default=4, show_default=True, help="Most teachers to pilot."),
    click.option("--assistant", is_flag=True, help="Make a network between teacher and student, and pilot it too."),
)  # fmt: skip
@section(
    "Training",
    click.option("--objective", help="Distillation objective; see `edgekd objectives`."),
    click.option("--effort", type=click.Choice(["quick", "standard", "thorough"]), help="Of the full training."),
    click.option("--epochs", type=click.IntRange(1), help="Of the full training, instead of --effort."),
    click.option("--batch-size", type=click.IntRange(2), help="Images per step."),
    click.option("--lr", type=float, help="Peak learning rate of a new student."),
    click.option("--flip/--no-flip", default=None, help="Mirror training images; not for digits, text, signs."),
    click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="Where to train."),
    click.option("--cpu-threads", type=click.IntRange(1), help="CPU threads of training; default: all cores."),
)
@shared
def teachers(**flags: Any) -> int:
    """Find out which of several trained teachers suits a student.

    Teachers of two to six times the student's size, and the strongest one, are piloted: the student is trained under
    each for a tenth of the schedule, from the same start, and judged on the same held-out images. The advice is the
    teacher of the best pilot, and says so where no difference was seen.

    \b
    edgekd teachers --student timm:mobilenetv3_small_100 --data photos/ \\
        --teacher r18.pt --arch timm:resnet18 --teacher r50.pt --arch timm:resnet50
    """
    from edgekd.cli.work import live
    from edgekd.core.store import LocalStore
    from edgekd.pipeline.teachers import Advisor

    request = request_from_flags(flags)
    with live(reporter_for(flags["output_format"], verbosity_of(flags["verbose"], flags["quiet"]))) as reporter:
        execution = Execution(device=flags["device"], threads=flags["cpu_threads"])
        advisor = Advisor(request=request, store=LocalStore(flags["store"]), reporter=reporter, execution=execution)
        report = advisor.look() if flags["dry_run"] else advisor.advise()
    if flags["output_format"] == "json":
        click.echo(json.dumps(report.plain(), indent=2))
    else:
        _print(report)
    return 0


def request_from_flags(flags: dict[str, Any]) -> Any:
    """The `TeachersRequest` that the flags spell.

    Raises:
        UserError: A value of the wrong form, or not one `--arch` for each `--teacher`.
    """
    from edgekd.nn.overrides import PreprocessingOverrides
    from edgekd.pipeline.request import ModelSource, Options, absolute
    from edgekd.pipeline.teacher_request import TeachersRequest
    from edgekd.search.teachers.shortlist import ShortlistRule

    files, archs = flags["teachers"], flags["archs"] or (PROGRAM,) * len(flags["teachers"])
    if len(archs) != len(files):
        raise UserError(
            f"{len(files)} --teacher and {len(archs)} --arch: each teacher needs its own, in the same order.",
            hint=f"--arch {PROGRAM} stands for a torch.export file",
        )
    given = {name: parse_numbers(flags[name], f"--{name}") for name in ("mean", "std") if flags[name]}
    shape = parse_input_shape(flags["input_shape"]) if flags["input_shape"] else None
    sources = {}
    names = [name for name, _ in names_for(tuple(path.with_suffix("") for path in files))]
    for name, path, spec in zip(names, files, archs, strict=True):
        arch, kwargs = (None, {}) if spec == PROGRAM else parse_arch(spec, "--arch")
        sources[name] = ModelSource(
            path=absolute(str(path)),
            arch=arch,
            arch_kwargs=kwargs,
            input_shape=shape,
            preprocessing_overrides=PreprocessingOverrides.parse(given, "the preprocessing flags"),
        )
    arch, kwargs = parse_arch(flags["student"], "--student")
    weights = flags["student_weights"]
    return TeachersRequest(
        arch=arch,
        arch_kwargs=kwargs,
        weights=None if weights is None else absolute(str(weights)),
        teachers=sources,
        data=flags["data"],
        seed=flags["seed"],
        pilot_share=flags["pilot_share"],
        seeds=flags["seeds"],
        assistant=flags["assistant"],
        rule=ShortlistRule(most=flags["most"]),
        options=Options.parse(
            {name: flags[name] for name in Options.model_fields if flags.get(name) is not None}, "the flags"
        ),
    )


def parse_arch(text: str, flag: str) -> tuple[str, dict[str, Any]]:
    """(architecture, arguments) from `NAME KEY=VALUE ...`.

    Raises:
        UserError: No name, or what follows it are not assignments.
    """
    try:
        name, *pairs = shlex.split(text)
    except ValueError:
        raise UserError(
            f"{flag} {text!r}: expected NAME KEY=VALUE ...", hint=f'{flag} "edgekd:residual depths=[1,1,1]"'
        ) from None
    return name, parse_assignments(tuple(pairs), flag)


def _print(report: Any) -> None:
    plan = report.plan
    rows = [
        [c.teacher.name, "yes" if c.piloted else "no", c.reason, significant(c.teacher.size.params_m),
         f"{significant(c.gap_params, 2)}x",
         significant(c.teacher.size.macs_m), f"{significant(c.gap_macs, 2)}x", percent(c.teacher.accuracy),
         _fit(c.teacher)]
        for c in report.candidates
    ]  # fmt: skip
    size = report.student
    title = f"student: {significant(size.params_m)} M parameters, {significant(size.macs_m)} M MACs"
    columns = ["teacher", "piloted", "why", "params M", "gap", "MACs M", "gap", "top-1", "fit (LogME)"]
    print_table(title, columns, rows, numeric_from=3)
    if report.advice is None:
        count = sum(c.piloted for c in report.candidates)
        click.echo(
            f"\nNothing was trained. {count} teachers and labels alone, {plan.seeds} seeds each, {plan.epochs} of "
            f"{plan.full_epochs} epochs."
        )
    else:
        _print_pilots(report)
    if report.weights:
        shares = ", ".join(f"{name} {share:.2f}" for name, share in report.weights.items())
        click.echo(f"together   {shares}: shares by the fit of their features, for distill teacher_weights=[...]")
    if report.assistant is not None:
        keep, macs = percent(report.assistant.macs_keep, 0), significant(report.assistant.macs_m)
        click.echo(f"assistant  {report.assistant.teacher} cut to {keep} ({macs} M MACs): {report.assistant.reason}")
        made = report.assistant_made
        if made is None:
            click.echo("           --assistant makes and pilots it")
        else:
            size = f"{significant(made.size.params_m)} M parameters, {significant(made.size.macs_m)} M MACs"
            click.echo(f"           made with {size}, top-1 {percent(made.accuracy)}")


def _fit(teacher: Any) -> str:
    if teacher.fit is None:
        return ""
    return f"{teacher.fit:.3f} ({teacher.fit_low:.3f} to {teacher.fit_high:.3f})"


def _print_pilots(report: Any) -> None:
    advice, plan = report.advice, report.plan
    results = [*advice.pilots, *([advice.labels_alone] if advice.labels_alone else [])]
    rows = [
        [r.name, percent(r.accuracy), f"{percent(r.low)} to {percent(r.high)}",
         ", ".join(percent(value) for value in r.by_seed),
         *(["", ""] if r is advice.pilots[0] else
           [points(r.behind), f"{points(r.behind_low)} to {points(r.behind_high)}"])]
        for r in results
    ]  # fmt: skip
    click.echo()
    title = f"pilots of {plan.epochs} of {plan.full_epochs} epochs with {plan.objective}, on {plan.images} images"
    columns = ["teacher", "student", "95 % interval", "by seed", "behind", "95 % interval"]
    print_table(title, columns, rows, numeric_from=1)
    click.echo(f"\nadvice     {advice.teacher}")
    click.echo(f"           {advice.reason}")
