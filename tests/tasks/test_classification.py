from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from edgekd.errors import BuildFailed, UserError
from edgekd.tasks.classification import (
    agreement,
    calibration_error,
    guesses,
    negative_log_likelihood,
    predictions,
    summed_loss,
    supervised_loss,
    top1,
    wilson_interval,
)

LOGITS = np.array([[3.0, 1.0, 2.0], [0.0, 5.0, 1.0], [2.0, 2.0, 1.0]], dtype=np.float32)


def test_top1_is_the_share_of_labels_with_the_largest_logit() -> None:
    assert top1(LOGITS, np.array([0, 1, 2])) == pytest.approx(2 / 3)


def test_equal_logits_go_to_the_lowest_class() -> None:
    assert predictions(LOGITS).tolist() == [0, 1, 0]


def test_agreement_compares_classes_and_not_values() -> None:
    assert agreement(LOGITS, LOGITS * 10 + 1) == 1.0
    assert agreement(LOGITS, -LOGITS) == 0.0


def test_nan_logits_are_an_error_and_not_class_0() -> None:
    bad = LOGITS.copy()
    bad[1, 2] = np.nan
    with pytest.raises(BuildFailed, match=r"NaN for 1 of 3 images \(the first is number 1\)"):
        top1(bad, np.array([0, 1, 2]))


def test_labels_beyond_the_outputs_and_wrong_shapes_are_refused() -> None:
    with pytest.raises(UserError, match="the data has class number 3, but the model has 3 outputs"):
        top1(LOGITS, np.array([0, 1, 3]))
    with pytest.raises(UserError, match=r"Labels: expected shape \(3,\), got \(2,\)"):
        top1(LOGITS, np.array([0, 1]))
    with pytest.raises(UserError, match="Agreement needs equal shapes"):
        agreement(LOGITS, LOGITS[:, :2])
    with pytest.raises(UserError, match=r"Logits: expected shape \(N, K\), got \(3,\)"):
        predictions(LOGITS[0])


@given(st.integers(1, 5000), st.floats(0, 1))
def test_the_wilson_interval_equals_scipys(n: int, share: float) -> None:
    k = round(share * n)
    reference = binomtest(k, n).proportion_ci(method="wilson")
    assert wilson_interval(k, n, z=1.959963984540054) == pytest.approx((reference.low, reference.high), abs=1e-9)


def test_impossible_counts_are_a_programming_error() -> None:
    with pytest.raises(ValueError, match="k = 3, n = 2"):
        wilson_interval(3, 2)


def test_the_smoothed_loss_is_the_mixture_of_label_and_uniform_cross_entropy() -> None:
    logits, labels = torch.from_numpy(LOGITS).double(), torch.tensor([0, 2, 1])
    log_p = torch.log_softmax(logits, dim=1)
    expected = -(0.9 * log_p[range(3), labels] + 0.1 * log_p.mean(dim=1)).mean()
    assert supervised_loss(logits, labels, 0.1).item() == pytest.approx(expected.item(), rel=1e-6)
    assert supervised_loss(logits.half(), labels).dtype == torch.float32


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_summed_loss_is_that_of_the_images_whose_label_is_known(smoothing: float) -> None:
    logits = torch.from_numpy(LOGITS).float().requires_grad_()
    shares = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.4, 0.0]])
    value = summed_loss(logits, shares, smoothing)
    log_p = torch.log_softmax(torch.from_numpy(LOGITS).double(), dim=1)
    known = torch.tensor([0.0, 1.0, 0.4]).double()
    expected = -((1 - smoothing) * (shares.double() * log_p).sum(1) + smoothing * known * log_p.mean(1)).sum()
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    (gradient,) = torch.autograd.grad(value, logits)
    assert not gradient[0].any()
    assert gradient[1:].any(1).all()
    whole = summed_loss(logits, torch.eye(3)[[0, 2, 1]], smoothing) / 3
    assert whole.item() == pytest.approx(supervised_loss(logits, torch.tensor([0, 2, 1]), smoothing).item(), rel=1e-6)


def test_a_batch_without_any_label_has_a_loss_of_zero_and_gradients_of_zero() -> None:
    logits = (1e4 * torch.from_numpy(LOGITS).float()).requires_grad_()
    value = summed_loss(logits, torch.zeros(3, 3), 0.1)
    (gradient,) = torch.autograd.grad(value, logits)
    assert value.item() == 0
    assert torch.equal(gradient, torch.zeros(3, 3))


def test_a_teacher_that_guesses_is_told_from_one_that_knows() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 400)
    noise = rng.normal(size=(400, 10))
    knows = noise + 2 * np.eye(10)[labels]
    assert guesses(knows, labels) is None
    said = guesses(noise, labels)
    assert said is not None
    assert "is no better than guessing" in said
    assert f"it knows {int((noise.argmax(1) == labels).sum())} of 400 images, and chance is 10 %" in said


def test_classes_in_another_order_count_as_guessing() -> None:
    labels = np.arange(200) % 4
    assert "no better than guessing" in str(guesses(np.eye(4)[(labels + 1) % 4], labels))


def test_a_teacher_with_one_answer_is_named_as_such_unless_there_is_one_class() -> None:
    labels = np.array([0] * 90 + [1] * 10)
    constant = np.tile([1.0, 0.0], (100, 1))
    assert "gives every image the same class" in str(guesses(constant, labels))
    assert guesses(constant, np.zeros(100, dtype=np.int64)) is None


def test_the_calibration_error_is_what_counting_gives() -> None:
    rng = np.random.default_rng(0)
    logits, labels = 3 * rng.standard_normal((200, 5)), rng.integers(0, 5, 200)
    rows = [np.exp(row) / np.exp(row).sum() for row in logits]
    expected = 0.0
    for number in range(15):
        low, high = number / 15, (number + 1) / 15
        held = [i for i, row in enumerate(rows) if low < row.max() <= high]
        confidence = sum(float(rows[i].max()) for i in held)
        right = sum(int(rows[i].argmax()) == int(labels[i]) for i in held)
        expected += abs(confidence - right) / 200
    assert calibration_error(logits, labels) == pytest.approx(expected, abs=1e-12)


def test_probabilities_that_are_kept_have_no_calibration_error() -> None:
    logits = np.log(np.array([[0.75, 0.25]] * 4))
    assert calibration_error(logits, np.array([0, 0, 0, 1])) == pytest.approx(0, abs=1e-12)
    assert calibration_error(logits, np.array([1, 1, 1, 1])) == pytest.approx(0.75)
    assert calibration_error(np.array([[900.0, -900.0]]), np.array([0])) == 0


def test_the_negative_log_likelihood_is_the_cross_entropy_of_the_labels() -> None:
    labels = np.array([2, 1, 0])
    expected = supervised_loss(torch.from_numpy(LOGITS), torch.from_numpy(labels))
    assert negative_log_likelihood(LOGITS, labels) == pytest.approx(float(expected), rel=1e-6)
    assert negative_log_likelihood(np.array([[0.0, 2000.0]]), np.array([0])) == 2000
