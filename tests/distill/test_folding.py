"""Two heads as one layer: the best mixture is that of a brute search, and the layer is where no slope is left."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from edgekd.distill.folding import ALPHAS, BETAS, Mixture, best_mixture, folded, logits_of, nearest_layer
from edgekd.train.signal import Classifier

N, D, K = 400, 7, 5


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def embedding(seed: int = 0) -> Tensor:
    """(N, D) after a ReLU, of very unequal scales, one of them dead and one the sum of two others."""
    f = random(N, D, seed=seed).relu() * torch.tensor([1e-3, 1.0, 1.0, 30.0, 1.0, 1.0, 1.0])
    f[:, 4] = 0
    f[:, 6] = f[:, 1] + f[:, 2]
    return f


def classifier(seed: int, *, bias: bool = True) -> Classifier:
    scale = torch.tensor([300.0, 1.0, 1.0, 0.05, 1.0, 1.0, 1.0])
    return Classifier(random(K, D, seed=seed) * scale, random(K, seed=seed + 1) if bias else None)


def loss(layer: Classifier, f: Tensor, targets: Tensor) -> Tensor:
    return -(targets * logits_of(layer, f).log_softmax(1)).sum(1).mean()


def test_the_best_mixture_is_that_of_a_brute_search_in_numpy() -> None:
    labels = torch.arange(60) % K
    right = 1.2 * torch.eye(K)[labels]
    z1, z2 = right + random(60, K, seed=1), 3 * (right + random(60, K, seed=2))

    def softmax(z: Tensor, beta: float) -> np.ndarray:  # type: ignore[type-arg]
        weights = np.exp(z.numpy().astype(np.float64) / beta)
        return weights / weights.sum(1, keepdims=True)  # type: ignore[no-any-return]

    found = []
    for alpha in ALPHAS:
        for beta in BETAS:
            p = alpha * softmax(z1, 1.0) + (1 - alpha) * softmax(z2, beta)
            hits = int((p.argmax(1) == labels.numpy()).sum())
            found.append((hits, float(np.log(p[np.arange(60), labels.numpy()]).mean()), alpha, beta))
    hits, _, alpha, beta = max(found)
    mixture = best_mixture(z1, z2, labels)
    assert (mixture.alpha, mixture.beta) == (alpha, beta)
    assert 0 < alpha < 1, "the case is one in which both heads count"
    assert hits > max(int((z.argmax(1) == labels).sum()) for z in (z1, z2))
    assert (ALPHAS[0], ALPHAS[1], ALPHAS[-1], len(ALPHAS)) == (0.0, 0.05, 1.0, 21)


def test_a_layer_is_found_again_from_its_probabilities_whatever_it_starts_from() -> None:
    f, sought = embedding(), classifier(3)
    targets = logits_of(sought, f).softmax(1)
    found = nearest_layer(f, targets, classifier(9))
    assert found.bias is not None
    torch.testing.assert_close(logits_of(found, f).softmax(1), targets, rtol=0, atol=2e-3)
    assert (logits_of(found, f).argmax(1) == targets.argmax(1)).all()
    torch.testing.assert_close(found.weight[:, 4], classifier(9).weight[:, 4].double())


@pytest.mark.parametrize("bias", [True, False])
def test_the_fold_of_two_heads_has_no_slope_left_and_beats_both_heads_and_their_mean(bias: bool) -> None:
    f, first, second = embedding(), classifier(3, bias=bias), classifier(5)
    mixture = Mixture(alpha=0.4, beta=1.5)
    z1, z2 = logits_of(first, f), logits_of(second, f)
    expected = 0.4 * z1.softmax(1) + 0.6 * (z2 / 1.5).softmax(1)
    torch.testing.assert_close(mixture.of(z1, z2), expected)
    found = folded(mixture, first, second, f)
    assert (found.bias is not None) == bias
    weight = found.weight.clone().requires_grad_()
    (slope,) = torch.autograd.grad(loss(Classifier(weight, found.bias), f, expected), weight)
    assert float((slope / f.std(0).clamp_min(1e-9)).abs().max()) < 2e-5, "per unit of white noise"
    mean = Classifier(0.4 * first.weight + 0.4 * second.weight, None if not bias else first.bias)
    reached = float(loss(found, f, expected))
    assert reached < min(float(loss(other, f, expected)) for other in (first, second, mean))
    best = -(expected * expected.log()).sum(1).mean()
    assert reached - float(best) < 0.25 * min(float(loss(other, f, expected) - best) for other in (first, second))


def test_a_head_that_counts_alone_is_taken_as_it_is() -> None:
    f, first, second = embedding(), classifier(3), classifier(5)
    alone = folded(Mixture(alpha=1.0, beta=2.0), first, second, f)
    assert first.bias is not None
    assert second.bias is not None
    assert alone.bias is not None
    assert torch.equal(alone.weight, first.weight.double())
    assert torch.equal(alone.bias, first.bias.double())
    other = folded(Mixture(alpha=0.0, beta=2.0), first, second, f)
    assert other.bias is not None
    assert torch.equal(other.weight, second.weight.double() / 2)
    assert torch.equal(other.bias, second.bias.double() / 2)


def test_a_head_with_a_bias_is_fitted_where_the_layer_has_none() -> None:
    f, first, second = embedding(), classifier(3, bias=False), classifier(5)
    found = folded(Mixture(alpha=0.0, beta=1.0), first, second, f)
    targets = logits_of(second, f).softmax(1)
    assert found.bias is None
    assert float(loss(found, f, targets)) < float(loss(Classifier(second.weight, None), f, targets))


def test_fewer_images_than_inputs_and_images_that_are_all_the_same_give_finite_layers() -> None:
    first, second, mixture = classifier(3), classifier(5), Mixture(alpha=0.5, beta=1.0)
    for f in (embedding()[:3], embedding()[:1].expand(6, D)):
        found = folded(mixture, first, second, f)
        assert found.bias is not None
        assert torch.isfinite(found.weight).all()
        assert torch.isfinite(found.bias).all()
        expected = mixture.of(logits_of(first, f), logits_of(second, f))
        torch.testing.assert_close(logits_of(found, f).softmax(1), expected, rtol=0, atol=1e-2)
