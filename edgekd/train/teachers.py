"""From what is connected to a stage to the teacher of a training: a network, a graph, several, or answers alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from torch import nn

from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.recipe import ModelRecipe
from edgekd.core.stage import Context, Inputs, port
from edgekd.errors import UserError
from edgekd.nn.build import is_trainable, module_from_bundle
from edgekd.runtimes.session import open_bundle
from edgekd.train.group import TeacherGroup
from edgekd.train.objective import OBJECTIVES, TAPPED, Objective
from edgekd.train.reconcile import check_same_classes, check_same_pixels, class_order, reconciled, reconciliation
from edgekd.train.session_teacher import SessionTeacher

RUNTIME = "onnxruntime"
"""Runs teachers that are only a graph: every operator, and open batches."""

STORED = "stored answers"

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


def check_teachers(inputs: Inputs, objectives: Sequence[Objective[Any]], student: ModelBundle) -> None:
    """Makes sure that each teacher has what the objectives read, and fits the student; reads no weights.

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
    check_teacher_may_learn(inputs, asked)
    for name, bundle in bundles:
        check_same_pixels(student.model.preprocessing, bundle.model.preprocessing, name)
        check_same_classes(student, bundle, name)
        if inputs.maybe("answers") is not None and class_order(bundle.model.labels, student.model.labels) is not None:
            raise UserError(
                "The stored answers are in the teacher's order of the classes, and the student has another.",
                hint="disconnect 'answers': the training then asks the teacher and turns its logits",
            )
        for objective in asked:
            if bundle.kind is BundleKind.ONNX:
                _refuse_inner(objective, "an ONNX graph")
            else:
                check_teacher_can_be_tapped(objective, bundle.model)
    if not bundles:
        for objective in asked:
            _refuse_inner(objective, STORED)


def check_teacher_may_learn(inputs: Inputs, objectives: Sequence[Objective[Any]]) -> None:
    """Makes sure that a teacher that is trained along has weights, and that nobody has stored what it says.

    Raises:
        UserError: It has none, or answers are connected.
    """
    for objective in objectives:
        if not objective.trains_teacher:
            continue
        if inputs.maybe("answers") is not None:
            _refuse_still(objective, "there are stored answers, which are those of a teacher that stands still")
        for _, bundle in teacher_bundles(inputs):
            if bundle.kind is BundleKind.ONNX:
                _refuse_still(objective, "the teacher is an ONNX graph")
            check_teacher_can_be_tapped(objective, bundle.model)


def check_teacher_can_be_tapped(objective: Objective[Any] | type[Objective[Any]], teacher: ModelRecipe) -> None:
    """Makes sure that a teacher has the inner signals that an objective reads, and weights where it trains them.

    A frozen program has only logits.

    Raises:
        UserError: It has not; the message names objectives that do with logits.
    """
    if is_trainable(teacher):
        return
    if objective.trains_teacher:
        _refuse_still(objective, "the teacher is a frozen program")
    _refuse_inner(objective, "a frozen program")


def _refuse_still(objective: Objective[Any] | type[Objective[Any]], why: str) -> NoReturn:
    raise UserError(
        f"The objective {objective.name!r} trains the teacher along, but {why}.",
        hint="give the teacher alone, with its weights (--arch), or choose bdkd or kd, which take it as it is",
    )


def _refuse_inner(objective: Objective[Any] | type[Objective[Any]], what: str) -> None:
    inner = sorted(objective.needs_of_teacher & TAPPED)
    if not inner:
        return
    outer = ", ".join(name for name in OBJECTIVES if not OBJECTIVES.get(name).needs_of_teacher & TAPPED)
    reads = f"The objective {objective.name!r} reads the teacher's {' and '.join(inner)}, but "
    if what == STORED:
        raise UserError(
            f"{reads}there are only stored answers: inner signals that were stored serve beside the teacher, which "
            "gives their sizes.",
            hint=f"connect the teacher too, or choose an objective that needs logits only: {outer}",
        )
    raise UserError(
        f"{reads}the teacher is {what}, which gives logits only.",
        hint=f"choose an objective that needs no more: {outer}; or give the teacher's weights with --arch",
    )


def teacher_from_inputs(inputs: Inputs, ours: ModelRecipe, ctx: Context) -> nn.Module | None:
    """The teacher of the student's images and classes; None where none is connected.

    Args:
        inputs: Of a stage with `TEACHER_PORTS`.
        ours: The student's recipe.
        ctx: Of the stage.

    Raises:
        UserError: A teacher that cannot see the student's pixels, or of other classes.
        DeviceUnavailable: A teacher is a graph, and its runtime is not installed.
    """
    found = [reconciled(_module(bundle, ctx), bundle.model, ours, name) for name, bundle in teacher_bundles(inputs)]
    if len(found) > 1:
        return TeacherGroup(found)
    return found[0] if found else None


def teacher_decisions(inputs: Inputs) -> tuple[str, ...]:
    """What is decided about the connected teachers, one sentence each; reads no weights."""
    bundles, ours = teacher_bundles(inputs), inputs.one("student").model
    said = [sentence for name, bundle in bundles for sentence in reconciliation(bundle.model, ours, name)]
    if len(bundles) > 1:
        said.append(f"The student learns from {len(bundles)} teachers: the mean of their probabilities.")
    return tuple(said)


def _module(bundle: ModelBundle, ctx: Context) -> nn.Module:
    if bundle.kind is not BundleKind.ONNX:
        return module_from_bundle(bundle, ctx.blobs)
    session = open_bundle(bundle, ctx.blobs, RUNTIME, threads=ctx.execution.threads)
    return SessionTeacher(session, bundle.outputs[0].name, str(bundle.content))
