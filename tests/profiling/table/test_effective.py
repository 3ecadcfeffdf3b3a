"""Times become widths and factors under which the model predicts the times."""

from __future__ import annotations

import numpy as np
import pytest

from edgekd.nn.channels.widths import Corrections, WidthLatency
from edgekd.profiling.table.effective import Series, apart, levels
from edgekd.prune.table import corrections_from_table
from edgekd.targets.latency_table import LatencyTable, Timed
from tests.prune.blocks import SHAPE, Planted, edges_of, model_price


def timed(p50: float, noise: float = 0.01) -> Series:
    return Series(Timed(p50_ms=p50, low_ms=p50 * (1 - noise), high_ms=p50 * (1 + noise)))


def in_rounds(p50: float, seed: int, rounds: int = 60) -> Series:
    """An engine on a machine that gets slower and faster by a third, and every engine of a round with it."""
    weather, own = np.random.default_rng(0).uniform(0.8, 1.2, rounds), np.random.default_rng(seed)
    times = p50 * weather * own.normal(1, 0.005, rounds)
    low, high = np.quantile(times, (0.4, 0.6))
    middle = float(np.median(times))
    return Series(Timed(p50_ms=middle, low_ms=float(low), high_ms=float(high)), tuple(times.tolist()))


def followed(device: Planted, table: LatencyTable) -> WidthLatency:
    """The network by the table."""
    return WidthLatency(
        device.module,
        SHAPE,
        device.groups,
        model_price,
        corrections=corrections_from_table(table, device.groups, 1),
    )


def test_the_corrected_model_predicts_every_time_that_was_measured() -> None:
    device = Planted(stairs={"first": edges_of(16), "second": edges_of(16), "third": edges_of(32)})
    table = device.table()
    latency = followed(device, table)
    assert latency.now_ms == pytest.approx(device.time().p50_ms, rel=1e-9)
    for kind in table.kinds:
        groups = [group for group in device.groups if group.name in kind.groups]
        for width in kind.widths:
            for group in groups:
                latency.remove(group, group.units - width.kept)
            assert latency.now_ms == pytest.approx(device.time(groups, width.kept).p50_ms, rel=1e-5)
            latency.reset()


def test_a_kernel_in_blocks_gives_effective_widths_of_whole_blocks() -> None:
    """Where the model is right up to a factor, the effective width is the planted one."""
    device = Planted(stairs={"first": edges_of(16), "second": edges_of(16)})
    (kind,) = (kind for kind in device.table().kinds if "first.conv1" in kind.groups)
    assert kind.groups == ("first.conv1", "second.conv1")
    found = {width.kept: width.effective for width in kind.widths}
    assert found[56] == 64
    assert found[40] == found[48] < 56
    assert found[8] == found[16] == pytest.approx(16, abs=0.5)
    assert all(effective >= kept - 1e-3 for kept, effective in found.items())


def test_cuts_of_several_kinds_together_are_predicted_as_they_interact_in_the_model() -> None:
    device = Planted(stairs={"first": edges_of(16), "second": edges_of(16), "third": edges_of(32)})
    latency = followed(device, device.table())
    for group in device.groups:
        latency.remove(group, group.units // 2)
        device.truth.remove(group, group.units // 2)
    assert latency.now_ms == pytest.approx(device.truth.now_ms, rel=0.02)


def test_widths_that_are_never_faster_count_as_the_whole_one() -> None:
    table = Planted(stairs={"third": lambda kept: 128}).table()
    (kind,) = (kind for kind in table.kinds if kind.groups == ("third.conv1",))
    assert {width.effective for width in kind.widths} == {128}


def test_a_slower_width_counts_as_more_channels_than_there_are() -> None:
    device = Planted(stairs={"third": lambda kept: 150 if kept == 126 else kept})
    table = device.table(multiple=2)
    (kind,) = (kind for kind in table.kinds if kind.groups == ("third.conv1",))
    found = {width.kept: width.effective for width in kind.widths}
    assert found[126] > 140
    assert found[124] < 128


def test_between_timed_widths_nothing_is_saved() -> None:
    table = Planted().table(multiple=8, only=lambda kept: kept % 32 == 0)
    (kind,) = (kind for kind in table.kinds if kind.groups == ("third.conv1",))
    assert kind.effective_of(128) == kind.effective_of(97) == 128
    assert kind.effective_of(96) == kind.effective_of(65) < 128
    assert kind.effective_of(8) == kind.effective_of(32)


def test_an_operation_that_no_kind_changes_is_scaled_as_the_whole_network_is() -> None:
    device = Planted()
    whole_ms = device.followed.now_ms
    found = device.calibrated()
    assert "stem" not in found.scales
    assert found.otherwise == pytest.approx(device.time().p50_ms / whole_ms)


def test_a_saving_within_the_noise_counts_as_none() -> None:
    whole = timed(1.0)
    assert levels(whole, [timed(0.995), timed(0.99), timed(0.9), timed(0.895)]) == [1.0, 1.0, 0.9, 0.9]


def test_small_savings_add_up_until_they_are_seen() -> None:
    assert levels(timed(1.0), [timed(0.993), timed(0.987), timed(0.98)]) == [1.0, 1.0, 0.98]


def test_a_real_rise_stays_and_is_no_yardstick_for_what_follows() -> None:
    """After a slow width, one as fast as the whole is not a saving; one within the noise of both is the slower."""
    assert levels(timed(1.0), [timed(1.3), timed(0.995), timed(0.8)]) == [1.3, 1.0, 0.8]
    assert levels(timed(1.0), [timed(1.02), timed(1.01)]) == [1.02, 1.02]


def test_a_rise_within_the_noise_is_smoothed() -> None:
    assert levels(timed(1.0), [timed(0.8), timed(0.805)]) == [0.8, 0.8]


def test_engines_that_took_turns_are_told_apart_where_their_medians_are_not() -> None:
    """Two percent, where the median of each is known to ten: what slowed a round slowed both."""
    whole, narrower, narrowest = in_rounds(1.0, 1), in_rounds(0.98, 2), in_rounds(0.98, 3)
    assert narrower.time.high_ms > whole.time.low_ms
    assert not apart(Series(whole.time), Series(narrower.time))
    assert apart(whole, narrower)
    assert not apart(narrower, narrowest)
    first, second = levels(whole, [narrower, narrowest])
    assert first == second == pytest.approx(0.98 * whole.time.p50_ms, rel=0.002)


def test_too_few_rounds_tell_nothing_apart() -> None:
    assert not apart(in_rounds(1.0, 1, rounds=4), in_rounds(0.5, 2, rounds=4))


def test_engines_of_different_runs_are_compared_by_their_medians() -> None:
    assert not apart(in_rounds(1.0, 1, rounds=60), in_rounds(0.98, 2, rounds=40))
    assert apart(in_rounds(1.0, 1, rounds=60), in_rounds(0.5, 2, rounds=40))


@pytest.mark.parametrize(("other", "expected"), [(0.99, False), (0.987, False), (0.985, True)])
def test_medians_are_apart_when_their_distances_add_up_as_squares(other: float, expected: bool) -> None:
    assert apart(timed(1.0), timed(other)) is expected
    assert apart(timed(other), timed(1.0)) is expected


def test_correcting_brings_every_unit_back() -> None:
    device = Planted()
    device.followed.remove(device.groups[0], 8)
    device.followed.correct(Corrections(fixed_ms=1.0))
    assert device.followed.now_ms == pytest.approx(1.0 + Planted().followed.now_ms)
