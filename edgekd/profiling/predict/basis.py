"""What the latency of a network on a new device is made of: groups of functions, each relative to a typical latency.

    latency / (scale * base) = 1 + overhead/base + references + shares of operations + positions + ... + noise

Every group is one block of columns with a variance of its own. How large these variances are is learnt from the
reference devices (`population.py`): each one is, seen from the others, a device that is new.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgekd.profiling.predict.archs import ArchTable, Floats, Ints
from edgekd.profiling.predict.macro import fbnet_shapes, fbnet_stage_numbers
from edgekd.profiling.predict.tables import DeviceTable, one_hot

BLOCKS = (
    *("overhead", "references", "shares", "positions", "cells", "counts", "unread", "unfed", "smooth", "shapes"),
    *("numbers", "stages", "missed"),
)
_RESIDUALS = 3
_BUMPS = 6
_SEQUENTIAL = 8
"""Longer sequences are macro architectures, whose neighbouring positions behave alike."""


class Basis:
    """Functions of networks that some reference devices span; all centred on an anchor set of networks.

    Args:
        universe: The networks that the tables were fitted on.
        tables: Of the reference devices; may be empty.
        ops: Number of operations, K.
        anchor: Rows of the universe to centre on.
    """

    def __init__(self, universe: ArchTable, tables: Sequence[DeviceTable], ops: int, anchor: Ints) -> None:
        self.universe, self.tables, self.ops = universe, tuple(tables), ops
        self._cost = self._mean_cost()
        self._unit = 1.0
        self._unit = float(np.median(self._typical(self._latencies_of_rows(anchor))))
        self._numbers_mean = np.abs(universe.numbers).mean(axis=0) + 1e-12
        self._residual_maps = self._residuals(anchor)
        self._means: list[Floats] | None = None
        _, blocks = self._raw(universe.take(anchor), self._latencies_of_rows(anchor), self._known(anchor))
        self._means = [block.mean(axis=0) for block in blocks]

    def of_rows(self, rows: Ints) -> tuple[Floats, list[Floats]]:
        """(N,) base and the blocks, each (N, columns), of networks of the universe."""
        return self._raw(self.universe.take(rows), self._latencies_of_rows(rows), self._known(rows))

    def of_archs(self, archs: ArchTable) -> tuple[Floats, list[Floats]]:
        """The same for networks from outside, of which nothing was measured anywhere."""
        if self.tables:
            latencies = np.stack([table.evaluate(archs, self.ops) for table in self.tables], axis=1)
        else:
            latencies = np.ones((len(archs), 0))
        return self._raw(archs, latencies, np.zeros((len(archs), len(self.tables))))

    def _raw(self, archs: ArchTable, latencies: Floats, missed: Floats) -> tuple[Floats, list[Floats]]:
        base = self._typical(latencies)
        count, positions = archs.operations.shape
        hot = one_hot(archs, self.ops)
        spent = hot * self._cost
        numbers = shapes = stages = np.zeros((count, 0))
        if archs.numbers.shape[1]:
            numbers = 0.3 * archs.numbers / self._numbers_mean
        if archs.form == "fbnet":
            shapes = np.einsum("npk,ps->nsk", spent, fbnet_shapes()).reshape(count, -1)
            stages = fbnet_stage_numbers(archs.operations)
        found = {
            "overhead": np.ones((count, 1)),
            "references": latencies / np.sqrt(max(1, len(self.tables))),
            "shares": spent.sum(axis=1),
            "positions": spent.sum(axis=2),
            "cells": (hot * self._cost.mean(axis=1)[:, None]).reshape(count, -1),
            "counts": hot.sum(axis=1) * (float(self._cost.mean()) if positions else 0.0),
            "unread": (spent * archs.unread[:, :, None]).sum(axis=1),
            "unfed": (spent * archs.unfed[:, :, None]).sum(axis=1),
            "smooth": np.einsum("npk,pj->nkj", spent, _bumps(positions)).reshape(count, -1),
            "shapes": shapes,
            "numbers": numbers,
            "stages": stages,
        }
        blocks = [found[name] / base[:, None] for name in BLOCKS[:-1]]
        blocks.append(np.clip(missed / base[:, None], -0.3, 0.3) @ self._residual_maps)
        if self._means is not None:
            blocks = [block - mean for block, mean in zip(blocks, self._means, strict=True)]
        return base, blocks

    def _typical(self, latencies: Floats) -> Floats:
        """Geometric mean over the reference devices; one without any."""
        if not latencies.shape[1]:
            return np.ones(len(latencies))
        return np.asarray(np.exp(np.log(np.maximum(latencies, 0.1)).mean(axis=1)) / self._unit)

    def _latencies_of_rows(self, rows: Ints) -> Floats:
        if not self.tables:
            return np.ones((len(rows), 0))
        return np.stack([table.fitted[rows] for table in self.tables], axis=1)

    def _known(self, rows: Ints) -> Floats:
        """(N, D) what the tables miss of the latencies measured on the reference devices; zero where none was."""
        missed = np.zeros((len(rows), len(self.tables)))
        for index, table in enumerate(self.tables):
            full = np.zeros(len(self.universe))
            full[table.device.rows] = table.device.ms / table.median_ms - table.fitted[table.device.rows]
            missed[:, index] = full[rows]
        return missed

    def _residuals(self, anchor: Ints) -> Floats:
        """(D, up to 3) directions in which the reference devices depart from their tables together."""
        if not self.tables:
            return np.zeros((0, 0))
        base = self._typical(self._latencies_of_rows(anchor))
        missed = np.clip(self._known(anchor) / base[:, None], -0.3, 0.3)
        _, _, directions = np.linalg.svd(missed - missed.mean(axis=0), full_matrices=False)
        return np.asarray(directions[:_RESIDUALS].T / np.sqrt(len(self.tables)))

    def _mean_cost(self) -> Floats:
        positions = self.universe.operations.shape[1]
        if self.tables:
            return np.asarray(np.mean([table.cost for table in self.tables], axis=0))
        return np.full((positions, self.ops), 1 / max(1, positions))


def _bumps(positions: int) -> Floats:
    """(P, J) overlapping weights along a long sequence, each position's adding up to one; none for a short one."""
    if positions <= _SEQUENTIAL:
        return np.zeros((positions, 0))
    place = np.arange(positions)[:, None]
    width = positions / 9
    height = np.exp(-0.5 * ((place - np.linspace(0, positions - 1, _BUMPS)) / width) ** 2)
    return np.asarray(height / height.sum(axis=1, keepdims=True))
