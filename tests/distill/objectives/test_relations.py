"""SP, PKT and RKD against loops over samples in float64, and what they must not depend on."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from edgekd.distill.objectives.pkt import PKT, neighbour_divergence
from edgekd.distill.objectives.rkd import angle_difference, distance_difference
from edgekd.distill.objectives.sp import SP, similarity_distance
from edgekd.train.objective import Signals, build_objective

Array = npt.NDArray[np.float64]
Distance = Callable[[Tensor, Tensor], Tensor]

STUDENT = torch.tensor([[1, 2, 2], [0, 3, 4], [1, 0, -1]], dtype=torch.float64)
TEACHER = torch.tensor([[2, 1, 2], [3, -1, 4], [0, 1, 0]], dtype=torch.float64)
SHUFFLE = torch.tensor([2, 0, 1])


def drawn(seed: int, n: int = 5, width: int = 3) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sp_by_hand(f: Array, g: Array) -> float:
    def similarities(x: Array, i: int) -> Array:
        row = np.array([float(x[i].ravel() @ x[j].ravel()) for j in range(len(x))])
        return np.asarray(row / math.sqrt(sum(value**2 for value in row)))

    return float(np.mean([((similarities(f, i) - similarities(g, i)) ** 2).sum() for i in range(len(f))]))


def pkt_by_hand(f: Array, g: Array) -> float:
    def neighbours(x: Array, i: int) -> Array:
        cosines = [x[i] @ x[j] / math.sqrt((x[i] @ x[i]) * (x[j] @ x[j])) for j in range(len(x))]
        row = np.array([(1 + cosine) / 2 for cosine in cosines])
        return np.asarray(row / row.sum())

    return float(np.mean([sum(neighbours(g, i) * np.log(neighbours(g, i) / neighbours(f, i))) for i in range(len(f))]))


def huber(a: float, b: float) -> float:
    gap = abs(a - b)
    return 0.5 * gap**2 if gap < 1 else gap - 0.5


def rkd_distance_by_hand(f: Array, g: Array) -> float:
    n = len(f)

    def distances(x: Array) -> dict[tuple[int, int], float]:
        raw = {(i, j): math.dist(x[i], x[j]) for i in range(n) for j in range(n)}
        mean = np.mean([raw[i, j] for i in range(n) for j in range(n) if i != j])
        return {pair: value / float(mean) for pair, value in raw.items()}

    d_f, d_g = distances(f), distances(g)
    return float(np.mean([huber(d_f[pair], d_g[pair]) for pair in d_f]))


def rkd_angle_by_hand(f: Array, g: Array) -> float:
    def cosine(x: Array, i: int, j: int, k: int) -> float:
        if j in (i, k):
            return 0.0
        a, b = x[i] - x[j], x[k] - x[j]
        return float(a @ b / math.sqrt((a @ a) * (b @ b)))

    triplets = list(itertools.product(range(len(f)), repeat=3))
    return float(np.mean([huber(cosine(f, *triplet), cosine(g, *triplet)) for triplet in triplets]))


@pytest.mark.parametrize(
    ("ours", "by_hand", "tolerance"),
    [
        (similarity_distance, sp_by_hand, 1e-12),
        (neighbour_divergence, pkt_by_hand, 1e-6),  # the epsilon in the logarithm
        (distance_difference, rkd_distance_by_hand, 1e-12),
        (angle_difference, rkd_angle_by_hand, 1e-12),
    ],
)
def test_a_relation_is_what_loops_over_samples_give(
    ours: Distance, by_hand: Callable[[Array, Array], float], tolerance: float
) -> None:
    for seed in range(3):
        f, g = drawn(seed), drawn(100 + seed, width=4)  # the widths may differ
        assert ours(f, g).item() == pytest.approx(by_hand(f.numpy(), g.numpy()), abs=tolerance)


@pytest.mark.parametrize("distance", [similarity_distance, neighbour_divergence, distance_difference, angle_difference])
def test_rotating_the_features_or_shuffling_their_channels_changes_nothing(distance: Distance) -> None:
    rotation = torch.linalg.qr(drawn(7, 3)).Q
    value = distance(STUDENT, TEACHER)
    assert value > 0
    torch.testing.assert_close(distance(STUDENT @ rotation, TEACHER), value)
    torch.testing.assert_close(distance(STUDENT[:, SHUFFLE], TEACHER), value)
    assert distance(TEACHER @ rotation, TEACHER).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("distance", [similarity_distance, neighbour_divergence, distance_difference, angle_difference])
def test_the_scale_of_the_features_does_not_count(distance: Distance) -> None:
    torch.testing.assert_close(distance(10 * STUDENT, TEACHER / 10), distance(STUDENT, TEACHER))


def test_sp_and_pkt_have_their_golden_values_which_divide_by_the_batch_once_more() -> None:
    assert similarity_distance(STUDENT, TEACHER).item() / 3 == pytest.approx(0.085498, abs=1e-6)
    assert neighbour_divergence(STUDENT, TEACHER).item() / 3 == pytest.approx(0.010674, abs=1e-6)


def test_the_default_weights_give_the_authors_loss_at_their_batch() -> None:
    f, g = drawn(1, 64), drawn(2, 64)
    sp, pkt = similarity_distance(f, g).item(), neighbour_divergence(f, g).item()
    assert SP.default_weights.distill * sp == pytest.approx(3000 * sp * 64 / 64**2)
    assert PKT.default_weights.distill * pkt == pytest.approx(30000 * pkt * 64 / 64**2)


def test_rkd_weighs_distances_and_angles_and_bounds_the_triplets() -> None:
    f, g = drawn(1, 6), drawn(2, 6)
    signals = [Signals(logits=x, embedding=x) for x in (f, g)]
    value = build_objective("rkd", {"angle_samples": 4})(*signals, None)
    expected = 25 * distance_difference(f, g) + 50 * angle_difference(f[:4], g[:4])
    torch.testing.assert_close(value, expected)


def test_samples_that_the_student_cannot_tell_apart_get_no_huge_gradient() -> None:
    for distance in (similarity_distance, neighbour_divergence, distance_difference, angle_difference):
        for f in (torch.tensor([[1.0, 2.0], [1.0, 2.0], [0.5, -1.0]]), torch.zeros(3, 2)):
            (gradient,) = torch.autograd.grad(distance(f.requires_grad_(), drawn(3, 3).float()), f)
            assert torch.isfinite(gradient).all()
            assert gradient.abs().max() < 10


def test_half_precision_around_them_does_not_reach_into_the_relations() -> None:
    f, g = drawn(1, 32).float(), drawn(2, 32).float()
    for distance in (similarity_distance, neighbour_divergence, distance_difference, angle_difference):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = distance(f, g)
        assert torch.equal(inside, distance(f, g))
