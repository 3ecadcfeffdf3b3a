"""What is refused before a training, with the student and the teacher at hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekd.core.bundle import ModelBundle
from edgekd.core.stage import Inputs
from edgekd.data.dataset import Dataset
from edgekd.errors import UserError
from edgekd.testing.harness import make_context, make_inputs
from edgekd.testing.toys import toy_bundle
from edgekd.train.student import check_student_and_teacher
from tests.train.conftest import config


def _inputs(folder: Path, teacher_form: str) -> Inputs:
    ctx = make_context(folder)
    student = toy_bundle(ctx.blobs, ctx.scratch)
    recipe = student.model.model_copy(update={"builder": "program", "kwargs": {"form": teacher_form}})
    teacher: ModelBundle = student.model_copy(update={"recipe": recipe})
    return make_inputs(student=student, teacher=teacher)


def test_an_objective_that_looks_inside_a_frozen_teacher_is_refused_before_any_work(
    tmp_path: Path, data: Dataset
) -> None:
    ctx = make_context(tmp_path, resources={"data": data})
    with pytest.raises(UserError, match=r"'kdpp' reads the teacher's embedding, but the teacher is a frozen") as caught:
        check_student_and_teacher(_inputs(tmp_path, "frozen"), ctx, config(objective="kdpp"))
    assert "kd, dkd, dist, " in str(caught.value.hint)


@pytest.mark.parametrize(
    ("form", "objective"),
    [("frozen", "kd"), ("frozen", "ofa"), ("frozen", "dhkd"), ("frozen", "pskd"), ("rebuilt", "kdpp")],
)
def test_a_teacher_that_has_what_the_objective_reads_is_accepted(
    tmp_path: Path, data: Dataset, form: str, objective: str
) -> None:
    ctx = make_context(tmp_path, resources={"data": data})
    inputs = _inputs(tmp_path, form)
    check_student_and_teacher(inputs, ctx, config(objective=objective))
    assert inputs.maybe("teacher") is not None
