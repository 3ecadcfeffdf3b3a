"""What a diverged training says, term by term."""

from __future__ import annotations

import math
from pathlib import Path

from edgekd.train.divergence import divergence

NAN = math.nan
PLACE = "in epoch 1 of 3"


def test_when_all_terms_go_together_the_heaviest_before_is_named() -> None:
    sums = {"loss": NAN, "supervised": NAN, "kd": NAN, "at": NAN}
    before = {"loss": 10.0, "supervised": 1.0, "kd": 1.0, "at": 0.01}
    error = divergence(PLACE, sums, before, {"supervised": 1.0, "kd": 1.0, "at": 1000.0}, None)
    assert error.message == (
        "The loss became nan in epoch 1 of 3. Every term is not finite, as the student's own outputs are. Before that, "
        "the term 'at' made up 83% of the loss."
    )
    assert error.hint is not None
    assert error.hint.startswith("lower lr")


def test_one_bad_term_is_told_from_the_good_ones_and_the_checkpoint_named() -> None:
    sums = {"loss": NAN, "supervised": 2.0, "kd": NAN}
    error = divergence(PLACE, sums, {}, {"supervised": 0.1, "kd": 0.9}, Path("/kept"))
    assert "Not finite: the term 'kd'; finite: the cross-entropy." in error.message
    assert error.message.endswith("The last good checkpoint is kept: /kept.")
    assert "lower the weight of the term 'kd'" in str(error.hint)


def test_a_supervised_training_has_no_terms_to_tell_apart() -> None:
    error = divergence(PLACE, {"loss": math.inf, "supervised": math.inf}, {}, {"supervised": 1.0}, None)
    assert error.message == "The loss became inf in epoch 1 of 3."


def test_a_teacher_that_is_trained_along_is_named_as_such() -> None:
    sums = {"loss": NAN, "supervised": 2.0, "dml": 1.0, "teacher": NAN}
    error = divergence(PLACE, sums, {}, {"supervised": 1.0, "dml": 1.0, "teacher": 1.0}, None)
    assert (
        "Not finite: the loss of the teacher that is trained along; finite: the cross-entropy, the term"
        in error.message
    )
    assert str(error.hint).startswith("lower teacher_lr_share; or lower lr")
