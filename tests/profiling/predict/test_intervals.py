"""What intervals learn from reference devices and from the left-out distances of the new one."""

from __future__ import annotations

import numpy as np
import pytest

from edgekd.profiling.predict.archs import Floats
from edgekd.profiling.predict.intervals import Calibration, Case

NORMAL_90 = 1.645


def case(device: int, factor: float, *, measured: int, seed: int, spread: float = 0.02) -> Case:
    """A device whose latencies lie `factor` times as far from the prediction as the model thinks."""
    rng = np.random.default_rng(seed)
    return Case(
        device=device,
        distances=np.abs(factor * rng.standard_normal(400)),
        log_spread=float(np.log(spread)),
        left_out=np.abs(factor * rng.standard_normal(measured)),
    )


def devices(measured: int, *, spread_of_factors: float = 0.0, seed: int = 0, count: int = 16) -> tuple[Case, ...]:
    factors = np.exp(spread_of_factors * np.random.default_rng(seed).standard_normal(count))
    return tuple(case(i, float(f), measured=measured, seed=1000 * seed + i) for i, f in enumerate(factors))


def width(factor: float, others: tuple[Case, ...], *, measured: int, level: float = 0.9) -> float:
    return Calibration(own=case(-1, factor, measured=measured, seed=77), others=others).width(level)


def test_devices_that_need_what_the_model_says_give_the_quantile_of_a_normal_distribution() -> None:
    assert width(1.0, devices(30), measured=30) == pytest.approx(NORMAL_90, rel=0.15)


def test_without_reference_devices_the_measurements_alone_widen_the_interval() -> None:
    assert width(1.0, (), measured=0) == pytest.approx(NORMAL_90, rel=0.02)
    assert width(3.0, (), measured=50) > 1.5 * width(1.0, (), measured=50)


def test_many_measurements_outweigh_the_other_devices_and_few_do_not() -> None:
    mixed = {measured: devices(measured, spread_of_factors=0.4, seed=3) for measured in (6, 50)}
    wider = {n: width(3.0, others, measured=n) / width(1.0, others, measured=n) for n, others in mixed.items()}
    assert wider[50] > 1.5
    assert 1.0 < wider[6] < wider[50]


def test_a_model_that_was_too_sure_on_devices_it_knew_well_is_widened_there() -> None:
    """Devices with small deviations need more of them; a new one with small deviations gets more."""
    others = tuple(
        case(i, 3.0 if i % 2 else 1.0, measured=0, seed=i, spread=0.002 if i % 2 else 0.2) for i in range(16)
    )
    sure, unsure = (
        Calibration(own=case(-1, 1.0, measured=0, seed=5, spread=spread), others=others).width(0.9)
        for spread in (0.002, 0.2)
    )
    assert sure > 1.5 * unsure


@pytest.mark.parametrize("level", [0.5, 0.9])
@pytest.mark.parametrize("measured", [10, 50])
def test_over_new_devices_the_intervals_hold_their_level(level: float, measured: int) -> None:
    held = [_share_held(level, measured, seed) for seed in range(60)]
    assert abs(float(np.mean(held)) - level) < 0.03


def _share_held(level: float, measured: int, seed: int) -> float:
    *others, new = devices(measured, spread_of_factors=0.4, seed=seed, count=17)
    hidden: Floats = new.distances
    found = Calibration(own=new, others=tuple(others)).width(level)
    return float(np.mean(hidden <= found))
