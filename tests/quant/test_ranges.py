"""Histograms of one pass, and the ranges that are read from them, against direct computation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekd.errors import UserError
from edgekd.quant.histogram import BINS, Histogram
from edgekd.quant.ranges import RANGE_METHODS, Range, RangeMethod, range_of

RNG = np.random.default_rng(0)
NORMAL = RNG.standard_normal(50_000).astype(np.float32)


def seen(*parts: np.ndarray) -> Histogram:
    histogram = Histogram("x")
    for part in parts:
        histogram.add(part)
    return histogram


def squared_error(values: np.ndarray, found: Range) -> float:
    scale = (found.high - found.low) / 255
    first = round(found.low / scale)
    codes = np.clip(np.rint(values / scale), first, first + 255)
    return float(((codes * scale - values) ** 2).mean())


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=60), st.integers(1, 59))
@settings(max_examples=60, deadline=None)
def test_the_order_and_the_cuts_of_batches_change_no_count(values: list[float], cut: int) -> None:
    array = np.array(values, dtype=np.float32)
    histogram = seen(array[:cut], array[cut:])
    centres, counts = histogram.bins()
    assert counts.sum() + histogram.zeros == len(array)
    assert (histogram.low, histogram.high) == (array.min(), array.max())
    others = np.sort(array[array != 0]).astype(np.float64)
    # Every value lies within a bin of its centre.
    assert np.abs(np.repeat(centres, counts.astype(int)) - others).max(initial=0.0) <= histogram.width


def test_memory_stays_the_same_when_values_grow_by_orders_of_magnitude() -> None:
    histogram = seen(NORMAL * 1e-3, NORMAL, NORMAL * 1e6)
    centres, counts = histogram.bins()
    assert len(centres) <= 2 * BINS
    assert counts.sum() == 3 * len(NORMAL) - histogram.zeros


def test_extremes_come_from_all_elements_of_an_array_too_large_to_count() -> None:
    values = np.zeros(1_000_000, dtype=np.float32)
    values[12_345] = 7
    histogram = seen(values)
    assert histogram.high == 7
    assert histogram.zeros < 70_000


@pytest.mark.parametrize("shape", [(4, 197, 192), (4, 196, 96), (4, 48, 112, 112), (1, 1_000_000)])
def test_every_channel_of_a_large_array_is_counted(shape: tuple[int, ...]) -> None:
    """Channels last, as in transformers, or second: a stride that shares a factor with them meets some of them only."""
    for axis in range(len(shape)):
        channel = np.arange(shape[axis]) % 3 + 1
        values = np.broadcast_to(channel.reshape([-1 if at == axis else 1 for at in range(len(shape))]), shape)
        _, counts = seen(values.astype(np.float32)).bins()
        share = np.bincount(channel, minlength=4)[1:] / len(channel)
        assert len(counts) == np.count_nonzero(share)
        assert np.allclose(counts / counts.sum(), share[share > 0], atol=0.02)


def test_minmax_covers_the_extremes_and_zero() -> None:
    assert range_of(seen(NORMAL), "minmax") == (NORMAL.min(), NORMAL.max())
    assert range_of(seen(np.float32([2, 5])), "minmax") == (0, 5)
    assert range_of(seen(np.float32([-1, 5])), "minmax", symmetric=True) == (-5, 5)


@pytest.mark.parametrize("method", ["percentile", "entropy"])
def test_an_outlier_does_not_decide_the_range(method: RangeMethod) -> None:
    values = np.append(np.abs(NORMAL), np.float32(400))
    found = range_of(seen(values), method)
    assert found.low == 0
    assert found.high < 250
    assert range_of(seen(values), "minmax").high == 400


def test_mse_has_less_error_than_every_other_method() -> None:
    values = np.append(NORMAL, RNG.standard_normal(5).astype(np.float32) * 10)
    error = {method: squared_error(values, range_of(seen(values), method)) for method in RANGE_METHODS}
    assert error["mse"] <= 1.02 * min(error.values())  # candidates stand 7 % apart
    assert error["mse"] < error["minmax"]


def test_percentile_cuts_the_tails_that_numpy_cuts() -> None:
    found = range_of(seen(NORMAL), "percentile")
    wanted = np.quantile(NORMAL, [0.00005, 0.99995])
    assert np.allclose(found, wanted, atol=0.05)


@pytest.mark.parametrize("method", RANGE_METHODS)
def test_zeros_of_a_relu_do_not_shrink_the_range_that_the_rest_needs(method: RangeMethod) -> None:
    some = np.abs(NORMAL[:2000])
    found = range_of(seen(np.concatenate([some, np.zeros(48_000, np.float32)])), method)
    assert found.high > 0.6 * some.max()


@pytest.mark.parametrize("method", RANGE_METHODS)
@pytest.mark.parametrize("symmetric", [False, True])
def test_constant_values_have_the_range_from_zero_to_them(method: RangeMethod, symmetric: bool) -> None:
    assert range_of(seen(np.full(10, -3, np.float32)), method, symmetric=symmetric) == (-3, 3 if symmetric else 0)
    assert range_of(seen(np.zeros(10, np.float32)), method, symmetric=symmetric) == (0, 0)


@pytest.mark.parametrize("method", RANGE_METHODS)
def test_symmetric_ranges_are_symmetric(method: RangeMethod) -> None:
    low, high = range_of(seen(NORMAL + np.float32(1)), method, symmetric=True)
    assert low == -high


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_values_that_are_not_finite_are_named(wrong: float) -> None:
    with pytest.raises(UserError, match="The value 'x' of the FP32 graph is not finite on the calibration samples"):
        seen(np.float32([1, wrong]))
