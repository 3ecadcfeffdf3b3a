"""The objectives that change during a training (TAID, PS-KD): their state, step by step, against plain arithmetic."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from edgekd.distill.objectives.pskd import PSKD
from edgekd.distill.objectives.taid import TAID, interpolated
from edgekd.errors import UserError
from edgekd.train.objective import Progress, Signals, TrainingData, build_objective

STUDENT = torch.tensor([[1, 2, 0, -1], [0.5, -0.5, 3, 1]], dtype=torch.float64)
TEACHER = torch.tensor([[2, 3, -1, 0], [0, 1, 2, -2]], dtype=torch.float64)
LABELS = torch.tensor([1, 2])


def at(step: int, steps: int = 100, epochs: int = 10) -> Progress:
    return Progress(step=step, steps=steps, epoch=step * epochs // steps, epochs=epochs)


def taid(**args: float) -> TAID:
    objective = build_objective("taid", dict(args))
    assert isinstance(objective, TAID)
    return objective


def test_taid_has_its_golden_values_as_a_cross_entropy() -> None:
    for tau, golden in ((0.4, 0.812045), (1.0, 1.069908)):
        q = interpolated(STUDENT, TEACHER, tau).exp()
        assert -(q * STUDENT.log_softmax(1)).sum(1).mean().item() == pytest.approx(golden, abs=1e-6)


def test_taids_gradient_is_that_of_the_cross_entropy_and_its_value_is_0_for_equal_logits() -> None:
    student = STUDENT.clone().requires_grad_()
    (ours,) = torch.autograd.grad(taid().eval()(Signals(logits=student), Signals(logits=TEACHER), None), student)
    mixed = torch.softmax(0.6 * STUDENT + 0.4 * TEACHER, 1)
    expected = (torch.softmax(STUDENT, 1) - mixed) / 2  # of -sum q log softmax(s), mean over two samples
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-8)
    assert taid()(Signals(logits=TEACHER), Signals(logits=TEACHER), None).item() == pytest.approx(0, abs=1e-12)


def test_at_tau_1_taid_is_kd_at_temperature_1() -> None:
    pair = Signals(logits=STUDENT), Signals(logits=TEACHER), None
    kd = build_objective("kd", {"temperature": 1})(*pair)
    torch.testing.assert_close(taid(start=1.0).eval()(*pair), kd, rtol=1e-6, atol=1e-8)


def test_the_first_step_of_taid_only_remembers_and_the_second_has_the_golden_move() -> None:
    objective = taid()
    objective._follow(torch.tensor(2.0))
    assert objective.tau.item() == pytest.approx(0.4)
    objective._follow(torch.tensor(1.9))
    assert objective.tau.item() - 0.4 == pytest.approx(1.500375e-4, rel=1e-3)  # float32 around 0.4
    assert objective.mean_change.item() == pytest.approx(5e-4, rel=1e-4)
    assert objective.last_loss.item() == pytest.approx(1.9)


def test_taids_tau_follows_plain_arithmetic_never_falls_and_is_not_behind_the_straight_line() -> None:
    objective, losses = taid(rate=0.01), [2.0, 1.5, 1.6, 1.0, 0.9, 0.2, 0.3]
    tau, change, last, seen = 0.4, 0.0, math.inf, []
    for step, loss in enumerate(losses):
        objective.advance(at(step * 10))
        objective._follow(torch.tensor(loss))
        if math.isfinite(last):
            change = 0.99 * change + 0.01 * (last - loss) / last
            ahead = tau + 0.01 / (1 + math.exp(-change)) * (1 - tau)
            tau = min(1.0, max(0.4 + 0.6 * step * 10 / 100, ahead))
        last = loss
        seen.append(objective.tau.item())
        assert seen[-1] == pytest.approx(tau, rel=1e-5)
    assert seen == sorted(seen)


def test_taid_moves_in_training_steps_alone_and_its_state_is_saved() -> None:
    objective, pair = taid(rate=0.5), (Signals(logits=STUDENT), Signals(logits=TEACHER), None)
    objective.eval()(*pair)
    assert math.isinf(objective.last_loss.item())
    objective.train()
    for _ in range(3):
        objective(*pair)
    assert objective.tau.item() > 0.4
    other = taid(rate=0.5)
    other.load_state_dict(objective.state_dict())
    torch.testing.assert_close(other(*pair), objective(*pair))
    torch.testing.assert_close(other.tau, objective.tau)


def test_taid_that_would_fall_is_an_error() -> None:
    with pytest.raises(UserError, match=r"start \(0.9\) must not be above end \(0.5\)"):
        taid(start=0.9, end=0.5)


def pskd(labels: Tensor = LABELS, classes: int = 4) -> PSKD:
    objective = build_objective("pskd", {})
    assert isinstance(objective, PSKD)
    objective.bind_data(TrainingData(samples=len(labels), classes=classes, labels=labels))
    return objective


def shown(logits: Tensor, *ids: int) -> Signals:
    return Signals(logits=logits.float(), ids=torch.tensor(ids))


def test_the_first_epoch_of_pskd_is_plain_cross_entropy() -> None:
    objective = pskd()
    objective.advance(at(0))
    expected = F.cross_entropy(STUDENT.float(), LABELS)
    torch.testing.assert_close(objective(shown(STUDENT, 0, 1), None, LABELS), expected)


def test_pskd_mixes_the_label_with_what_it_said_of_that_image_one_epoch_before() -> None:
    objective = pskd()
    objective.advance(at(0))
    objective(shown(STUDENT, 0, 1), None, LABELS)
    objective.advance(at(40))  # epoch 4 of 10
    found = objective(shown(TEACHER[[1, 0]], 1, 0), None, LABELS[[1, 0]])
    share, expected = 0.8 * 5 / 10, 0.0
    for i in range(2):
        p = [math.exp(x) / sum(math.exp(z) for z in STUDENT[i].tolist()) for x in STUDENT[i].tolist()]
        log_s = TEACHER[i].log_softmax(0).tolist()
        target = [(1 - share) * (k == int(LABELS[i])) + share * p[k] for k in range(4)]
        expected -= sum(a * b for a, b in zip(target, log_s, strict=True)) / 2
    assert found.item() == pytest.approx(expected, rel=2**-11)  # what is remembered is rounded to float16
    assert objective.memory.dtype == torch.float16
    torch.testing.assert_close(objective.memory.float(), TEACHER.softmax(1).float(), rtol=2**-11, atol=1e-7)


def test_pskd_remembers_in_training_steps_alone_and_its_memory_is_saved() -> None:
    objective = pskd()
    objective.eval()(shown(STUDENT, 0, 1), None, LABELS)
    torch.testing.assert_close(objective.memory, F.one_hot(LABELS, 4).half())
    objective.train()(shown(STUDENT, 0, 1), None, LABELS)
    other = pskd()
    other.load_state_dict(objective.state_dict())
    other.advance(at(90))
    objective.advance(at(90))
    student = shown(TEACHER, 0, 1)
    assert torch.equal(other.eval()(student, None, LABELS), objective.eval()(student, None, LABELS))


def test_pskds_target_gets_no_gradient_from_the_memory() -> None:
    objective = pskd()
    student = replace(shown(STUDENT, 0, 1), logits=STUDENT.float().requires_grad_())
    objective(student, None, LABELS).backward()
    assert not objective.memory.requires_grad
    again = objective(replace(student, logits=student.logits.detach()), None, LABELS)
    assert not again.requires_grad


def test_pskd_without_labels_is_an_error() -> None:
    with pytest.raises(UserError, match="'pskd' needs labels, and the data has none"):
        build_objective("pskd", {}).bind_data(TrainingData(samples=2, classes=4, labels=None))
