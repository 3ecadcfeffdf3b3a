"""What devices are like: how far a new one departs from the known ones, learnt by treating each known one as new.

Each reference device gives settings of the transfer model's variances: the most likely ones for it, seen from all other
devices, and seen from those that are unlike it. A new device is taken to be like one of them; which, its measurements
say. So a sibling of a known device is predicted from that one, and a stranger from what operations cost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgekd.errors import UserError
from edgekd.profiling.predict.archs import Archs, ArchTable, Floats, Ints, arch_table
from edgekd.profiling.predict.basis import BLOCKS, Basis
from edgekd.profiling.predict.gaussian import Observed, most_likely_setting
from edgekd.profiling.predict.observations import Device, References, devices_from_references
from edgekd.profiling.predict.tables import DeviceTable, tables_from_devices

_ANCHORS = 2000
_LEARN_ON = 100
"""Measurements of each reference device that its setting is learnt from."""
_MOST_DEVICES = 24
"""Of more reference devices than this a random part is treated as new."""
_ALIKE = 0.97
"""Devices whose logarithmic latencies correlate more than this are siblings."""
NOISES = (-1.4, 0.0, 1.4)
"""A device may be less or more noisy than the one that it is like: added to the logarithm of the variance."""
_STRANGERS = (
    (0.3, 0.1, 0.3, 0.05, 0.02, 0.3, 0.05, 0.05, 0.05, 0.1, 0.3, 0.3, 0.3, 0.002),
    (0.03, 0.03, 0.1, 0.01, 0.01, 0.1, 0.01, 0.01, 0.02, 0.03, 0.1, 0.1, 0.1, 0.002),
    (1.0, 0.3, 1.0, 0.3, 0.1, 1.0, 0.3, 0.3, 0.3, 0.3, 1.0, 1.0, 0.3, 0.005),
)
"""Variances by block, then of the noise, that serve where too few reference devices say better."""


@dataclass(frozen=True, kw_only=True)
class Population:
    """Networks, reference devices and what was learnt from them; made by `learn`, used by `fit` and `choose_samples`.

    Attributes:
        archs: The universe of networks.
        ops: Number of operations.
        tables: Of the reference devices.
        basis: Spanned by all of them.
        settings: (M, blocks + 1) log variances.
        origins: (M,) the device that each setting was learnt from, -1 for none.
        others: For a reference device that is treated as new: the basis that all other devices span, and the one
            that only those span that are unlike it, by (device, with siblings).
        seed: What was drawn at random was drawn with it.
    """

    archs: ArchTable
    ops: int
    tables: tuple[DeviceTable, ...]
    basis: Basis
    settings: Floats
    origins: Ints
    others: Mapping[tuple[int, bool], Basis]
    seed: int


def learn(archs: Archs, reference_latencies: References, *, seed: int = 0) -> Population:
    """What the reference devices teach about the networks; takes seconds, so share it between `fit` and the choice.

    Args:
        archs: See `arch_table`.
        reference_latencies: (N, D) in ms, or device to latencies; NaN where not measured; None or empty for none.
        seed: Of what is drawn at random.
    """
    table = arch_table(archs)
    devices = devices_from_references(reference_latencies, len(table))
    return learn_from_tables(table, tables_from_devices(devices, table, operations_of(table), seed), seed)


def learn_from_tables(archs: ArchTable, tables: tuple[DeviceTable, ...], seed: int) -> Population:
    """The same from reference devices that are tables already: benchmarks leave out one device after the other."""
    ops = operations_of(archs)
    population = Population(
        archs=archs,
        ops=ops,
        tables=tables,
        basis=Basis(archs, tables, ops, anchors(archs, seed)),
        settings=np.zeros((0, len(BLOCKS) + 1)),
        origins=np.zeros(0, dtype=np.int64),
        others=_bases_of_others(archs, tables, ops, seed),
        seed=seed,
    )
    settings, origins = _settings(population)
    return replace(population, settings=settings, origins=origins)


def operations_of(archs: ArchTable) -> int:
    """Number of op ids, K."""
    return int(archs.operations.max(initial=0)) + 1


def observed_on(basis: Basis, rows: Ints, ms: Floats, step_ms: float) -> tuple[Observed, float]:
    """The measurements relative to what is typical, and the device's scale in ms."""
    base, blocks = basis.of_rows(rows)
    scale = float(np.median(ms / base))
    if not scale > 0:
        raise UserError("samples: latencies must be positive.")
    rounding = (step_ms / (scale * base)) ** 2 / 12
    return Observed(blocks=blocks, values=ms / (scale * base) - 1, rounding=rounding), scale


def anchors(archs: ArchTable, seed: int) -> Ints:
    """Rows that stand for the universe."""
    return np.random.default_rng(seed).permutation(len(archs))[:_ANCHORS]


def likeness(tables: Sequence[DeviceTable]) -> Floats:
    """(D, D) correlations of logarithmic latencies."""
    if len(tables) < 2:
        return np.ones((len(tables), len(tables)))
    return np.asarray(np.corrcoef(np.log(np.stack([table.fitted for table in tables]))))


def treated_as_new(tables: Sequence[DeviceTable], seed: int) -> list[int]:
    """Indices of the reference devices that take the part of a new one."""
    return sorted(int(i) for i in np.random.default_rng(seed).permutation(len(tables))[:_MOST_DEVICES])


def _bases_of_others(
    archs: ArchTable, tables: Sequence[DeviceTable], ops: int, seed: int
) -> dict[tuple[int, bool], Basis]:
    alike, anchor = likeness(tables), anchors(archs, seed)
    found: dict[tuple[int, bool], Basis] = {}
    for device in treated_as_new(tables, seed):
        rest = [i for i in range(len(tables)) if i != device]
        strangers = [i for i in rest if alike[device, i] < _ALIKE]
        found[device, True] = Basis(archs, [tables[i] for i in rest], ops, anchor)
        alone = len(strangers) == len(rest)
        found[device, False] = (
            found[device, True] if alone else Basis(archs, [tables[i] for i in strangers], ops, anchor)
        )
    return found


def _settings(population: Population) -> tuple[Floats, Ints]:
    found: list[tuple[Floats, int]] = []
    for index in treated_as_new(population.tables, population.seed):
        rows, ms, step_ms = _drawn(population.tables[index].device, population.seed)
        both = {id(basis): basis for basis in (population.others[index, True], population.others[index, False])}
        for basis in both.values():
            observed, _ = observed_on(basis, rows, ms, step_ms)
            found.append((most_likely_setting(observed), index))
    if len(population.tables) < 3:
        found += [(np.log(np.array(setting)), -1) for setting in _STRANGERS]
    return np.array([setting for setting, _ in found]), np.array([origin for _, origin in found], dtype=np.int64)


def _drawn(device: Device, seed: int) -> tuple[Ints, Floats, float]:
    chosen = np.random.default_rng(seed).permutation(len(device.rows))[:_LEARN_ON]
    return device.rows[chosen], device.ms[chosen], device.step_ms
