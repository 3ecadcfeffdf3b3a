"""The last word of an objective: when it is asked, what it sees, what it may write, and what forbids it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgekd.core.digest import Json
from edgekd.data.dataset import Dataset
from edgekd.distill.objectives.dist import DIST
from edgekd.distill.objectives.fitnet import FitNet
from edgekd.distill.objectives.kd import KD
from edgekd.errors import UserError
from edgekd.testing.harness import make_context
from edgekd.testing.toys import toy_cnn
from edgekd.train.checkpoint import Rhythm
from edgekd.train.evaluate_torch import module_logits
from edgekd.train.fit import distil_
from edgekd.train.objective import Conclusion, Objective, Review
from edgekd.train.projection import WeightProjection
from tests.train.conftest import PREPROCESSING, Train, config

Conclude = Callable[[Objective[Any], Review], Conclusion]
NEVER = Rhythm(epoch_s=1e9, within_epoch_s=1e9)


class Interrupted(Exception):
    pass


@pytest.fixture
def concluding(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Gives classes of objectives a `conclude`."""

    def give(conclude: Conclude, *kinds: type[Objective[Any]]) -> None:
        for kind in kinds or (KD,):
            monkeypatch.setattr(kind, "conclude", conclude)
            monkeypatch.setattr(kind, "concludes", True)

    return give


def halve(objective: Objective[Any], review: Review) -> Conclusion:
    review.classifier.weight.mul_(0.5)
    return Conclusion(metrics={"halved": 1}, decisions=("The last layer was halved.",))


def test_it_rewrites_the_last_layer_and_nothing_else_and_its_words_are_reported(
    train: Train, concluding: Callable[..., None]
) -> None:
    plain, _, _ = train(folder="plain")
    concluding(halve)
    halved, report, _ = train(folder="halved")
    before, after = plain.state_dict(), halved.state_dict()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(changed) == 1
    assert torch.equal(after[changed[0]], before[changed[0]] / 2)
    assert report.concluded == {"kd": {"halved": 1}}
    assert report.decisions[-1] == "The last layer was halved."


def test_it_sees_the_final_weights_without_augmentation_and_only_as_many_images_as_it_asks_for(
    train: Train, concluding: Callable[..., None], data: Dataset
) -> None:
    seen: dict[str, Tensor] = {}

    def look(objective: Objective[Any], review: Review) -> Conclusion:
        assert not objective.training
        for name, batches in (("select", review.select()), ("ten", review.training(10)), ("all", review.training(999))):
            found = list(batches)
            seen[name] = torch.cat([batch.student.logits for batch in found])
            seen[f"{name}-labels"] = torch.cat([batch.labels for batch in found])
        return Conclusion()

    concluding(look)
    student, _, _ = train(ema_decay=0.5)
    for name, split in (("select", data.select), ("all", data.train)):
        expected = torch.from_numpy(module_logits(student, split, PREPROCESSING))
        torch.testing.assert_close(seen[name], expected, rtol=1e-4, atol=1e-5)
        assert seen[f"{name}-labels"].tolist() == split.labels.tolist()  # type: ignore[union-attr]
    assert len(seen["ten"]) == 10
    rows = [(seen["all"] - row).abs().amax(1).argmin().item() for row in seen["ten"]]
    assert rows == sorted(set(rows)), "different images of the training split, in its order"
    assert torch.equal(seen["all-labels"][rows], seen["ten-labels"])


def test_with_an_average_the_layers_beside_the_student_are_averaged_along(
    train: Train, concluding: Callable[..., None]
) -> None:
    seen: dict[str, Tensor] = {}

    def look(objective: Objective[Any], review: Review) -> Conclusion:
        seen["regressor"] = next(objective.parameters()).detach().clone()
        return Conclusion()

    concluding(look, FitNet)
    found = {}
    for folder, decay in (("raw", None), ("averaged", 0.99)):
        train(folder=folder, objective="fitnet", ema_decay=decay)
        found[folder] = seen["regressor"]
    assert not torch.equal(found["raw"], found["averaged"])
    torch.testing.assert_close(found["raw"], found["averaged"], rtol=0, atol=0.5)


