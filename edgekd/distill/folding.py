"""Two classifiers on one embedding as one: which mixture is best, and the single layer that comes nearest to it.

Pure functions of tensors. A mixture of two softmaxes is no softmax of a linear layer, so something is lost; how much,
the caller measures.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from edgekd.train.signal import Classifier

ALPHAS = tuple(round(0.05 * step, 2) for step in range(21))
BETAS = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 4.0)
_ROUNDS = 200
_RELATIVE_RANK = 1e-10
_RIDGE = 1e-6


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """`alpha * softmax(first) + (1 - alpha) * softmax(second / beta)`.

    Attributes:
        alpha: In [0, 1].
        beta: Temperature of the second one.
    """

    alpha: float
    beta: float

    def of(self, first: Tensor, second: Tensor) -> Tensor:
        """(N, K) float64 probabilities from logits (N, K)."""
        p, q = first.double().softmax(1), (second.double() / self.beta).softmax(1)
        return self.alpha * p + (1 - self.alpha) * q


def best_mixture(first: Tensor, second: Tensor, labels: Tensor) -> Mixture:
    """The mixture that is right most often; of several, the one with the least cross-entropy with the labels.

    The grid is that of DHO (Kang, Lee, Jang and Hwang 2025, arXiv 2505.07675); they take the first of several.

    Args:
        first: (N, K) logits of held-out images.
        second: (N, K).
        labels: (N,) int64.
    """
    best: tuple[int, float] | None = None
    found = Mixture(alpha=1.0, beta=1.0)
    for beta in BETAS:
        p, q = Mixture(alpha=1.0, beta=beta).of(first, second), Mixture(alpha=0.0, beta=beta).of(first, second)
        for alpha in ALPHAS:
            mixed = alpha * p + (1 - alpha) * q
            hits = int((mixed.argmax(1) == labels).sum())
            fits = float(mixed.gather(1, labels[:, None]).clamp_min(torch.finfo(mixed.dtype).tiny).log().mean())
            if best is None or (hits, fits) > best:
                best, found = (hits, fits), Mixture(alpha=alpha, beta=beta)
    return found


def logits_of(classifier: Classifier, embedding: Tensor) -> Tensor:
    """(N, K) float64 from an embedding (N, D)."""
    bias = None if classifier.bias is None else classifier.bias.double()
    return F.linear(embedding.double(), classifier.weight.double(), bias)


def folded(mixture: Mixture, first: Classifier, second: Classifier, embedding: Tensor) -> Classifier:
    """The layer whose softmax comes nearest to the mixture on these embeddings; it has a bias where `first` has one.

    Where one of the two alone counts, it is that one, exactly. Else the cross-entropy of the layer with the mixture is
    minimised, which is convex, from the geometric mixture on, which is the layer of the mean logits.

    Args:
        mixture: Of the two.
        first: (K, D) and (K,).
        second: Likewise.
        embedding: (N, D) of images of the kind that will be seen.

    Returns:
        float64 weight and bias.
    """
    a, b = mixture.alpha, (1 - mixture.alpha) / mixture.beta
    biases = [torch.zeros(len(c.weight)).to(c.weight) if c.bias is None else c.bias for c in (first, second)]
    weight = a * first.weight.double() + b * second.weight.double()
    start = Classifier(weight, None if first.bias is None else a * biases[0].double() + b * biases[1].double())
    exact = first.bias is not None or second.bias is None
    if mixture.alpha == 1 or (mixture.alpha == 0 and exact):
        return start
    targets = mixture.of(logits_of(first, embedding), logits_of(second, embedding))
    return nearest_layer(embedding, targets, start)


def nearest_layer(embedding: Tensor, targets: Tensor, start: Classifier) -> Classifier:
    """The layer with the least cross-entropy `-sum_k q_k log softmax(W f + b)_k`, mean over samples, by L-BFGS.

    In the basis in which the embedding is white, so that all directions converge alike; along directions in which it
    does not vary, the layer stays what it was. A tiny ridge towards the start keeps the minimum unique and finite.

    Args:
        embedding: f, (N, D).
        targets: q, (N, K) probabilities.
        start: (K, D) and (K,) to begin from; without a bias the result has none.

    Returns:
        float64 weight and bias.
    """
    f, weight, q = (x.detach().double() for x in (embedding, start.weight, targets))
    middle = f.mean(0) if start.bias is not None else torch.zeros_like(f[0])
    centred = f - middle
    variances, axes = torch.linalg.eigh(centred.T @ centred / len(f))
    varies = variances > _RELATIVE_RANK * variances[-1].clamp_min(0)
    basis, scale = axes[:, varies], variances[varies].sqrt()
    white = centred @ basis / scale
    slopes = (weight @ basis * scale).requires_grad_()
    offset = torch.zeros(len(weight)).to(weight) if start.bias is None else start.bias.double() + weight @ middle
    offset = offset.detach().requires_grad_(start.bias is not None)
    free = [slopes, offset] if start.bias is not None else [slopes]
    _minimise(white, q, slopes, offset, free)
    with torch.no_grad():
        found = weight - weight @ basis @ basis.T + slopes / scale @ basis.T
        return Classifier(found, None if start.bias is None else offset - found @ middle)


@torch.enable_grad()
def _minimise(white: Tensor, targets: Tensor, slopes: Tensor, offset: Tensor, free: list[Tensor]) -> None:
    """Moves what is free to the minimum."""
    began = [x.detach().clone() for x in free]
    optimizer = torch.optim.LBFGS(
        free,
        max_iter=_ROUNDS,
        history_size=20,
        tolerance_grad=1e-10,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        log_p = F.linear(white, slopes, offset).log_softmax(1)
        ridge = sum(((x - x0) ** 2).sum() for x, x0 in zip(free, began, strict=True))
        loss: Tensor = -(targets * log_p).sum(1).mean() + _RIDGE * ridge
        for x, gradient in zip(free, torch.autograd.grad(loss, free), strict=True):
            x.grad = gradient
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]  # torch annotates the other optimizers only
