"""Options that contradict each other, and the loss that follows from them."""

from __future__ import annotations

from typing import Any

import pytest

from edgekd.errors import UserError
from edgekd.train.config import TrainConfig
from edgekd.train.loss_plan import plan_loss
from tests.train.conftest import config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 2, "warmup_epochs": 2}, "must be smaller than epochs"),
        ({"schedule": "onecycle", "warmup_epochs": 1}, "warms up by itself"),
        ({"momentum": 0}, "nesterov needs momentum"),
        ({"batch_size": 1}, "'batch_size'"),
        ({"epoch": 3}, "unknown key 'epoch'. Did you mean 'epochs'"),
    ],
)
def test_options_that_do_not_go_together_are_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        config(**options)


def test_a_config_survives_its_plain_form() -> None:
    chosen = config(objective="dist", objective_args={"temperature": 2.0}, teacher_views=3)
    assert TrainConfig.parse(chosen.plain(), "again") == chosen


def test_views_repeat_only_with_a_teacher() -> None:
    chosen = config(teacher_views=2)
    assert [chosen.view(epoch, teacher=True) for epoch in range(4)] == [0, 1, 0, 1]
    assert [chosen.view(epoch, teacher=False) for epoch in range(4)] == [0, 1, 2, 3]


def test_open_weights_and_warm_up_are_those_of_the_objectives_authors() -> None:
    plan = plan_loss(config(epochs=240, objective="dkd"), teacher=True, labelled=True)
    assert (plan.supervised, plan.distill, plan.warmup_epochs) == (1.0, 1.0, 20)
    plan = plan_loss(config(objective="kd"), teacher=True, labelled=True)
    assert (plan.supervised, plan.distill, plan.warmup_epochs) == (0.1, 0.9, 0)


def test_given_weights_are_taken() -> None:
    plan = plan_loss(config(supervised_weight=0, distill_weight=2), teacher=True, labelled=True)
    assert (plan.supervised, plan.distill) == (0, 2)


def test_without_labels_the_objective_alone_counts_fully() -> None:
    plan = plan_loss(config(objective="dist"), teacher=True, labelled=False)
    assert (plan.supervised, plan.distill) == (0, 1)


def test_a_supervised_weight_without_labels_is_an_error() -> None:
    with pytest.raises(UserError, match="the data has no labels"):
        plan_loss(config(supervised_weight=0.5), teacher=True, labelled=False)


def test_two_zero_weights_are_an_error() -> None:
    with pytest.raises(UserError, match="nothing to learn"):
        plan_loss(config(supervised_weight=0, distill_weight=0), teacher=True, labelled=True)


def test_a_teacher_without_objective_is_not_used_and_said() -> None:
    plan = plan_loss(config(objective=None), teacher=True, labelled=True)
    assert plan.objective is None
    assert plan.decisions == ("Trained with labels alone: no objective is given.",)