def test_a_run_that_is_cut_off_in_its_conclusion_is_not_trained_again(
    tmp_path: Path, data: Dataset, teacher: nn.Module, concluding: Callable[..., None]
) -> None:
    passes, cut = 0, True

    def count(module: nn.Module, args: object) -> None:
        nonlocal passes
        passes += module.training

    def conclude(objective: Objective[Any], review: Review) -> Conclusion:
        halve(objective, review)
        if cut:
            raise Interrupted
        return Conclusion()

    concluding(conclude)
    options = config(ema_decay=0.9, teacher_views=2)
    students = {}
    for folder, interrupted in (("cut", True), ("cut", False), ("whole", False)):
        cut, student = interrupted, toy_cnn(seed=1)
        student.register_forward_pre_hook(count)
        ctx = make_context(tmp_path / folder)
        if interrupted:
            with pytest.raises(Interrupted):
                distil_(student, teacher, data, PREPROCESSING, options, ctx, rhythm=NEVER)
            passes = 0
            continue
        report = distil_(student, teacher, data, PREPROCESSING, options, ctx, rhythm=NEVER)
        students[folder] = student.state_dict(), report, passes
    (again, resumed, trained), (whole, straight, _) = students["cut"], students["whole"]
    assert (resumed.resumed_at_step, straight.resumed_at_step) == (3 * 4, None)
    assert trained == 0
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert (resumed.loss, resumed.train_accuracy) == (straight.loss, straight.train_accuracy)


def test_an_objective_that_ended_before_the_training_did_is_not_asked(
    train: Train, concluding: Callable[..., None]
) -> None:
    concluding(halve, DIST)
    terms = [{"name": "kd"}, {"name": "dist", "until_epoch": 2}]
    _, report, _ = train(objectives=terms)
    assert report.concluded == {}
    assert report.decisions[-1].startswith("The objective 'dist' ended with epoch 2 of 3")


def test_beside_others_it_concludes_and_two_that_would_are_refused(
    train: Train, concluding: Callable[..., None]
) -> None:
    concluding(halve, DIST)
    _, report, _ = train(objectives=[{"name": "kd"}, {"name": "dist", "weight": 1}])
    assert report.concluded == {"dist": {"halved": 1}}
    concluding(halve, KD, DIST)
    with pytest.raises(UserError, match="'kd' and 'dist' each rewrite the student's last layer"):
        train(objectives=[{"name": "kd"}, {"name": "dist", "weight": 1}])


def test_without_labels_nothing_can_be_decided(
    train: Train, concluding: Callable[..., None], unlabelled: Dataset
) -> None:
    concluding(halve)
    with pytest.raises(UserError, match="'kd' decides on labelled images") as caught:
        train(on=unlabelled)
    assert "objectives that do not need labels" in str(caught.value.hint)


class Grid(WeightProjection):
    def plain(self) -> Json:
        return "grid"

    def bind(self, module: nn.Module) -> None:
        return None

    def project_(self) -> None:
        return None

    def restore_(self) -> None:
        return None


def test_weights_that_are_kept_on_a_grid_are_not_rewritten(
    tmp_path: Path, data: Dataset, teacher: nn.Module, concluding: Callable[..., None]
) -> None:
    concluding(halve)
    with pytest.raises(UserError, match=r"'kd' rewrites the student's last layer.*keeps weights on a grid"):
        distil_(toy_cnn(), teacher, data, PREPROCESSING, config(), make_context(tmp_path), projection=Grid())


class Scaled(nn.Module):
    """Something comes after the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = toy_cnn(seed=1)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = 3 * self.body(images)
        return logits


def frozen() -> nn.Module:
    student = toy_cnn(seed=1)
    *_, last = (part for part in student.modules() if isinstance(part, nn.Linear))
    last.requires_grad_(False)
    return student


@pytest.mark.parametrize("student", [Scaled(), frozen()], ids=["scaled", "frozen"])
def test_a_student_without_a_last_layer_of_its_own_is_refused_before_the_training(
    student: nn.Module, train: Train, concluding: Callable[..., None]
) -> None:
    concluding(halve)
    with pytest.raises(UserError, match="not the output of one trainable Linear") as caught:
        train(student=student)
    assert "kd or dhkd" in str(caught.value.hint)
