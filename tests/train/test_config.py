"""Options that contradict each other, and the loss that follows from them."""

from __future__ import annotations

from typing import Any

import pytest

from edgekd.errors import UserError
from edgekd.train.config import TrainConfig
from edgekd.train.loss_plan import LossPlan, plan_loss
from edgekd.train.terms import terms_from_text
from tests.train.conftest import config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 2, "warmup_epochs": 2}, "must be smaller than epochs"),
        ({"schedule": "onecycle", "warmup_epochs": 1}, "warms up by itself"),
        ({"momentum": 0}, "nesterov needs momentum"),
        ({"batch_size": 1}, "'batch_size'"),
        ({"objective": "dkd", "objectives": [{"name": "kd"}]}, "does not go with objective:"),
        ({"objectives": [{"name": "kd", "from_epoch": 3, "until_epoch": 3}]}, "must be greater than from_epoch"),
        ({"objectives": [{"name": "kd", "final_weight": 1}]}, "needs a weight to start from"),
        ({"objectives": [{"name": "kd", "curve": "cosine"}]}, "which is not given"),
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


@pytest.mark.parametrize(
    ("options", "views"),
    [
        ({"teacher_views": 3, "augment": {"flip": True, "views": 2}}, 3),
        ({"augment": {"flip": True, "views": 2}}, 2),
        ({"augment": {"flip": True}}, 0),
        ({"augment": {}}, 1),
    ],
)
def test_pixels_repeat_after_the_views_of_the_teacher_or_of_the_augmentation(
    options: dict[str, Any], views: int
) -> None:
    chosen = config(**options)
    assert chosen.repeated_views == views
    assert [chosen.view(epoch, teacher=True) for epoch in range(4)] == [
        epoch % views if views else epoch for epoch in range(4)
    ]


def weights(plan: LossPlan) -> tuple[float, float, int]:
    """Of the cross-entropy and of the only objective, and the epochs of its fade-in."""
    (term,) = plan.terms
    return plan.supervised, term.schedule.weight, term.schedule.warmup_epochs


def test_open_weights_and_warm_up_are_those_of_the_objectives_authors() -> None:
    plan = plan_loss(config(epochs=240, objective="dkd"), teachers=1, labelled=True)
    assert weights(plan) == (1.0, 1.0, 20)
    plan = plan_loss(config(objective="kd"), teachers=1, labelled=True)
    assert weights(plan) == (0.1, 0.9, 0)


def test_given_weights_are_taken() -> None:
    plan = plan_loss(config(supervised_weight=0, distill_weight=2), teachers=1, labelled=True)
    assert weights(plan) == (0, 2, 0)


def test_without_labels_the_objective_alone_counts_fully() -> None:
    plan = plan_loss(config(objective="dist"), teachers=1, labelled=False)
    assert weights(plan) == (0, 1, 0)


def test_a_supervised_weight_without_labels_is_an_error() -> None:
    with pytest.raises(UserError, match="the data has no labels"):
        plan_loss(config(supervised_weight=0.5), teachers=1, labelled=False)


def test_two_zero_weights_are_an_error() -> None:
    with pytest.raises(UserError, match="nothing to learn"):
        plan_loss(config(supervised_weight=0, distill_weight=0), teachers=1, labelled=True)


def test_a_teacher_without_objective_is_not_used_and_said() -> None:
    plan = plan_loss(config(objective=None), teachers=1, labelled=True)
    assert not plan.terms
    assert plan.decisions == ("Trained with labels alone: no objective is given.",)


def test_several_objectives_are_one_sum_whose_decision_names_every_weight_and_schedule() -> None:
    terms = [
        {"name": "kd", "weight": 1.0, "warmup_epochs": 5},
        {"name": "at", "until_epoch": 30},
        {"name": "kd", "weight": 1, "final_weight": 0, "args": {"temperature": 1.0}},
    ]
    plan = plan_loss(config(epochs=60, objectives=terms), teachers=1, labelled=True)
    assert plan.decisions == (
        "Distilled with 0.1 * cross-entropy + 1 * kd, faded in over 5 epochs + 1000 * at, up to epoch 30 + "
        "(1 to 0, linear) * kd-2.",
    )


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("kd", [("kd", None)]),
        ("kd:0.5+dist:1", [("kd", 0.5), ("dist", 1.0)]),
        (" kd : 2e-1 + dist", [("kd", 0.2), ("dist", None)]),
    ],
)
def test_a_sum_is_spelled_with_colons_and_pluses(text: str, terms: list[tuple[str, float | None]]) -> None:
    assert [(term.name, term.weight) for term in terms_from_text(text)] == terms


