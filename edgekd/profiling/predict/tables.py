"""A reference device as a function of what networks are made of: its noise removed, defined for any network.

Latencies of sequential devices are sums over operations far more than products, so the fit is linear in milliseconds,
weighted so that residuals are relative. Measured columns are noisy; regressing on them directly would carry their
noise into the prediction of another device. What the function misses is kept as a residual and used where it is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import solve

from edgekd.profiling.predict.archs import ArchTable, Floats, Ints
from edgekd.profiling.predict.observations import Device

_RIDGES = (0.3, 3.0, 30.0)
_MOST_ROWS = 3000
_AT_ONCE = 4096
_PAIRS_UP_TO = 600
"""Columns of pairwise features; beyond, pairs are counted by their operations alone."""
_LEAST = 0.05
"""Share of the median below which a fitted latency is raised to it."""


@dataclass(frozen=True, kw_only=True)
class DeviceTable:
    """What operations cost on a reference device.

    Attributes:
        device: Where it comes from.
        median_ms: Of its latencies; everything else is in multiples of it.
        cost: (P, K) cost of each operation at each position, the cheapest of a position at zero.
        fitted: (N,) latency of each network of the universe.
        weights: Of the design's columns, the constant first.
        pairs: Whether the design has pairwise columns.
    """

    device: Device
    median_ms: float
    cost: Floats
    fitted: Floats
    weights: Floats
    pairs: bool

    def evaluate(self, archs: ArchTable, ops: int) -> Floats:
        """(N,) latencies of networks in multiples of the median."""
        return self.on(design(archs, ops, pairs=self.pairs))

    def on(self, columns: Floats) -> Floats:
        """The same, from the columns of `design`."""
        return np.asarray(np.maximum(self.weights[0] + columns @ self.weights[1:], _LEAST))


def one_hot(archs: ArchTable, ops: int) -> Floats:
    """(N, P, K), one where a position holds an operation."""
    return np.asarray(archs.operations[:, :, None] == np.arange(ops), dtype=np.float64)


def design(archs: ArchTable, ops: int, *, pairs: bool) -> Floats:
    """(N, columns): operations by position, by whether they are read and fed, pairs of them, and known numbers."""
    count, positions = archs.operations.shape
    hot = one_hot(archs, ops)
    columns = [hot.reshape(count, -1)]
    if archs.form == "nasbench201":
        columns.append((hot * archs.unread[:, :, None]).reshape(count, -1))
        columns.append((hot * archs.unfed[:, :, None]).reshape(count, -1))
    if archs.numbers.shape[1]:
        columns.append(archs.numbers)
        if archs.form == "features":
            columns.append(np.log1p(np.abs(archs.numbers)))
    if pairs and positions > 1:
        if positions * (positions - 1) // 2 * ops**2 <= _PAIRS_UP_TO:
            first, second = np.triu_indices(positions, 1)
            both = hot[:, first, :, None] * hot[:, second, None, :]
            columns.append(0.5 * both.reshape(count, -1))
        elif ops**2 <= _PAIRS_UP_TO:
            both = np.einsum("npi,npj->nij", hot[:, :-1], hot[:, 1:])
            columns.append(both.reshape(count, -1) / positions)
    return np.concatenate(columns, axis=1)


def tables_from_devices(devices: Sequence[Device], universe: ArchTable, ops: int, seed: int) -> tuple[DeviceTable, ...]:
    """The functions that fit the devices' latencies; of each a fifth decides on its ridge and on pairs."""
    designs: dict[bytes, tuple[ArchTable, _Scaled, _Scaled]] = {}
    found = []
    for device in devices:
        chosen = np.random.default_rng(seed).permutation(len(device.rows))[:_MOST_ROWS]
        rows = device.rows[chosen]
        if rows.tobytes() not in designs:  # devices measured with the same networks share their design
            archs = universe.take(rows)
            plain, paired = (_scaled(design(archs, ops, pairs=pairs)) for pairs in (False, True))
            designs[rows.tobytes()] = archs, plain, paired
        found.append(_fitted(device, chosen, *designs[rows.tobytes()], ops))
    return _with_universe(found, universe, ops)


