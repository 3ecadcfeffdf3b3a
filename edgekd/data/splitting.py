"""Which image goes into which split. Decided by content, so that no path, order or machine changes the answer.

Images are ordered by a hash of the seed and of their own bytes, class by class. Two consequences are worth having: one
more image moves only its neighbours at a cut, and an image that occurs twice never stands on both sides of one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Int64Array = npt.NDArray[np.int64]

HOLDOUT_SHARES = (0.8, 0.1, 0.1)
"""train, select, test of a source that comes without a split."""


def dealt(
    keys: Sequence[bytes], labels: Int64Array | None, shares: Sequence[float], seed: int
) -> tuple[Int64Array, ...]:
    """The rows of each part, ascending; stratified by label, repeatable, equal images together.

    Args:
        keys: Content hash of each row.
        labels: (N,) class of each row, or None for a single stratum.
        shares: Size of each part; they sum to 1. Every part but the first gets at least one row of each class that
            has as many rows as there are parts; a class with fewer goes into the first part whole.
        seed: Another seed gives another split.
    """
    prefix = seed.to_bytes(8, "big", signed=True)
    ranks = [hashlib.sha256(prefix + key).digest() for key in keys]
    strata = np.zeros(len(keys), dtype=np.int64) if labels is None else labels
    parts: list[list[int]] = [[] for _ in shares]
    for stratum in np.unique(strata):
        rows = sorted((int(row) for row in np.flatnonzero(strata == stratum)), key=lambda row: (ranks[row], row))
        for part, chosen in zip(reversed(parts), _cut(rows, ranks, shares), strict=True):
            part.extend(chosen)
    return tuple(np.array(sorted(part), dtype=np.int64) for part in parts)


def repeated(keys: Sequence[bytes], others: Sequence[bytes]) -> int:
    """How many of `others` also occur in `keys`."""
    known = set(keys)
    return sum(key in known for key in others)


def _cut(rows: list[int], ranks: Sequence[bytes], shares: Sequence[float]) -> list[list[int]]:
    """Consecutive pieces of `rows` for the last share, the one before it, ..., and the rest for the first."""
    pieces = []
    start = 0
    for share in reversed(shares[1:]):
        wanted = max(1, round(len(rows) * share)) if len(rows) >= len(shares) else 0
        end = min(start + wanted, len(rows))
        while start < end < len(rows) and ranks[rows[end]] == ranks[rows[end - 1]]:
            end += 1
        pieces.append(rows[start:end])
        start = end
    return [*pieces, rows[start:]]
