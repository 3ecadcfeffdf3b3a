"""LELP and TRG: what they find in the teacher's embeddings and patches, against plain PCA and loops in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from edgekd.distill.objectives.lelp import class_directions, side_log_probabilities
from edgekd.distill.objectives.trg import inner_difference, neighbour_difference, patches
from edgekd.errors import UserError
from edgekd.train.objective import Classifier, Progress, Signals, SignalSpec, Survey, build_objective
from edgekd.train.survey import SurveyBatch


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def softmax(row: Tensor) -> list[float]:
    powers = [math.exp(float(value)) for value in row]
    return [power / sum(powers) for power in powers]


def test_lelps_directions_are_those_of_a_plain_pca_beside_what_the_classifier_reads() -> None:
    rows = drawn(1, 200, 5) * torch.tensor([1.0, 5.0, 2.0, 3.0, 0.5], dtype=torch.float64)
    covariance = torch.cov(rows.T, correction=0)
    read = torch.zeros(2, 5, dtype=torch.float64)
    read[0, 1], read[1, 1] = 1.0, -1.0  # the classifier reads axis 1, the widest
    found = class_directions(covariance[None].expand(2, 5, 5), read, 2)
    inner = np.delete(np.delete(covariance.numpy(), 1, 0), 1, 1)
    variances, axes = np.linalg.eigh(inner)
    for number in range(2):
        expected = np.insert(axes[:, -1 - number] / math.sqrt(variances[-1 - number]), 1, 0.0)
        ours = found[0, number].numpy()
        np.testing.assert_allclose(ours * np.sign(ours @ expected), expected, atol=1e-8)


def test_lelp_keeps_all_directions_where_the_classifier_leaves_too_few_and_none_of_a_class_that_does_not_vary() -> None:
    read = torch.eye(3, dtype=torch.float64)  # its differences span two of three dimensions
    covariances = torch.stack([torch.diag(torch.tensor([3.0, 2.0, 1.0])), torch.zeros(3, 3), torch.eye(3)]).double()
    found = class_directions(covariances, read, 2)
    np.testing.assert_allclose(found[0].abs().numpy(), [[3**-0.5, 0, 0], [0, 2**-0.5, 0]], atol=1e-12)
    assert found[1].abs().sum() == 0
    assert torch.isfinite(class_directions(covariances, read, 5)).all()


def test_lelps_sides_are_a_softmax_of_both_signs_along_each_direction() -> None:
    f, means, directions = drawn(1, 3, 4), drawn(2, 2, 4), drawn(3, 2, 2, 4)
    found = side_log_probabilities(f, means, directions, 0.5).exp()
    for i in range(3):
        for k in range(2):
            along = [float((f[i] - means[k]) @ directions[k, r]) / 0.5 for r in range(2)]
            expected = softmax(torch.tensor([*along, *(-z for z in along)], dtype=torch.float64))
            np.testing.assert_allclose(found[i, k].numpy(), expected, atol=1e-12)


def lelp_by_hand(
    student: Signals, teacher: Signals, rows: Tensor, labels: Tensor, weight: Tensor, bias: Tensor
) -> float:
    """The divergence of the joint probabilities of three classes and two sides each, one direction per class."""
    total, n = 0.0, len(student.logits)
    for i in range(n):
        p_s, p_t = softmax(student.logits[i]), softmax(teacher.logits[i])
        for k in range(3):
            own = rows[labels == k].numpy()
            variances, axes = np.linalg.eigh(np.cov(own.T, bias=True))
            assert teacher.embedding is not None
            z = float((teacher.embedding[i].numpy() - own.mean(0)) @ axes[:, -1]) / math.sqrt(variances[-1])
            assert student.embedding is not None
            sides = softmax((weight @ student.embedding[i] + bias)[2 * k : 2 * k + 2])
            # The sign of a principal axis is arbitrary: the caller's head is symmetric in both sides.
            q = softmax(torch.tensor([z, -z], dtype=torch.float64))
            total += sum(p_t[k] * q[j] * math.log(p_t[k] * q[j] / (p_s[k] * sides[j])) for j in range(2)) / n
    return total


def test_lelp_is_the_divergence_of_the_joint_probabilities_of_classes_and_sides() -> None:
    objective = build_objective("lelp", {"directions": 1}).double()
    sizes = SignalSpec(classes=3, width=2)  # too narrow to leave out what the classifier reads
    objective.bind(SignalSpec(classes=3, width=4), sizes)
    objective = objective.double()
    rows, labels = drawn(1, 30, 2), torch.arange(30) % 3
    taught = Signals(logits=torch.zeros(30, 3), embedding=rows, classifier=Classifier(drawn(2, 3, 2), None))
    halves = [
        SurveyBatch(taught.rows(part), labels[part], torch.arange(30)[part]) for part in (slice(11), slice(11, 30))
    ]
    objective.prepare(Survey(batches=lambda: iter(halves)))
    with torch.no_grad():  # a head that gives both sides of a class the same
        for value in objective.head.parameters():
            value.copy_(value.view(3, 2, -1)[:, :1].expand(3, 2, -1).reshape(value.shape))
    student = Signals(logits=drawn(3, 5, 3), embedding=drawn(4, 5, 4))
    teacher = Signals(logits=drawn(5, 5, 3), embedding=drawn(6, 5, 2))
    weight, bias = (value.detach() for value in objective.head.parameters())
    expected = lelp_by_hand(student, teacher, rows, labels, weight, bias)
    assert objective(student, teacher, labels[:5]).item() == pytest.approx(expected, abs=1e-10)


def test_lelp_of_too_many_classes_is_an_error() -> None:
    many = SignalSpec(classes=1000, width=2048)
    with pytest.raises(UserError, match=r"'lelp' is for few classes: 1000 .* width 2048 need 31\.2 GiB"):
        build_objective("lelp", {}).bind(many, many)


def distances_by_hand(x: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    rows = x.flatten(0, 1).numpy()
    found = np.array([[((a - b) ** 2).sum() for b in rows] for a in rows])
    return np.asarray(found / found.mean())


def test_trgs_local_relations_are_what_loops_over_patches_give() -> None:
    x_s, x_t = drawn(1, 3, 4, 5), drawn(2, 3, 4, 6)
    d_s, d_t = distances_by_hand(x_s), distances_by_hand(x_t)
    expected = 0.0
    for i in range(12):
        near = sorted(range(12), key=lambda j: d_t[i, j])[:3]  # a quarter of twelve
        p, q = (softmax(torch.tensor([-d[i, j] for j in near], dtype=torch.float64)) for d in (d_s, d_t))
        expected += sum(b * math.log(b / a) for a, b in zip(p, q, strict=True)) / 12
    assert neighbour_difference(x_s, x_t, 0.25).item() == pytest.approx(expected, abs=1e-12)


def test_trgs_inner_relations_are_the_attention_among_the_patches_of_an_image() -> None:
    x_s, x_t = drawn(1, 3, 4, 5), drawn(2, 3, 4, 6)
    squares = []
    for n in range(3):
        for i in range(4):
            rows = [
                softmax(torch.stack([x[n, i] @ x[n, j] for j in range(4)]) / math.sqrt(x.shape[2])) for x in (x_s, x_t)
            ]
            squares += [(a - b) ** 2 for a, b in zip(*rows, strict=True)]
    assert inner_difference(x_s, x_t).item() == pytest.approx(np.mean(squares), abs=1e-12)


def test_trgs_patches_are_means_over_cells_and_no_finer_than_the_coarser_map() -> None:
    f, g = drawn(1, 2, 3, 4, 4), drawn(2, 2, 5, 2, 2)
    x_s, x_t = patches(f, g, 3)
    assert x_s.shape == (2, 4, 3)
    torch.testing.assert_close(x_t, g.flatten(2).transpose(1, 2))
    torch.testing.assert_close(x_s[:, 0], f[:, :, :2, :2].mean((2, 3)))


def test_trg_tells_patches_apart_at_a_temperature_that_falls_during_the_training() -> None:
    only = {"kd_weight": 0, "inner_weight": 0, "local_weight": 0, "global_weight": 1}
    objective = build_objective("trg", only)
    objective.bind(SignalSpec(classes=4, channels=8), SignalSpec(classes=4, channels=8))
    maps = drawn(3, 6, 8, 2, 2).float()
    same = Signals(logits=torch.zeros(6, 4), feature_map=maps)
    for step, tau in ((0, 0.5), (50, 0.3)):
        objective.advance(Progress(step=step, steps=100, epoch=0, epochs=1))
        rows = maps.flatten(2).transpose(1, 2).flatten(0, 1)
        cosines = F.cosine_similarity(rows[:, None], rows[None], dim=2).double().numpy() / tau
        expected = np.mean([-cosines[i, i] + np.log(np.mean(np.exp(cosines[i]))) for i in range(24)])
        assert objective(same, same, None).item() == pytest.approx(expected, rel=1e-5)


def test_trg_without_feature_maps_is_an_error() -> None:
    with pytest.raises(UserError, match="'trg' needs the feature maps of both networks"):
        build_objective("trg", {}).bind(SignalSpec(classes=4), SignalSpec(classes=4, channels=3))