@pytest.mark.parametrize("text", ["kd+", ":1", "kd:", "kd:heavy", "kd:-1", "kd:nan", ""])
def test_a_sum_that_cannot_be_read_names_its_part(text: str) -> None:
    with pytest.raises(UserError, match="is not NAME or NAME:WEIGHT"):
        terms_from_text(text)


def test_the_short_form_is_a_sum_of_one_term() -> None:
    short = plan_loss(config(objective="dkd", distill_weight=2, distill_warmup_epochs=1), teachers=1, labelled=True)
    term = {"name": "dkd", "weight": 2, "warmup_epochs": 1}
    long = plan_loss(config(objectives=[term]), teachers=1, labelled=True)
    assert (short.decisions, short.terms[0].schedule) == (long.decisions, long.terms[0].schedule)


def test_of_several_objectives_each_must_do_without_labels() -> None:
    chosen = config(objectives=[{"name": "kd"}, {"name": "dkd"}])
    with pytest.raises(UserError, match="'dkd' needs labels"):
        plan_loss(chosen, teachers=1, labelled=False)
    features = config(objectives=[{"name": "at"}, {"name": "sp"}])
    with pytest.raises(UserError, match="'at' and 'sp' compares features alone"):
        plan_loss(features, teachers=1, labelled=False)
    mixed = plan_loss(config(objectives=[{"name": "at"}, {"name": "kd"}]), teachers=1, labelled=False)
    assert [term.label for term in mixed.terms] == ["at", "kd"]


def test_an_objective_that_looks_inside_takes_one_teacher() -> None:
    with pytest.raises(UserError, match=r"'at' reads the feature_map of one teacher(.|\n)*kd, dkd, dist"):
        plan_loss(config(objective="at"), teachers=2, labelled=True)
    assert plan_loss(config(objective="kd"), teachers=2, labelled=True).terms


@pytest.mark.parametrize(
    ("options", "labelled", "message"),
    [
        ({"objectives": [{"name": "kd", "weight": 0, "final_weight": 1}]}, False, "In epoch 1 of 10 the student has"),
        ({"objectives": [{"name": "kd", "until_epoch": 5}]}, False, "In epochs 6 to 10 of 10 the student has nothing"),
        (
            {"objectives": [{"name": "kd", "from_epoch": 1, "until_epoch": 4}, {"name": "kd", "from_epoch": 5}]},
            False,
            r"In epochs 1, 5 of 10 (.|\n)*the data has no labels",
        ),
        ({"objective": "sp", "supervised_weight": 0}, True, "In epochs 1 to 10 of 10 nothing trains the .* classifier"),
        (
            {"objectives": [{"name": "soft", "until_epoch": 2}, {"name": "crd"}]},
            True,
            "In epochs 3 to 10 of 10 nothing trains the student's classifier: 'crd' reads features alone, and super",
        ),
    ],
)
def test_without_cross_entropy_no_epoch_may_leave_the_student_or_its_classifier_untaught(
    options: dict[str, Any], labelled: bool, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        plan_loss(config(epochs=10, **options), teachers=1, labelled=labelled)


def test_hints_may_come_before_the_classes_and_a_weight_may_fade_out_to_the_end() -> None:
    hints = [{"name": "fitnet", "until_epoch": 5}, {"name": "kd", "from_epoch": 5, "weight": 1, "final_weight": 0}]
    assert plan_loss(config(epochs=10, supervised_weight=0, objectives=hints), teachers=1, labelled=True).terms
    assert plan_loss(config(epochs=10, objectives=hints), teachers=1, labelled=False).terms
