"""The objectives on features in the training engine: networks of different widths, stored teachers, no labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from edgekd.core.recipe import ModelRecipe
from edgekd.errors import UserError
from edgekd.nn.build import module_from_recipe
from edgekd.testing.harness import make_context
from edgekd.testing.toy_data import toy_dataset
from edgekd.testing.toys import toy_cnn, toy_recipe
from edgekd.train.config import TrainConfig
from edgekd.train.fit import distil_
from tests.nn.zoo import Tokens, swin, vit
from tests.train.test_resume import EVERY_STEP, DropoutNet, Interrupted

FEATURES = ("sp", "pkt", "rkd", "at", "fitnet")
ADAPTING = ("dhkd", "dho", "lelp", "trg", "crd", "ofa", "reviewkd", "exits", "sla")


def wide() -> ModelRecipe:
    recipe = toy_recipe()
    return recipe.model_copy(update={"kwargs": {**recipe.kwargs, "widths": [12, 12, 24], "depths": [1, 2]}})


def config(objective: str) -> TrainConfig:
    return TrainConfig(epochs=3, batch_size=16, lr=0.01, objective=objective, teacher_views=2)


@pytest.mark.parametrize(
    "objective", [*FEATURES, "diswot", "dhkd", "dho", "lelp", "trg", "crd", "ofa", "reviewkd", "exits", "sla"]
)
def test_a_student_learns_from_a_wider_teacher(objective: str, tmp_path: Path) -> None:
    student, teacher = toy_cnn(seed=1), module_from_recipe(wide(), seed=2)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    p = toy_recipe().preprocessing
    report = distil_(student, teacher, toy_dataset(), p, config(objective), make_context(tmp_path))
    assert report.distill_loss is not None
    assert report.distill_loss > 0
    after = student.state_dict()
    assert set(after) == set(before)  # a regressor is not part of the student
    assert not torch.equal(after["stem.0.weight"], before["stem.0.weight"])


@pytest.mark.parametrize("objective", FEATURES)
def test_features_alone_do_not_train_a_classifier_so_labels_are_asked_for(objective: str, tmp_path: Path) -> None:
    student, teacher = toy_cnn(seed=1), toy_cnn(seed=2)
    p, data = toy_recipe().preprocessing, toy_dataset(labelled=False)
    with pytest.raises(UserError, match=f"'{objective}' compares features alone.*nothing would train") as caught:
        distil_(student, teacher, data, p, config(objective), make_context(tmp_path))
    assert str(caught.value.hint).startswith("objectives that do not need labels: kd, dist, diswot")


@pytest.mark.parametrize("objective", ["ofa", "dhkd", "dho", "soft", "taid"])
def test_a_transformer_teaches_a_convolutional_student(objective: str, tmp_path: Path) -> None:
    student, teacher, p = toy_cnn(seed=1), Tokens().eval(), toy_recipe().preprocessing
    report = distil_(student, teacher, toy_dataset(), p, config(objective), make_context(tmp_path))
    assert report.distill_loss is not None
    assert report.distill_loss > 0


def test_ofa_learns_without_labels_and_from_mixed_images(tmp_path: Path) -> None:
    p = toy_recipe().preprocessing
    mixed = config("ofa").model_copy(update={"teacher_views": 0, "mixup": 0.4})
    for number, (options, labelled) in enumerate(((config("ofa"), False), (mixed, True))):
        data, ctx = toy_dataset(labelled=labelled), make_context(tmp_path / str(number))
        report = distil_(toy_cnn(seed=1), toy_cnn(seed=2), data, p, options, ctx)
        assert report.distill_loss is not None
        assert report.distill_loss > 0


@pytest.mark.parametrize("made", [vit, swin])
@pytest.mark.parametrize("objective", ["fitnet", "sp", "at", "trg"])
def test_feature_maps_teach_between_a_transformer_and_a_convolutional_network(
    objective: str, made: Callable[[], nn.Module], tmp_path: Path
) -> None:
    p, data = toy_recipe(size=32).preprocessing, toy_dataset(n=40, size=32)
    short = config(objective).model_copy(update={"epochs": 1})
    transformer = made()
    for number, (student, teacher) in enumerate(((toy_cnn(seed=1), transformer), (transformer, toy_cnn(seed=2)))):
        before = {name: value.clone() for name, value in student.state_dict().items()}
        report = distil_(student, teacher, data, p, short, make_context(tmp_path / str(number)))
        assert report.distill_loss is not None
        assert report.distill_loss > 0
        assert any(not torch.equal(before[name], value) for name, value in student.state_dict().items())


@pytest.mark.parametrize("objective", ["taid", "pskd", "lelp", "crd"])
def test_what_an_objective_remembers_survives_an_interruption(objective: str, tmp_path: Path) -> None:
    teacher, data, p = toy_cnn(seed=2), toy_dataset(), toy_recipe().preprocessing

    def trained(folder: str, stop_at: int | None = None) -> tuple[dict[str, torch.Tensor], int | None]:
        student, ctx = DropoutNet(stop_at), make_context(tmp_path / folder)
        report = distil_(student, teacher, data, p, config(objective), ctx, rhythm=EVERY_STEP)
        return student.state_dict(), report.resumed_at_step

    expected, _ = trained("whole")
    with pytest.raises(Interrupted):
        trained("stopped", stop_at=7)
    got, resumed_at = trained("stopped")
    assert resumed_at == 7
    assert all(torch.equal(expected[name], got[name]) for name in expected)


@pytest.mark.parametrize("objective", ["pskd", "exits", "sla"])
def test_an_objective_without_a_teacher_trains_alone_and_as_it_does_beside_one(objective: str, tmp_path: Path) -> None:
    data, p, found = toy_dataset(), toy_recipe().preprocessing, []
    for number, teacher in enumerate((None, toy_cnn(seed=2))):
        student = toy_cnn(seed=1)
        options = config(objective).model_copy(update={"teacher_views": 0})
        distil_(student, teacher, data, p, options, make_context(tmp_path / str(number)))
        found.append(student.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
