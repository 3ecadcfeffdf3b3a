"""Learning rates and the fade-in of the objective."""

from __future__ import annotations

import pytest

from edgekd.train.schedule import fade_in, learning_rate
from tests.train.conftest import config


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


def test_the_objective_fades_in_and_its_first_epoch_counts() -> None:
    assert [fade_in(epoch, 4) for epoch in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert fade_in(0, 0) == 1
