from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgekd.runtimes.compare import MAX_SQNR_DB, batches, compare_logits

LOGITS = arrays(np.float32, (6, 4), elements=st.floats(-100, 100, width=32))


def test_known_differences_give_the_numbers_worked_out_by_hand() -> None:
    reference = np.array([[3.0, 4.0], [1.0, 0.0]], np.float32)
    other = np.array([[3.0, 4.5], [0.0, 1.0]], np.float32)
    found = compare_logits(reference, other)
    assert found.n == 2
    assert found.max_abs == pytest.approx(1.0)
    assert found.mean_abs == pytest.approx(2.5 / 4)
    assert found.cosine == pytest.approx(0.0)
    assert found.agreement == 0.5
    assert found.sqnr_db == pytest.approx(10 * np.log10(26 / 2.25))


@given(LOGITS)
def test_equal_logits_agree_in_everything(logits: np.ndarray) -> None:
    found = compare_logits(logits, logits)
    assert (found.max_abs, found.agreement, found.sqnr_db) == (0.0, 1.0, MAX_SQNR_DB)
    assert found.cosine == pytest.approx(1.0)


@given(LOGITS, LOGITS)
def test_any_two_finite_answers_compare_to_finite_numbers(reference: np.ndarray, other: np.ndarray) -> None:
    found = compare_logits(reference, other)
    assert all(np.isfinite(value) for value in found.plain().values())
    assert -1 - 1e-9 <= found.cosine <= 1 + 1e-9


def test_batches_cover_all_images_in_order() -> None:
    images = np.arange(7, dtype=np.float32).reshape(7, 1, 1, 1)
    parts = list(batches(images, 3))
    assert [len(part) for part in parts] == [3, 3, 1]
    np.testing.assert_array_equal(np.concatenate(parts), images)
