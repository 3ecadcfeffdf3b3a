"""Every objective against its golden values (float64), its identities, and the conformance suite."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from edgekd.core.schema import Schema
from edgekd.distill.objectives.dist import relation_terms
from edgekd.distill.objectives.dkd import decoupled_terms
from edgekd.distill.objectives.kd import softened_kl
from edgekd.distill.objectives.kdpp import norm_and_direction
from edgekd.errors import EdgekdError, UserError
from edgekd.testing.conformance_objective import Array, ObjectiveConformance
from edgekd.train.objective import OBJECTIVES, Signal, Signals, SignalSpec, build_objective, label_free_objectives

STUDENT = torch.tensor([[1, 2, 0, -1], [0.5, -0.5, 3, 1]], dtype=torch.float64)
TEACHER = torch.tensor([[2, 3, -1, 0], [0, 1, 2, -2]], dtype=torch.float64)
LABELS = torch.tensor([1, 2])


class TestKD(ObjectiveConformance):
    name = "kd"


class TestDKD(ObjectiveConformance):
    name = "dkd"


class TestDIST(ObjectiveConformance):
    name = "dist"


class TestKDPlusPlus(ObjectiveConformance):
    name = "kdpp"

    def test_an_adapter_exists_only_where_the_widths_differ(self) -> None:
        equal, wider = self.objective(), self.objective(student_width=9)
        assert not list(equal.parameters())
        assert (equal.adapts, wider.adapts) == (False, True)
        assert {tuple(p.shape) for p in wider.parameters() if p.ndim == 2} == {(6, 9)}
        loss = wider(self.signals(1, width=9), self.signals(2), self.labels())
        assert torch.isfinite(loss)

    def test_the_class_means_are_part_of_its_state(self) -> None:
        directions = self.objective().state_dict()["class_directions"]
        torch.testing.assert_close(torch.linalg.vector_norm(directions, dim=1), torch.ones(5))

    def test_a_network_without_embedding_is_an_error(self) -> None:
        with pytest.raises(UserError, match="needs the embeddings of both networks"):
            build_objective("kdpp", {}).bind(SignalSpec(classes=3), SignalSpec(classes=3, width=2))


class TestSP(ObjectiveConformance):
    name = "sp"


class TestPKT(ObjectiveConformance):
    name = "pkt"


class TestRKD(ObjectiveConformance):
    name = "rkd"


class TestAT(ObjectiveConformance):
    name = "at"


class TestATOverAllStages(ObjectiveConformance):
    name = "at"
    args: ClassVar = {"stages": "all"}


class TestFitNet(ObjectiveConformance):
    name = "fitnet"
    differs_in_training = "the BatchNorm of its regressor normalises by the batch"


class TestFitNetAtAMiddleStage(ObjectiveConformance):
    name = "fitnet"
    args: ClassVar = {"stage": -2}
    differs_in_training = "the BatchNorm of its regressor normalises by the batch"

    def _read(self, student: Signals) -> list[torch.Tensor]:
        return super()._read(student)[-2:-1]


class TestDisWOT(ObjectiveConformance):
    name = "diswot"
    args: ClassVar = {"relation_weight": 1.0}  # the paper's own weight falls with the size of the batch


class TestSoft(ObjectiveConformance):
    name = "soft"


class TestSoftAsCrossEntropy(ObjectiveConformance):
    name = "soft"
    args: ClassVar = {"divergence": "ce"}


class TestFIRST(ObjectiveConformance):
    name = "first"
    args: ClassVar = {"top": 3}


class TestBDKD(ObjectiveConformance):
    name = "bdkd"


def followed(student: Array, teacher: Array, temperature: float) -> float:
    """`T^2 * KL(p_s || p_t)`, mean over samples, by loops."""
    found = []
    for s, t in zip(student / temperature, teacher / temperature, strict=True):
        p, q = np.exp(s) / np.exp(s).sum(), np.exp(t) / np.exp(t).sum()
        found.append(sum(float(a) * math.log(a / b) for a, b in zip(p, q, strict=True)))
    return temperature**2 * float(np.mean(found))


class TestBDKDOnline(ObjectiveConformance):
    name = "bdkd-online"

    def declared_teacher_loss(self, student: Array, teacher: Array) -> float:
        return followed(student, teacher, 4.0)


class TestDML(ObjectiveConformance):
    name = "dml"

    def declared_teacher_loss(self, student: Array, teacher: Array) -> float:
        return followed(student, teacher, 1.0)


class TestSinKD(ObjectiveConformance):
    name = "sinkd"


class TestSinKDByTransportAlone(ObjectiveConformance):
    name = "sinkd"
    args: ClassVar = {"kd_weight": 0, "sinkhorn_weight": 1}


class TestTAID(ObjectiveConformance):
    name = "taid"


class TestDHKD(ObjectiveConformance):
    name = "dhkd"
    differs_in_training = "its second head has dropout"
    draws_in_training = True


class TestDHO(ObjectiveConformance):
    name = "dho"


class TestLELP(ObjectiveConformance):
    name = "lelp"


class TestTRG(ObjectiveConformance):
    name = "trg"
    args: ClassVar = {"neighbours": 0.25}


class TestCRD(ObjectiveConformance):
    name = "crd"


class TestOFA(ObjectiveConformance):
    name = "ofa"
    differs_in_training = "the BatchNorm of its branches normalises by the batch"


class TestOFAWithAnEmphasis(ObjectiveConformance):
    name = "ofa"
    args: ClassVar = {"gamma": 1.5, "branches": 1}

    def _read(self, student: Signals) -> list[torch.Tensor]:
        return [*super()._read(student)[:1], *super()._read(student)[-1:]]  # one branch, of the last stage


class TestReviewKD(ObjectiveConformance):
    name = "reviewkd"
    differs_in_training = "the BatchNorm of its fusions normalises by the batch"


class TestPSKD(ObjectiveConformance):
    name = "pskd"


class TestSLA(ObjectiveConformance):
    name = "sla"

    def signals(self, seed: int, *, width: int = 6, scale: float = 3.0) -> Signals:
        views = [super(TestSLA, self).signals(10 * seed + turn, width=width, scale=scale) for turn in range(4)]
        return replace(views[0], more=tuple(replace(view, ids=None) for view in views[1:]))


class TestTGeo(ObjectiveConformance):
    name = "tgeo"


class TestExits(ObjectiveConformance):
    name = "exits"
    differs_in_training = "the BatchNorm of its exits normalises by the batch"

    def _read(self, student: Signals) -> list[torch.Tensor]:
        return super()._read(student)[:-1]  # the network's own classifier is the exit of the last stage


def test_every_registered_objective_has_a_conformance_suite() -> None:
    suites = {kind.name for kind in ObjectiveConformance.__subclasses__()}
    assert suites == set(OBJECTIVES)


def test_kd_has_its_golden_value() -> None:
    value = build_objective("kd", {})(Signals(logits=STUDENT), Signals(logits=TEACHER), None)
    assert value.item() == pytest.approx(0.649680, abs=1e-6)


def test_kd_does_not_weaken_with_the_number_of_classes() -> None:
    divided_by_k = 0.162420  # what an element-wise mean would give
    assert softened_kl(STUDENT, TEACHER, 4.0).item() == pytest.approx(4 * divided_by_k, abs=4e-6)


def test_kd_ignores_a_constant_added_to_a_row() -> None:
    shifted = softened_kl(STUDENT + torch.tensor([[3.0], [-2.0]]), TEACHER, 4.0)
    torch.testing.assert_close(shifted, softened_kl(STUDENT, TEACHER, 4.0))


def test_kd_tends_to_logit_matching_at_a_high_temperature() -> None:
    student = (STUDENT - STUDENT.mean(1, keepdim=True)).requires_grad_()
    teacher = TEACHER - TEACHER.mean(1, keepdim=True)
    softened_kl(student, teacher, 1e4).backward()
    assert student.grad is not None
    # d/ds of T^2 KL -> (s - t) / K, and the mean over N samples.
    torch.testing.assert_close(student.grad, (student.detach() - teacher) / 4 / 2, rtol=1e-3, atol=1e-5)


def test_mutual_learning_is_the_same_for_both_networks() -> None:
    both = build_objective("dml", {"temperature": 2})
    one, other = Signals(logits=STUDENT), Signals(logits=TEACHER)
    assert both(one, other, None).item() == both.teacher_loss(other, one, None).item()
    assert both(one, other, None).item() != both(other, one, None).item()


def test_bdkd_online_teaches_the_student_as_bdkd_does() -> None:
    args = {"temperature": 3, "delta": 1.5}
    signals = Signals(logits=STUDENT), Signals(logits=TEACHER)
    assert torch.equal(*(build_objective(name, args)(*signals, None) for name in ("bdkd", "bdkd-online")))


def test_dkd_has_its_golden_values() -> None:
    target, others = decoupled_terms(STUDENT, TEACHER, LABELS, 4.0)
    assert target.item() == pytest.approx(0.030577, abs=1e-6)
    assert others.item() == pytest.approx(0.977812, abs=1e-6)
    value = build_objective("dkd", {"beta": 8})(Signals(logits=STUDENT), Signals(logits=TEACHER), LABELS)
    assert value.item() == pytest.approx(7.853075, abs=5e-6)


def test_dkd_with_the_right_weight_is_kd() -> None:
    for row in range(2):
        s, t, y = STUDENT[row : row + 1], TEACHER[row : row + 1], LABELS[row : row + 1]
        target, others = decoupled_terms(s, t, y, 4.0)
        beta = 1 - torch.softmax(t / 4, 1)[0, y]
        torch.testing.assert_close((target + beta * others)[0], softened_kl(s, t, 4.0))


def test_dkd_of_two_classes_has_no_term_among_the_others() -> None:
    target, others = decoupled_terms(STUDENT[:, :2], TEACHER[:, :2], torch.tensor([1, 0]), 1.0)
    assert others.item() == 0
    assert target.item() > 0


def test_dist_has_its_golden_values() -> None:
    inter, intra = relation_terms(STUDENT, TEACHER, 1.0)
    assert inter.item() == pytest.approx(0.049033, abs=1e-6)
    assert intra.item() == pytest.approx(0.499997, abs=3e-6)


def test_dist_is_zero_for_equal_logits_and_ignores_affine_maps_of_a_probability_row() -> None:
    inter, intra = relation_terms(TEACHER, TEACHER, 2.0)
    assert inter.item() == pytest.approx(0, abs=1e-5)
    assert intra.item() == pytest.approx(0, abs=1e-5)
    p = torch.softmax(TEACHER, 1)
    mapped = torch.log(0.5 * p + 0.5 / 4)  # still a probability row
    inter, _ = relation_terms(mapped, TEACHER, 1.0)
    assert inter.item() == pytest.approx(0, abs=1e-6)


def test_dist_leaves_out_the_column_relation_of_a_single_sample() -> None:
    student = STUDENT[:1].clone().requires_grad_()
    inter, intra = relation_terms(student, TEACHER[:1], 1.0)
    (inter + intra).backward()
    assert intra.item() == 0
    assert math.isfinite(inter.item())
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


def test_norm_and_direction_has_its_golden_value() -> None:
    f_s = torch.tensor([[1, 2, 2], [0, 3, 4]], dtype=torch.float64)
    f_t = torch.tensor([[2, 1, 2], [3, -1, 4]], dtype=torch.float64)
    means = torch.tensor([[2, 2, 1], [1, 0, 0], [0, 0, 1], [1, 1, 1]], dtype=torch.float64)
    value = norm_and_direction(f_s, f_t, F.normalize(means, dim=1)[LABELS])
    assert value.item() == pytest.approx(0.441101, abs=1e-6)


def test_norm_and_direction_pushes_only_the_direction_of_a_student_with_the_larger_norm() -> None:
    f_s = torch.tensor([[3.0, 4.0]], requires_grad=True)
    norm_and_direction(f_s, torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0]])).backward()
    assert f_s.grad is not None
    assert (f_s.grad * f_s.detach()).sum().item() == pytest.approx(0, abs=1e-7)


def test_an_unknown_objective_suggests_the_near_one() -> None:
    with pytest.raises(UserError, match="Did you mean 'dkd'"):
        build_objective("dkdd", {})


def test_an_unknown_argument_suggests_the_near_one() -> None:
    with pytest.raises(UserError, match="Did you mean 'temperature'"):
        build_objective("kd", {"temperatur": 3})


def test_the_objectives_without_labels_are_known_by_name() -> None:
    assert label_free_objectives() == ("kd", "dist", "diswot", "soft", "first", "bdkd", "sinkd", "taid", "trg", "ofa")


def test_a_signal_that_was_declared_and_not_given_is_our_error() -> None:
    with pytest.raises(EdgekdError, match=f"needs {Signal.LABELS}"):
        build_objective("dkd", {})(Signals(logits=STUDENT), Signals(logits=TEACHER), None)


def test_the_arguments_of_every_objective_have_defaults() -> None:
    for name in OBJECTIVES:
        config = OBJECTIVES.get(name).Config()
        assert isinstance(config, Schema)
        assert type(config).parse(config.plain(), name) == config
