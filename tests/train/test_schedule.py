"""Learning rates, and the weights of objectives over a training."""

from __future__ import annotations

from typing import Any

import pytest

from edgekd.errors import UserError
from edgekd.train.loss_plan import plan_loss
from edgekd.train.objective import Objective, Progress
from edgekd.train.schedule import learning_rate
from tests.train.conftest import Train, config


def rates(steps_per_epoch: int, **options: object) -> list[float]:
    options = {"lr": 1.0, **options}
    chosen = config(**options)
    return [learning_rate(chosen, step, steps_per_epoch) for step in range(chosen.epochs * steps_per_epoch)]


def test_cosine_falls_from_the_peak_to_almost_zero() -> None:
    values = rates(10, epochs=10)
    assert values[0] == 1
    assert values[50] == pytest.approx(0.5)
    assert values[-1] < 1e-3
    assert values == sorted(values, reverse=True)


def test_warm_up_rises_linearly_to_the_peak_and_never_starts_at_zero() -> None:
    values = rates(4, epochs=5, warmup_epochs=1)
    assert values[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_steps_fall_at_150_180_and_210_of_240_epochs() -> None:
    values = rates(1, epochs=240, schedule="step")
    assert [values[epoch] for epoch in (149, 150, 180, 210)] == pytest.approx([1, 0.1, 0.01, 0.001])


def test_onecycle_rises_from_a_twenty_fifth_and_falls_to_almost_zero() -> None:
    values = rates(10, epochs=10, schedule="onecycle")
    assert values[0] == pytest.approx(1 / 25)
    assert max(values) == pytest.approx(values[30]) == pytest.approx(1)
    assert values[-1] < 1e-2


def weights(epochs: int, **term: object) -> list[float]:
    """The weight of a term at the start of each epoch."""
    chosen = config(epochs=epochs, objectives=[{"name": "kd", "weight": 1.0, **term}])
    schedule = plan_loss(chosen, teachers=1, labelled=True).terms[0].schedule
    return [schedule.at(epoch * 2, 2) for epoch in range(epochs)]


def test_an_objective_fades_in_and_its_first_epoch_counts() -> None:
    assert weights(6, warmup_epochs=4) == [0.25, 0.5, 0.75, 1, 1, 1]
    assert weights(2) == [1, 1]


def test_an_objective_counts_in_its_epochs_only_and_fades_in_from_the_first_of_them() -> None:
    assert weights(6, from_epoch=2, until_epoch=5, warmup_epochs=2) == [0, 0, 0.5, 1, 1, 0]


def test_a_weight_moves_to_its_final_value_along_its_curve() -> None:
    assert weights(4, final_weight=0) == [1, 0.75, 0.5, 0.25]
    assert weights(4, final_weight=3, curve="cosine") == pytest.approx([1, 1.2929, 2, 2.7071], abs=1e-4)
    assert weights(5, final_weight=0, from_epoch=1, until_epoch=3) == [0, 1, 0.5, 0, 0]


def test_a_weight_moves_within_an_epoch_too() -> None:
    chosen = config(epochs=2, objectives=[{"name": "kd", "weight": 0, "final_weight": 1}])
    schedule = plan_loss(chosen, teachers=1, labelled=True).terms[0].schedule
    assert [schedule.at(step, 4) for step in range(8)] == [step / 8 for step in range(8)]


def test_a_term_that_begins_after_the_training_is_an_error() -> None:
    chosen = config(epochs=3, objectives=[{"name": "kd", "from_epoch": 3}])
    with pytest.raises(UserError, match="begins at epoch 3, but the training has 3"):
        plan_loss(chosen, teachers=1, labelled=True)


def test_an_objective_hears_where_it_stands_in_its_own_epochs(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[tuple[str, int, float]] = []

    def advance(self: Objective[Any], progress: Progress) -> None:
        heard.append((self.name, progress.epoch, progress.share))

    monkeypatch.setattr(Objective, "advance", advance)
    terms = [{"name": "kd", "until_epoch": 2}, {"name": "dist", "from_epoch": 2, "until_epoch": 3}]
    train(epochs=4, objectives=terms, batch_size=32)
    assert heard == [
        *[("kd", step // 2, step / 4) for step in range(4)],
        *[("dist", 0, step / 2) for step in range(2)],
    ]
