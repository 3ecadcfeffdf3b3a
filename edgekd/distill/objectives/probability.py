"""What the objectives on logits share: log-probabilities, divergences and entropy, all in at least float32.

Everything stays in the log domain: a probability that underflows to 0 has a finite logarithm there.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from edgekd.train.objective import full_precision


def log_probabilities(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """(N, K) `log softmax(logits / temperature)`."""
    return F.log_softmax(full_precision(logits) / temperature, dim=1)


def divergences(log_p: Tensor, log_q: Tensor) -> Tensor:
    """(N,) `KL(p || q)` of rows of log-probabilities (N, K); gradients flow into both."""
    return (log_p.exp() * (log_p - log_q)).sum(1)


def entropies(log_p: Tensor) -> Tensor:
    """(N,) entropy in nats of rows of log-probabilities (N, K)."""
    return -(log_p.exp() * log_p).sum(1)


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Scalar `-sum_k q_k log softmax(logits)_k`, mean over samples.

    Args:
        logits: (N, K).
        targets: q, (N, K) non-negative weights; a distribution in most uses.
    """
    return -(targets * log_probabilities(logits)).sum(1).mean()
