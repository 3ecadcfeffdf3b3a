"""The objectives on logits against loops in float64, their golden values, and what they promise."""

from __future__ import annotations

import itertools
import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from edgekd.distill.objectives.bdkd import balanced_divergence
from edgekd.distill.objectives.first import top_divergence
from edgekd.distill.objectives.probability import soft_cross_entropy
from edgekd.distill.objectives.sinkd import log_plan, transport_cost
from edgekd.distill.objectives.soft import jensen_shannon
from edgekd.train.objective import Signals, build_objective

Array = npt.NDArray[np.float64]

STUDENT = torch.tensor([[1, 2, 0, -1], [0.5, -0.5, 3, 1]], dtype=torch.float64)
TEACHER = torch.tensor([[2, 3, -1, 0], [0, 1, 2, -2]], dtype=torch.float64)


def drawn(seed: int, n: int = 5, classes: int = 4) -> Tensor:
    return 2 * torch.randn(n, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def probabilities(row: Tensor, temperature: float = 1.0) -> list[float]:
    powers = [math.exp(float(value) / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def value(name: str, student: Tensor, teacher: Tensor, **args: float | str) -> float:
    return float(build_objective(name, dict(args))(Signals(logits=student), Signals(logits=teacher), None))


def test_soft_has_its_golden_values() -> None:
    assert jensen_shannon(STUDENT, TEACHER).item() == pytest.approx(0.047276, abs=1e-6)
    assert value("soft", STUDENT, TEACHER) == pytest.approx(0.047276, abs=1e-6)
    assert value("soft", STUDENT, TEACHER, divergence="ce") == pytest.approx(1.069908, abs=1e-6)


def test_soft_is_what_loops_over_samples_give() -> None:
    s, t = drawn(1), drawn(2)
    expected = 0.0
    for row_s, row_t in zip(s, t, strict=True):
        p, q = probabilities(row_s), probabilities(row_t)
        middle = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
        expected += (kl(q, middle) + kl(p, middle)) / 2 / len(s)
    assert jensen_shannon(s, t).item() == pytest.approx(expected, abs=1e-12)


def test_the_jensen_shannon_divergence_is_symmetric_and_at_most_ln_2() -> None:
    torch.testing.assert_close(jensen_shannon(STUDENT, TEACHER), jensen_shannon(TEACHER, STUDENT))
    opposite = torch.tensor([[900.0, 0.0]]), torch.tensor([[0.0, 900.0]])
    assert jensen_shannon(*opposite).item() == pytest.approx(math.log(2))


def test_soft_with_cross_entropy_has_the_gradient_of_the_divergence() -> None:
    gradients = []
    for name, args in (("soft", {"divergence": "ce"}), ("kd", {"temperature": 1})):
        student = STUDENT.clone().requires_grad_()
        build_objective(name, dict(args))(Signals(logits=student), Signals(logits=TEACHER), None).backward()
        assert student.grad is not None
        gradients.append(student.grad)
    torch.testing.assert_close(*gradients)


def bdkd_by_hand(s: Tensor, t: Tensor, temperature: float, delta: float) -> float:
    found = []
    for row_s, row_t in zip(s, t, strict=True):
        p, q = probabilities(row_s, temperature), probabilities(row_t, temperature)
        student_unsure = sum(a * math.log(a) for a in p) < sum(b * math.log(b) for b in q)
        a, b = (delta, 1.0) if student_unsure else (1.0, delta)
        found.append(temperature**2 * (a * kl(q, p) + b * kl(p, q)))
    return float(np.mean(found))


def test_bdkd_is_what_loops_over_samples_give() -> None:
    s, t = drawn(1, n=8), drawn(2, n=8)
    for temperature, delta in ((1.0, 2.0), (4.0, 3.0)):
        found = balanced_divergence(s, t, temperature, delta).item()
        assert found == pytest.approx(bdkd_by_hand(s, t, temperature, delta), abs=1e-12)


def test_bdkd_emphasises_the_forward_divergence_of_a_student_that_is_less_sure() -> None:
    sure, unsure = torch.tensor([[4.0, 0.0]]), torch.tensor([[0.5, 0.0]])
    forward = kl(probabilities(sure[0]), probabilities(unsure[0]))
    reverse = kl(probabilities(unsure[0]), probabilities(sure[0]))
    assert balanced_divergence(unsure, sure, 1.0, 2.0).item() == pytest.approx(2 * forward + reverse, rel=1e-5)
    assert balanced_divergence(sure, unsure, 1.0, 2.0).item() == pytest.approx(reverse + 2 * forward, rel=1e-5)


def transport(student: Tensor, teacher: Tensor) -> Tensor:
    return transport_cost(student, teacher, temperature=2.0, epsilon=0.1, iterations=20)


def sinkhorn_by_hand(s: Tensor, t: Tensor) -> tuple[float, Array]:
    n = len(s)
    p, q = [probabilities(row, 2.0) for row in s], [probabilities(row, 2.0) for row in t]
    pairs = list(itertools.product(range(n), range(n)))
    costs = np.zeros((n, n))
    for i, j in pairs:
        costs[i, j] = sum(abs(a - b) for a, b in zip(p[i], q[j], strict=True))
    plan = np.exp(-costs / 0.1)
    for _ in range(20):
        plan /= plan.sum(1)[:, None]
        plan /= plan.sum(0)[None, :]
    return float(sum(plan[pair] * costs[pair] for pair in pairs)), plan


def test_sinkd_has_its_golden_value_and_is_what_the_kernel_gives_without_logarithms() -> None:
    found = transport(STUDENT, TEACHER).item()
    assert 2 * found == pytest.approx(0.620340, abs=1e-6)  # the golden value sums over the batch
    for seed in range(3):
        s, t = drawn(seed), drawn(10 + seed)
        expected = sinkhorn_by_hand(s, t)[0] / len(s)
        assert transport(s, t).item() == pytest.approx(expected)
    kd = value("kd", STUDENT, TEACHER, temperature=3.5)
    assert value("sinkd", STUDENT, TEACHER) == pytest.approx(0.9 * kd + 0.8 * 0.001 * 16 * found, abs=1e-9)


def test_sinkds_plan_has_rows_and_columns_that_sum_to_1() -> None:
    costs = torch.cdist(drawn(1).softmax(1), drawn(2).softmax(1), p=1)
    plan = log_plan(costs, 0.1, 20).exp()
    torch.testing.assert_close(plan.sum(0), torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close(plan.sum(1), torch.ones(5, dtype=torch.float64), rtol=0, atol=1e-3)


def test_transport_does_not_see_which_image_is_which_so_sinkd_holds_kd() -> None:
    order = torch.tensor([1, 0])
    torch.testing.assert_close(transport(STUDENT[order], TEACHER), transport(STUDENT, TEACHER))
    assert value("sinkd", STUDENT[order], TEACHER) > value("sinkd", STUDENT, TEACHER)


def test_sinkd_survives_costs_whose_kernel_underflows() -> None:
    far = torch.tensor([[400.0, -400.0], [-400.0, 400.0]], requires_grad=True)
    cost = transport_cost(far, -far.detach().flip(0), temperature=1.0, epsilon=1e-3, iterations=20)
    (gradient,) = torch.autograd.grad(cost, far)
    assert cost.item() == pytest.approx(0, abs=1e-6)
    assert torch.isfinite(gradient).all()


def first_by_hand(s: Tensor, t: Tensor, top: int, temperature: float) -> float:
    found = []
    for row_s, row_t in zip(s, t, strict=True):
        p, q = probabilities(row_s), probabilities(row_t, temperature)
        kept = sorted(range(len(q)), key=lambda k: -q[k])[:top]
        p_shown, q_shown = [p[k] for k in kept], [q[k] for k in kept]
        found.append(kl([*q_shown, 1 - sum(q_shown)], [*p_shown, 1 - sum(p_shown)]))
    return float(np.mean(found))


def test_first_is_what_loops_over_samples_give() -> None:
    s, t = drawn(1, classes=6), drawn(2, classes=6)
    for top, temperature in ((1, 1.0), (3, 1.5), (5, 0.7)):
        expected = first_by_hand(s, t, top, temperature)
        assert top_divergence(s, t, top, temperature).item() == pytest.approx(expected, abs=1e-12)


def test_first_with_all_classes_is_kd_at_temperature_1() -> None:
    for top in (3, 4, 9):  # three of four and the rest are all four
        assert value("first", STUDENT, TEACHER, top=top) == pytest.approx(value("kd", STUDENT, TEACHER, temperature=1))


def test_first_tells_nothing_of_how_the_other_classes_are_ordered() -> None:
    t = torch.tensor([[3.0, 2.0, 0.5, -0.5]], dtype=torch.float64)
    s = torch.tensor([[1.0, 2.0, 0.0, -1.0]], dtype=torch.float64)
    swapped = s[:, [0, 1, 3, 2]]
    torch.testing.assert_close(top_divergence(swapped, t, 2, 1.0), top_divergence(s, t, 2, 1.0))


def test_soft_cross_entropy_is_the_labels_loss_for_one_hot_targets() -> None:
    hot = torch.nn.functional.one_hot(torch.tensor([1, 2]), 4).double()
    assert soft_cross_entropy(STUDENT, hot).item() == pytest.approx(0.330713, abs=1e-6)
