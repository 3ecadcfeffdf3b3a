"""From what is connected to a stage to the teacher of a training: a network, a graph, several, or answers alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.preprocess import Preprocessing
from edgekd.core.recipe import ModelRecipe
from edgekd.core.stage import Context, Inputs, port
from edgekd.data.dataset import Dataset
from edgekd.errors import UserError
from edgekd.nn.build import is_trainable, module_from_bundle
from edgekd.runtimes.session import open_bundle
from edgekd.train.answers import Answers, answers_from_bundle, answers_spec
from edgekd.train.config import TrainConfig
from edgekd.train.group import TeacherGroup
from edgekd.train.objective import OBJECTIVES, TAPPED, Objective
from edgekd.train.reconcile import check_same_pixels, teacher_of_our_pixels
from edgekd.train.session_teacher import SessionTeacher

RUNTIME = "onnxruntime"
"""Runs teachers that are only a graph: every operator, and open batches."""

TEACHER_PORTS = {
    "teacher": port(BundleKind.TORCH, BundleKind.ONNX, optional=True),
    "teachers": port(BundleKind.TORCH, BundleKind.ONNX, optional=True, many=True),
    "answers": port(BundleKind.DATA, optional=True),
}
"""`teachers` are further ones beside `teacher`: their probabilities are averaged."""


def teacher_bundles(inputs: Inputs) -> tuple[tuple[str, ModelBundle], ...]:
    """(what to call it, bundle) of every teacher that is connected; `teacher` is the first."""
    first = inputs.maybe("teacher")
    return (*(() if first is None else (("teacher", first),)), *inputs.all("teachers"))


def teacher_count(inputs: Inputs) -> int:
    """How many teachers there are; stored answers alone are one."""
    return len(teacher_bundles(inputs)) or int(inputs.maybe("answers") is not None)


def check_teachers(inputs: Inputs, objectives: Sequence[Objective[Any]], ours: Preprocessing) -> None:
    """Makes sure that each teacher has what the objectives read and can see the student's pixels; reads no weights.

    Raises:
        UserError: It has not, or cannot.
    """
    asked = [objective for objective in objectives if objective.needs_teacher]
    bundles = teacher_bundles(inputs)
    if len(bundles) > 1 and inputs.maybe("answers") is not None:
        raise UserError(
            f"There are {len(bundles)} teachers, and stored answers are those of a single one.",
            hint="disconnect 'answers': the teachers are asked in the training, and teacher_views keeps what they say",
        )
    for name, bundle in bundles:
        check_same_pixels(ours, bundle.model.preprocessing, name)
        for objective in asked:
            if bundle.kind is BundleKind.ONNX:
                _refuse_inner(objective, "an ONNX graph")
            else:
                check_teacher_can_be_tapped(objective, bundle.model)
    if not bundles:
        for objective in asked:
            _refuse_inner(objective, "stored logits")


def check_teacher_can_be_tapped(objective: Objective[Any] | type[Objective[Any]], teacher: ModelRecipe) -> None:
    """Makes sure that a teacher has the inner signals that an objective reads; a frozen program has only logits.

    Raises:
        UserError: It has not; the message names objectives that do with logits.
    """
    if not is_trainable(teacher):
        _refuse_inner(objective, "a frozen program")


def _refuse_inner(objective: Objective[Any] | type[Objective[Any]], what: str) -> None:
    inner = sorted(objective.needs_of_teacher & TAPPED)
    if not inner:
        return
    outer = [name for name in OBJECTIVES if not OBJECTIVES.get(name).needs_of_teacher & TAPPED]
    verb = "are" if what.endswith("logits") else "is"
    gives = "which give no more" if what.endswith("logits") else "which gives logits only"
    raise UserError(
        f"The objective {objective.name!r} reads the teacher's {' and '.join(inner)}, but the teacher {verb} {what}, "
        f"{gives}.",
        hint=f"choose an objective that needs no more: {', '.join(outer)}; or give the teacher's weights with --arch",
    )


@contextmanager
def opened_teacher(
    inputs: Inputs, ours: Preprocessing, ctx: Context
) -> Iterator[tuple[nn.Module | None, tuple[str, ...]]]:
    """The teacher of the student's images, and what was decided about it; None where none is connected.

    Sessions of graphs are open inside of the block.

    Args:
        inputs: Of a stage with `TEACHER_PORTS`.
        ours: The student's preprocessing.
        ctx: Of the stage.

    Raises:
        UserError: A teacher that cannot see the student's pixels.
        DeviceUnavailable: A teacher is a graph, and its runtime is not installed.
    """
    found: list[nn.Module] = []
    said: list[str] = []
    with ExitStack() as sessions:
        for name, bundle in teacher_bundles(inputs):
            module = _module(bundle, ctx, sessions)
            adapted, decisions = teacher_of_our_pixels(module, bundle.model.preprocessing, ours, name)
            found.append(adapted)
            said += decisions
        if len(found) > 1:
            said.append(f"The student learns from {len(found)} teachers: the mean of their probabilities.")
        group = TeacherGroup(found) if len(found) > 1 else None
        yield group or (found[0] if found else None), tuple(said)


def _module(bundle: ModelBundle, ctx: Context, sessions: ExitStack) -> nn.Module:
    if bundle.kind is not BundleKind.ONNX:
        return module_from_bundle(bundle, ctx.blobs)
    session = sessions.enter_context(open_bundle(bundle, ctx.blobs, RUNTIME, threads=ctx.execution.threads))
    return SessionTeacher(session, bundle.outputs[0].name, str(bundle.content))


def stored_answers(inputs: Inputs, ctx: Context, config: TrainConfig) -> Answers | None:
    """The teacher's answers at the port `answers`, None when it is unconnected.

    Raises:
        UserError: They belong to other pixels than this training sees.
    """
    bundle = inputs.maybe("answers")
    if bundle is None:
        return None
    p, dataset = inputs.one("student").model.preprocessing, ctx.resource("data", Dataset)
    return answers_from_bundle(bundle, answers_spec(config, p, dataset, ctx.seed), ctx.blobs)
