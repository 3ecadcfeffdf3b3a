from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgekd.errors import UserError
from edgekd.runtimes.compare import MAX_SQNR_DB, NEAR_DB, Tolerance, batches, compare_logits, compare_outputs

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


def test_a_classifier_agrees_by_class_and_anything_else_by_the_noise_of_each_images_outputs() -> None:
    logits = np.array([[3.0, 1.0], [0.0, 2.0]], np.float32)
    found = compare_outputs({"logits": logits}, {"renamed": logits[:, ::-1] * np.array([[1.0], [-1.0]])})
    assert (found.alike_means, found.alike, found.n) == ("top1", 0.5, 2)
    boxes = np.ones((2, 5, 4), np.float32)
    noisy = boxes + np.array([0.05, 0.2], np.float32)[:, None, None]  # 26 dB and 14 dB
    found = compare_outputs({"boxes": boxes, "scores": boxes}, {"boxes": boxes, "scores": noisy})
    assert (found.alike_means, found.alike) == ("outputs", 0.5)
    assert found.sqnr_db == pytest.approx(10 * np.log10(2 / (0.05**2 + 0.2**2)), rel=1e-4)
    assert 10 * np.log10(1 / 0.2**2) < NEAR_DB < 10 * np.log10(1 / 0.05**2)


def test_the_largest_difference_is_told_in_spreads_of_the_reference() -> None:
    reference = np.array([[0.0, 0.0, 2.0, 2.0]], np.float32)[..., None]
    assert compare_outputs({"a": reference}, {"a": reference + np.float32(0.5)}).max_error == pytest.approx(0.5)


def test_outputs_of_another_number_or_shape_are_refused_by_name() -> None:
    one = np.zeros((2, 3), np.float32)
    with pytest.raises(UserError, match=r"the reference gives logits \(2, 3\), this logits \(2, 4\)"):
        compare_outputs({"logits": one}, {"logits": np.zeros((2, 4), np.float32)})
    with pytest.raises(UserError, match="differ in number or shape"):
        compare_outputs({"logits": one}, {"logits": one, "more": one})


def test_a_tolerance_is_relative_to_the_spread_and_to_each_element_and_never_holds_for_nan() -> None:
    reference = np.array([0.0, 2.0], np.float32)
    tolerance = Tolerance(atol=0.1, rtol=0.1)
    assert tolerance.holds(reference, np.array([0.1, 2.3], np.float32))
    assert not tolerance.holds(reference, np.array([0.11, 2.0], np.float32))
    assert not tolerance.holds(reference, np.array([0.0, np.nan], np.float32))
