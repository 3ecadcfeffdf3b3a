"""Invented devices whose latency is a sum over operations, with noise."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

OPS, POSITIONS, NETWORKS = 4, 5, 300


def networks(seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [[int(op) for op in row] for row in rng.integers(0, OPS, (NETWORKS, POSITIONS))]


def latencies(archs: list[list[int]], device: int, noise: float = 0.01) -> NDArray[np.float64]:
    """Milliseconds: an overhead, and a cost of each operation at each position that differs by device."""
    rng = np.random.default_rng(1000 + device)
    kind = np.arange(OPS) ** rng.uniform(0.5, 1.5)
    cost = kind * rng.uniform(0.8, 1.2, (POSITIONS, 1)) + 0.1
    total = rng.uniform(1, 3) + cost[np.arange(POSITIONS), np.array(archs)].sum(axis=1)
    return np.asarray(total * np.exp(noise * rng.standard_normal(len(archs))))
