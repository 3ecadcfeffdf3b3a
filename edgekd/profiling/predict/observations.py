"""Latencies as people hand them over, checked: of reference devices for all networks, of one device for a few."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import SupportsFloat, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from edgekd.errors import UserError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

References = Sequence[Sequence[float]] | Floats | Mapping[str, Sequence[float] | Floats | Mapping[int, float]] | None
"""(N, D) latencies in ms, or device to its latencies: N of them, or network index to ms. NaN: not measured there."""
Samples = Mapping[int, float] | tuple[Sequence[int] | Ints, Sequence[float] | Floats]
"""Network index to measured ms, or (indices, ms). An index may come up more than once in the second form."""

LEAST_REFERENCE = 8
"""A reference device with fewer latencies says too little about the rest."""
_FLOOR = 0.02
"""Share of the median below which latencies are raised to it: such networks are degenerate, and ratios explode."""
_STEPS_MS = (1.0, 0.5, 0.1)


@dataclass(frozen=True, kw_only=True)
class Device:
    """Latencies of a reference device.

    Attributes:
        name: For messages.
        rows: Networks that it has been measured with.
        ms: Their latencies, in the same order, none below `_FLOOR` of the median.
        step_ms: Rounding of the values, 0 where none shows.
    """

    name: str
    rows: Ints
    ms: Floats
    step_ms: float


def devices_from_references(references: References, count: int) -> tuple[Device, ...]:
    """The reference devices that have enough latencies; NaN and values that are not positive count as missing.

    Args:
        references: In one of the accepted forms.
        count: Networks, N.

    Raises:
        UserError: Another shape.
    """
    if references is None:
        return ()
    found = []
    for name, column in _columns(references, count).items():
        rows = np.flatnonzero(np.isfinite(column) & (column > 0))
        if len(rows) < LEAST_REFERENCE:
            continue
        ms = column[rows]
        floored = np.maximum(ms, _FLOOR * np.median(ms))
        found.append(Device(name=name, rows=rows, ms=floored, step_ms=rounding_step_ms(ms)))
    return tuple(found)


def samples_in_order(samples: Samples, count: int) -> tuple[Ints, Floats]:
    """(indices, ms) of the measurements.

    Raises:
        UserError: None, an index outside the networks, or a latency that is not a positive number.
    """
    if isinstance(samples, Mapping):
        pairs = list(samples.items())
    elif isinstance(samples, tuple) and len(samples) == 2 and len(samples[0]) == len(samples[1]):
        pairs = list(zip(samples[0], samples[1], strict=True))
    else:
        raise UserError("samples: expected a mapping of network index to ms, or (indices, ms) of equal length.")
    if not pairs:
        raise UserError(
            "samples: expected at least one measurement, got none.",
            hint="measure the networks that choose_samples() names",
        )
    for index, value in pairs:
        if not isinstance(index, SupportsIndex) or not 0 <= index.__index__() < count:
            raise UserError(f"samples: {index!r} is not the index of one of {count} networks.")
        if not isinstance(value, SupportsFloat) or not np.isfinite(float(value)) or float(value) <= 0:
            raise UserError(f"samples: the latency of network {index} must be a positive number of ms, got {value!r}.")
    rows = np.array([index.__index__() for index, _ in pairs], dtype=np.int64)
    return rows, np.array([float(value) for _, value in pairs])


def rounding_step_ms(values: Floats) -> float:
    """The step that all values are multiples of, where it is coarse enough to matter; 0 otherwise."""
    if len(values) < 4:
        return 0.0
    for step in _STEPS_MS:
        multiples = values / step
        if np.all(np.abs(multiples - np.round(multiples)) < 1e-6) and step > 0.002 * np.median(values):
            return step
    return 0.0


def _columns(references: References, count: int) -> dict[str, Floats]:
    if isinstance(references, Mapping):
        return {str(name): _column(str(name), values, count) for name, values in references.items()}
    try:
        matrix = np.asarray(references, dtype=np.float64)
    except (TypeError, ValueError) as err:
        raise UserError(f"reference_latencies: not a matrix of numbers ({err}).") from err
    if matrix.size == 0:
        return {}
    if matrix.ndim != 2 or len(matrix) != count:
        raise UserError(
            f"reference_latencies: expected ({count}, devices), one row per network, got shape {matrix.shape}.",
            hint="or give a mapping of device name to latencies",
        )
    return {f"device {index}": matrix[:, index] for index in range(matrix.shape[1])}


def _column(name: str, values: Sequence[float] | Floats | Mapping[int, float], count: int) -> Floats:
    if isinstance(values, Mapping):
        column = np.full(count, np.nan)
        for index, value in values.items():
            if not 0 <= index < count:
                raise UserError(f"reference_latencies of {name}: {index} is not the index of one of {count} networks.")
            column[index] = value
        return column
    column = np.asarray(values, dtype=np.float64)
    if column.shape != (count,):
        raise UserError(f"reference_latencies of {name}: expected {count} latencies, got shape {column.shape}.")
    return column