def _fitted(device: Device, chosen: Ints, archs: ArchTable, plain: _Scaled, paired: _Scaled, ops: int) -> DeviceTable:
    median = float(np.median(device.ms))
    latency = device.ms[chosen] / median
    cut = max(1, len(chosen) // 5)
    trials = []
    for pairs, table in ((False, plain), (True, paired)):
        if pairs and not plain.values.shape[1] < table.values.shape[1] <= len(chosen):
            continue
        for ridge, weights in zip(_RIDGES, _relative_ridges(table.values[cut:], latency[cut:], _RIDGES), strict=True):
            guess = np.maximum(weights[0] + table.values[:cut] @ weights[1:], _LEAST)
            trials.append((float(np.median(np.abs(guess / latency[:cut] - 1))), pairs, ridge))
    _, pairs, ridge = min(trials)
    table = paired if pairs else plain
    return DeviceTable(
        device=device,
        median_ms=median,
        cost=_costs(archs, latency, ops),
        fitted=np.zeros(len(archs)),
        weights=table.unscaled(_relative_ridges(table.values, latency, (ridge,))[0]),
        pairs=pairs,
    )


def _with_universe(tables: Sequence[DeviceTable], universe: ArchTable, ops: int) -> tuple[DeviceTable, ...]:
    """The tables with their latencies of all networks; in parts, as the design of many networks is large."""
    parts = []
    for start in range(0, len(universe), _AT_ONCE):
        archs = universe.take(np.arange(start, min(start + _AT_ONCE, len(universe))))
        designs = {pairs: design(archs, ops, pairs=pairs) for pairs in {table.pairs for table in tables}}
        parts.append([table.on(designs[table.pairs]) for table in tables])
    columns = [np.concatenate([part[index] for part in parts]) for index in range(len(tables))]
    return tuple(replace(table, fitted=column) for table, column in zip(tables, columns, strict=True))


@dataclass(frozen=True, kw_only=True)
class _Scaled:
    """Columns brought to a spread of at most one, so that one ridge serves counts and gigabytes."""

    values: Floats
    scale: Floats

    def unscaled(self, weights: Floats) -> Floats:
        return np.concatenate([weights[:1], weights[1:] / self.scale])


def _scaled(table: Floats) -> _Scaled:
    spread = table.std(axis=0)
    scale = np.where(spread > 1, spread, 1.0)
    return _Scaled(values=table / scale, scale=scale)


def _relative_ridges(table: Floats, latency: Floats, ridges: Sequence[float]) -> list[Floats]:
    """For each ridge the (1 + columns,) weights with small residuals relative to the latency."""
    # A latency that noise made small would count too much: the weight is damped towards the median, which is one.
    weight = 1 / (np.maximum(latency, 0.2) + 0.2) ** 2
    center, mean = np.average(table, axis=0, weights=weight), float(np.average(latency, weights=weight))
    centred = table - center
    left = (centred * weight[:, None]).T
    gram, towards = left @ centred, left @ (latency - mean)
    found = []
    for ridge in ridges:
        slope = solve(gram + ridge * np.eye(len(gram)), towards, assume_a="pos", check_finite=False)
        found.append(np.concatenate([[mean - center @ slope], slope]))
    return found


def _costs(archs: ArchTable, latency: Floats, ops: int) -> Floats:
    positions = archs.operations.shape[1]
    if not positions:
        return np.zeros((0, ops))
    weights = _relative_ridges(one_hot(archs, ops).reshape(len(archs), -1), latency, _RIDGES[:1])[0]
    costs = weights[1:].reshape(positions, ops)
    # An operation that never came up at a position has no cost there: the ridge leaves it at zero, the mean.
    return np.asarray(costs - costs.min(axis=1, keepdims=True))
