"""What a diverged training says, term by term."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from torch import Tensor, nn

from edgekd.data.dataset import Dataset
from edgekd.errors import BuildFailed
from edgekd.testing.harness import make_context
from edgekd.testing.toys import toy_cnn
from edgekd.train.checkpoint import FILE
from edgekd.train.divergence import Collapse, divergence
from edgekd.train.fit import distil_
from tests.train.conftest import PREPROCESSING, Train, config
from tests.train.test_resume import EVERY_STEP

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


Epoch = tuple[float, float]


def noticed(*epochs: Epoch) -> int | None:
    """After which epoch, counted from 1, (cross-entropy, accuracy) of four classes are taken for a collapse."""
    watch = Collapse(classes=4)
    return next((number for number, epoch in enumerate(epochs, 1) if watch.after_epoch(*epoch)), None)


def test_two_epochs_that_know_less_than_nothing_are_a_collapse() -> None:
    assert noticed((1.4, 0.3), (0.9, 0.7), (40.0, 0.25), (30.0, 0.24)) == 4
    assert noticed((1.4, 0.3), (0.9, 0.7), (40.0, 0.25), (0.9, 0.7), (40.0, 0.25), (0.8, 0.8)) is None


def test_two_balanced_classes_are_guessed_right_every_second_time() -> None:
    watch = Collapse(classes=2)
    found = [watch.after_epoch(*epoch) for epoch in ((0.6, 0.7), (0.05, 0.99), (40.0, 0.5), (60.0, 0.5))]
    assert found == [False, False, False, True]


@pytest.mark.parametrize(
    "epochs",
    [
        [(30.0, 0.25), (28.0, 0.26), (29.0, 0.25), (30.0, 0.2)],
        [(0.02, 1.0), (0.01, 1.0), (1.5, 0.4), (1.5, 0.4), (0.7, 0.8)],
        [(1.4, 0.4), (1.2, 0.5), (5.0, 0.5), (6.0, 0.5), (6.0, 0.5)],
        [(0.3, 0.9), (0.6, 0.8), (2.5, 0.1), (2.6, 0.1)],
        [(1.4, 0.3), (1.2, 0.5), (3.5, 0.2), (3.5, 0.2)],
    ],
    ids=[
        "bad from the first epoch on",
        "a pretrained student, warmed up",
        "a teacher that contradicts the labels",
        "hardly worse than guessing",
        "less than three times the best",
    ],
)
def test_other_rises_are_none(epochs: list[Epoch]) -> None:
    assert noticed(*epochs) is None


def test_a_collapse_is_remembered_over_an_interruption() -> None:
    before, after = Collapse(4), Collapse(4)
    for epoch in ((1.4, 0.3), (0.9, 0.7), (40.0, 0.25)):
        assert not before.after_epoch(*epoch)
    after.load(before.state())
    assert after.after_epoch(30.0, 0.25)


class Collapsing(nn.Module):
    """From its 13th training pass on it is surely wrong, and finite."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.passes = toy_cnn(seed=1), 0

    def forward(self, images: Tensor) -> Tensor:
        self.passes += self.training
        logits: Tensor = self.body(images)
        return logits if self.passes <= 12 else 0 * logits - 100 * logits.detach()


def test_a_training_that_diverges_and_stays_finite_is_stopped(
    train: Train, data: Dataset, teacher: nn.Module, tmp_path: Path
) -> None:
    with pytest.raises(
        BuildFailed,
        match=r"stays finite: the cross-entropy was \d+ in epoch 5 of 8, at learning rate .* guessing gives 1\.39; ",
    ) as raised:
        train(taught=False, student=Collapsing(), epochs=8)
    assert str(raised.value.hint).startswith("lower lr")
    ctx = make_context(tmp_path)
    options = config(epochs=8, objective="dist")
    with pytest.raises(BuildFailed, match=r"The cross-entropy makes up \d+% of the loss\. The newest") as raised:
        distil_(Collapsing(), teacher, data, PREPROCESSING, options, ctx, rhythm=EVERY_STEP)
    assert str(ctx.scratch / FILE) in raised.value.message


def test_without_a_cross_entropy_nothing_is_taken_for_a_collapse(train: Train) -> None:
    _, report, _ = train(student=Collapsing(), epochs=8, supervised_weight=0)
    assert report.steps == 32
