"""Proxies of one network against computations of their own in float64 numpy, on networks a few numbers wide."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgekd.errors import UserError
from edgekd.search.proxies.jacobcov import jacobian_score
from edgekd.search.proxies.meco import smallest_eigenvalue
from edgekd.search.proxies.naswot import code_kernel
from edgekd.search.proxies.network import batch_statistics, halves
from edgekd.search.proxies.vkdnw import _mixtures, decile_entropy, fisher_matrix
from edgekd.search.proxies.zen import zen_score
from edgekd.search.proxies.zico import inverse_variation
from edgekd.search.proxy import Batch, Unscorable
from edgekd.search.proxy_names import proxy_from_name
from edgekd.testing.toys import toy_cnn

Array = npt.NDArray[np.float64]
SIDE, HIDDEN, CLASSES = 2, 16, 3


class Perceptron(nn.Module):
    """`W2 relu(W1 x + b1) + b2`, its activation called as a function."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first = nn.Linear(3 * SIDE * SIDE, HIDDEN)
        self.second = nn.Linear(HIDDEN, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.second(F.relu(self.first(x.flatten(1))))
        return logits


def batch() -> Batch:
    images = torch.randn(6, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    return Batch(images=images, labels=torch.tensor([2, 0, 1, 1, 0, 2]))


def score(name: str, network: nn.Module, given: Batch) -> float:
    return proxy_from_name(name).score(network, toy_cnn(), given)


def array(tensor: Tensor) -> Array:
    return tensor.detach().double().numpy()


def parts(network: Perceptron, given: Batch) -> tuple[Array, Array, Array, Array]:
    """(W1, W2, x, pre-activations)."""
    w1, w2, x = array(network.first.weight), array(network.second.weight), array(given.images.flatten(1))
    return w1, w2, x, x @ w1.T + array(network.first.bias)


def gradients(network: Perceptron, given: Batch) -> list[Array]:
    """By W1 and W2, of the mean cross-entropy."""
    _, w2, x, pre = parts(network, given)
    hidden = np.maximum(pre, 0)
    logits = hidden @ w2.T + array(network.second.bias)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    back = (p - np.eye(CLASSES)[given.labels.numpy()]) / len(x)
    return [((back @ w2) * (pre > 0)).T @ x, back.T @ hidden]


def test_naswot_is_the_log_determinant_of_the_agreements() -> None:
    network = Perceptron()
    codes = parts(network, batch())[3] > 0
    kernel = (codes[:, None] == codes[None, :]).sum(2).astype(float)
    assert np.array_equal(code_kernel(network, batch().images)[0].numpy(), kernel)
    assert score("naswot", network, batch()) == pytest.approx(np.linalg.slogdet(kernel)[1])


@pytest.mark.parametrize("kind", [nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU, nn.GELU])
def test_naswot_reads_the_codes_of_activation_modules_of_each_kind(kind: type[nn.Module]) -> None:
    network = Perceptron()
    other = nn.Sequential(nn.Flatten(), network.first, kind(), network.second)
    assert torch.equal(code_kernel(other, batch().images)[0], code_kernel(network, batch().images)[0])


def test_naswot_refuses_a_network_whose_activations_do_not_tell_images_apart() -> None:
    images = batch().images
    twice = Batch(images=torch.cat([images, images[:1]]), labels=torch.zeros(7, dtype=torch.int64))
    with pytest.raises(Unscorable, match="do not tell the images apart"):
        score("naswot", Perceptron(), twice)
    with pytest.raises(Unscorable, match="no activation"):
        score("naswot", nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), batch())


def test_jacobian_covariance_is_that_of_the_correlations_of_the_input_gradients() -> None:
    w1, w2, _, pre = parts(Perceptron(), batch())
    jacobian = (w2.sum(0) * (pre > 0)) @ w1
    eigenvalues = np.linalg.eigvalsh(np.corrcoef(jacobian)).clip(0) + 1e-5
    expected = -(np.log(eigenvalues) + 1 / eigenvalues).sum()
    assert jacobian_score(torch.from_numpy(jacobian)) == pytest.approx(expected)
    # In float32 the smallest eigenvalues, whose inverses are summed, are only known so well.
    assert score("jacobcov", Perceptron(), batch()) == pytest.approx(expected, rel=2e-2)


def test_jacobian_covariance_is_largest_for_uncorrelated_gradients() -> None:
    uncorrelated = torch.tensor([[1.0, -1, 0, 0], [0, 0, 1, -1], [1, 1, -1, -1]])
    assert jacobian_score(uncorrelated) == pytest.approx(-3, abs=1e-3)
    assert jacobian_score(uncorrelated + 0.5 * uncorrelated[:1]) < -3.1


def test_jacobian_covariance_refuses_a_gradient_of_zero() -> None:
    with pytest.raises(Unscorable, match="do not change with the image"):
        jacobian_score(torch.tensor([[1.0, 2.0, 4.0], [0.0, 0.0, 0.0]]))


def test_synflow_is_the_flow_through_absolute_weights() -> None:
    w1, w2, _, _ = parts(Perceptron(), batch())
    flow = (np.abs(w2) @ np.abs(w1)).sum()
    # Each layer carries the whole flow, so the sum over the weights of two layers counts it twice.
    assert score("synflow", Perceptron(), batch()) == pytest.approx(np.log(2 * flow))


def test_synflow_passes_normalisation_and_bounded_activations_unchanged() -> None:
    first, second = Perceptron().first, Perceptron().second
    bounded = nn.Sequential(nn.Flatten(), first, nn.BatchNorm1d(HIDDEN), nn.ReLU6(), second)
    assert score("synflow", bounded, batch()) == pytest.approx(score("synflow", Perceptron(), batch()))


def test_synflow_refuses_a_network_without_flow() -> None:
    network = Perceptron()
    nn.init.zeros_(network.second.weight)
    with pytest.raises(Unscorable, match="No signal flows"):
        score("synflow", network, batch())


def test_gradnorm_and_snip_read_the_gradients_of_the_cross_entropy() -> None:
    network = Perceptron()
    g1, g2 = gradients(network, batch())
    w1, w2, _, _ = parts(network, batch())
    assert score("gradnorm", network, batch()) == pytest.approx(np.linalg.norm(g1) + np.linalg.norm(g2), rel=1e-5)
    assert score("snip", network, batch()) == pytest.approx(np.abs(w1 * g1).sum() + np.abs(w2 * g2).sum(), rel=1e-5)


def test_zico_compares_the_gradients_of_two_halves() -> None:
    network = Perceptron()
    stacked = [np.stack(pair) for pair in zip(*(gradients(network, half) for half in halves(batch())), strict=True)]
    expected = 0.0
    for layer in stacked:
        deviation = layer.std(0)
        moving = deviation > 1e-12
        expected += np.log((np.abs(layer).mean(0)[moving] / deviation[moving]).sum())
    assert score("zico", network, batch()) == pytest.approx(expected, rel=1e-3)


def test_weights_whose_gradients_do_not_vary_add_nothing_to_zico() -> None:
    varying = torch.tensor([1.0, 2.0, -1.0]), torch.tensor([1.0, 4.0, 1.0])
    assert inverse_variation(*varying) == pytest.approx(6 / 2 + 2 / 2)


def test_the_halves_of_a_batch_split_each_class_and_do_not_depend_on_the_order() -> None:
    given = batch()
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    shuffled = halves(Batch(images=given.images[order], labels=given.labels[order]))
    for half, other in zip(halves(given), shuffled, strict=True):
        assert half.labels.tolist() == [0, 1, 2]
        assert torch.equal(half.images, other.images)


def test_a_batch_that_is_too_small_for_halves_is_an_error() -> None:
    small = Batch(images=batch().images[:3], labels=batch().labels[:3])
    with pytest.raises(UserError, match="at least 4 images; got 3"):
        score("zico", Perceptron(), small)


class Normalised(nn.Module):
    """A 1x1 convolution with BatchNorm, the mean over pixels, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.conv = nn.Conv2d(3, 4, 1, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.classifier = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.bn(self.conv(x)).mean((2, 3)))
        return logits


def test_the_zen_score_is_the_reaction_times_the_scale_that_normalisation_took_out() -> None:
    network, rng = Normalised(), torch.Generator().manual_seed(1)
    x = torch.randn(4, 3, SIDE, SIDE, generator=rng)
    moved = x + 0.01 * torch.randn(x.shape, generator=rng)
    weight = array(network.conv.weight)[:, :, 0, 0]
    weight = weight / weight.std(ddof=1)

    def features(images: Tensor) -> tuple[Array, Array]:
        y = np.einsum("oc,nchw->nohw", weight, array(images))
        variance = y.var((0, 2, 3))
        normalised = (y - y.mean((0, 2, 3), keepdims=True)) / np.sqrt(variance + 1e-5)[None, :, None, None]
        return normalised, variance

    (first, variance), (second, _) = features(x), features(moved)
    expected = np.log(np.abs(first - second).sum((1, 2, 3)).mean()) + np.log(np.sqrt(variance.mean()))
    assert zen_score(network, x, moved) == pytest.approx(expected, rel=1e-4)


def test_meco_is_the_smallest_eigenvalue_of_the_correlation_of_the_channels() -> None:
    channels = torch.randn(3, 10, generator=torch.Generator().manual_seed(0))
    assert smallest_eigenvalue(channels) == pytest.approx(np.linalg.eigvalsh(np.corrcoef(array(channels)))[0])
    assert smallest_eigenvalue(torch.eye(4)) == 0


def test_batch_statistics_normalise_by_the_batch_and_keep_the_running_ones() -> None:
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5)).train()
    images = 5 + batch().images
    with batch_statistics(network):
        out = network(images)
    torch.testing.assert_close(out.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    norm = network[0]
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.num_batches_tracked == 0
    assert torch.equal(norm.running_mean, torch.zeros(3))
    assert norm.track_running_stats
    assert all(part.training for part in network.modules())


@pytest.mark.parametrize("name", ["gradnorm", "snip", "zico"])
def test_a_network_whose_weights_get_no_gradient_is_unscorable(name: str) -> None:
    network = Perceptron()
    network.requires_grad_(False)
    with pytest.raises(Unscorable, match="no trainable weights"):
        score(name, network, batch())


def test_logits_that_overflow_are_unscorable() -> None:
    network = Perceptron()
    nn.init.constant_(network.second.weight, 3e38)
    with pytest.raises(Unscorable, match="overflow"):
        score("naswot", network, batch())


def test_the_fisher_matrix_is_that_of_the_smoothed_probabilities() -> None:
    network, given = Perceptron(), batch()
    _, w2, x, pre = parts(network, given)
    hidden = np.maximum(pre, 0)
    logits = hidden @ w2.T + array(network.second.bias)
    p = 0.95 * np.exp(logits) / np.exp(logits).sum(1, keepdims=True) + 0.05 / CLASSES
    expected = np.zeros((HIDDEN * (12 + CLASSES),) * 2)
    for n in range(len(x)):
        # d logits / d W1[h, i] = W2[:, h] * (pre_h > 0) * x_i, and d logits / d W2[k, h] = e_k * hidden_h.
        first = np.einsum("kh,i->khi", w2 * (pre[n] > 0), x[n]).reshape(CLASSES, -1)
        second = np.einsum("kj,h->kjh", np.eye(CLASSES), hidden[n]).reshape(CLASSES, -1)
        jacobian = np.hstack([first, second])
        expected += jacobian.T @ (np.diag(p[n]) - np.outer(p[n], p[n])) @ jacobian / len(x)
    found = fisher_matrix(network, given.images, weights=10**6)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-7)


def test_the_fisher_matrix_of_convolutions_is_that_of_their_weights() -> None:
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(3, 4, 3, padding=1, stride=2), nn.Conv2d(4, 4, 3, padding=1, groups=2)]
    network = nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, CLASSES))
    images = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    chosen = [part.weight for part in network.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
    expected = torch.zeros(sum(weight.numel() for weight in chosen), sum(weight.numel() for weight in chosen))
    for image in images:
        logits = network(image[None])[0]
        p = 0.95 * logits.detach().softmax(0) + 0.05 / CLASSES
        back = [torch.autograd.grad(logit, chosen, retain_graph=True) for logit in logits]
        jacobian = torch.stack([torch.cat([grad.flatten() for grad in row]) for row in back])
        expected += jacobian.T @ (torch.diag(p) - torch.outer(p, p)) @ jacobian / len(images)
    torch.testing.assert_close(fisher_matrix(network, images, weights=10**6).float(), expected, rtol=1e-3, atol=1e-6)


def test_mixtures_of_many_classes_have_the_covariance_of_all_on_average() -> None:
    p = torch.randn(2, 40, generator=torch.Generator().manual_seed(0)).softmax(1)
    few = torch.stack(_mixtures(p[:, :3] / p[:, :3].sum(1, keepdim=True)))
    covariance = torch.einsum("ank,anj->nkj", few, few)
    q = p[:, :3] / p[:, :3].sum(1, keepdim=True)
    torch.testing.assert_close(covariance, torch.diag_embed(q) - q[:, :, None] * q[:, None, :])
    many = torch.stack(_mixtures(p))
    assert many.shape == (10, 2, 40)
    traces = many.square().sum((0, 2))
    torch.testing.assert_close(traces, 1 - p.square().sum(1), rtol=0.3, atol=0)


def test_vkdnw_is_the_entropy_of_the_deciles() -> None:
    assert decile_entropy(torch.ones(128)) == pytest.approx(np.log(9))
    eigenvalues = torch.linspace(0, 1, 101)
    share = np.arange(1, 10) / np.arange(1, 10).sum()
    assert decile_entropy(eigenvalues) == pytest.approx(-(share * np.log(share)).sum())
    with pytest.raises(Unscorable, match="hardly any"):
        decile_entropy(torch.zeros(20))
