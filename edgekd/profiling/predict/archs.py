"""Networks in the forms that people hold them in, turned into one table: operations by position, and known numbers.

A transfer model needs to know what a network is made of, not how it is built. Accepted are op-index sequences,
NAS-Bench-201 strings, FBNet op-id strings and rows of features; nothing here builds or runs a network.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgekd.errors import UserError
from edgekd.profiling.predict.macro import NB201_OPS, fbnet_numbers, is_fbnet, unfed_edges, unread_edges

Form = Literal["operations", "nasbench201", "fbnet", "features"]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Archs = Sequence[str] | Sequence[Sequence[float]] | NDArray[Any]
"""Networks as callers write them; `arch_table` says which forms there are."""
ABSENT = -1
"""Fills up shorter sequences; an absent operation costs nothing."""
MAX_OPS = 64
"""Rows of integers at or above this are numbers of a network (MACs, sizes), not op ids."""

_OP_IDS = frozenset(text for op in range(MAX_OPS) for text in (str(op), f"{op:02}"))


@dataclass(frozen=True, kw_only=True)
class ArchTable:
    """N networks.

    Attributes:
        form: How they were written.
        operations: (N, P) op ids, `ABSENT` where a sequence is shorter; P is 0 for rows of features.
        unread: (N, P), true where nothing reads the operation's result (NAS-Bench-201); false where that is not known.
        unfed: (N, P), true where nothing but zeros reaches the operation; known as for `unread`.
        numbers: (N, F) quantities that add up over a network, such as multiply-accumulates.
    """

    form: Form
    operations: Ints
    unread: NDArray[np.bool_]
    unfed: NDArray[np.bool_]
    numbers: Floats

    def __len__(self) -> int:
        return len(self.operations)

    def take(self, rows: Ints | Sequence[int]) -> ArchTable:
        """The networks in these rows."""
        chosen = np.asarray(rows, dtype=np.int64)
        return ArchTable(
            form=self.form,
            operations=self.operations[chosen],
            unread=self.unread[chosen],
            unfed=self.unfed[chosen],
            numbers=self.numbers[chosen],
        )

    def identities(self) -> list[bytes]:
        """What tells networks apart."""
        return [a.tobytes() + b.tobytes() for a, b in zip(self.operations, self.numbers, strict=True)]


def arch_table(archs: Archs) -> ArchTable:
    """The table of some networks, all written in one form.

    Args:
        archs: NAS-Bench-201 strings (`|nor_conv_3x3~0|+|...`); strings of op ids (`7 8 1 ...`, also with commas or
            brackets), where 22 ids from 0 to 8 mean the FBNet space; sequences of integers below 64, which are op ids
            and may differ in length; or rows of any other numbers, which are features that every network has.

    Raises:
        UserError: Nothing, a mix of forms, or something that is none of them; the message names the entry.
    """
    if isinstance(archs, str) or not hasattr(archs, "__len__") or not hasattr(archs, "__getitem__"):
        raise UserError(f"archs: expected a sequence of networks, got {type(archs).__name__}.")
    entries: list[Any] = list(archs)
    if not entries:
        raise UserError("archs: expected at least one network, got none.")
    if all(isinstance(entry, str) for entry in entries):
        if all(entry.strip().startswith("|") for entry in entries):
            return _cells(entries)
        return _sequences([_ids(entry, index) for index, entry in enumerate(entries)])
    if any(isinstance(entry, str) for entry in entries):
        raise UserError("archs: some are strings and some are not.", hint="write all networks in one form")
    rows = [_numbers(entry, index) for index, entry in enumerate(entries)]
    if all(np.all((row == np.round(row)) & (row >= 0) & (row < MAX_OPS)) for row in rows):
        return _sequences([row.astype(np.int64) for row in rows])
    return _features(rows)


def same_form(archs: Archs, known: ArchTable) -> ArchTable:
    """The table of further networks of the kind that `known` holds.

    Raises:
        UserError: Another form, longer sequences, or another number of features.
    """
    found = arch_table(archs)
    if known.form == "features" and found.form != "features" and found.operations.shape[1]:
        # Feature rows that happen to be small integers.
        found = _features([_numbers(row, index) for index, row in enumerate(archs)])
    if found.form != known.form and {found.form, known.form} != {"operations", "fbnet"}:
        raise UserError(f"archs: expected networks written as {known.form}, as in the fit, got {found.form}.")
    wide, width = known.operations.shape[1], found.operations.shape[1]
    if width > wide:
        raise UserError(f"archs: at most {wide} operations were fitted, got a network of {width}.")
    if known.form == "features" and found.numbers.shape[1] != known.numbers.shape[1]:
        expected = known.numbers.shape[1]
        raise UserError(f"archs: expected {expected} features per network, got {found.numbers.shape[1]}.")
    if found.form == known.form and width == wide:
        return found
    operations = np.full((len(found), wide), ABSENT, dtype=np.int64)
    operations[:, :width] = found.operations
    numbers = fbnet_numbers(operations) if known.form == "fbnet" and is_fbnet(operations) else None
    if known.form == "fbnet" and numbers is None:
        raise UserError("archs: expected 22 op ids from 0 to 8 (FBNet), as in the fit.")
    return _table(known.form, operations, numbers)


def _cells(entries: list[str]) -> ArchTable:
    rows = []
    for index, entry in enumerate(entries):
        names = re.findall(r"([a-z0-9_]+)~(\d+)", entry)
        if [int(source) for _, source in names] != [0, 0, 1, 0, 1, 2] or any(n not in NB201_OPS for n, _ in names):
            raise UserError(
                f"archs: entry {index} is not a NAS-Bench-201 cell: {entry!r}.",
                hint=f"six edges |op~0|+|op~0|op~1|+|op~0|op~1|op~2| with op among {', '.join(NB201_OPS)}",
            )
        rows.append([NB201_OPS.index(name) for name, _ in names])
    operations = np.array(rows, dtype=np.int64)
    return ArchTable(
        form="nasbench201",
        operations=operations,
        unread=np.array([unread_edges(row) for row in rows]),
        unfed=np.array([unfed_edges(row) for row in rows]),
        numbers=np.zeros((len(rows), 0)),
    )


def _sequences(rows: list[Ints]) -> ArchTable:
    width = max(len(row) for row in rows)
    operations = np.full((len(rows), width), ABSENT, dtype=np.int64)
    for index, row in enumerate(rows):
        operations[index, : len(row)] = row
    if is_fbnet(operations):
        return _table("fbnet", operations, fbnet_numbers(operations))
    return _table("operations", operations, None)


def _features(rows: list[Floats]) -> ArchTable:
    widths = {len(row) for row in rows}
    if len(widths) > 1:
        raise UserError(f"archs: rows of features must be equally long, got lengths {sorted(widths)}.")
    numbers = np.array(rows, dtype=np.float64)
    return _table("features", np.zeros((len(rows), 0), dtype=np.int64), numbers)


def _table(form: Form, operations: Ints, numbers: Floats | None) -> ArchTable:
    empty = np.zeros((len(operations), 0))
    return ArchTable(
        form=form,
        operations=operations,
        unread=np.zeros(operations.shape, dtype=np.bool_),
        unfed=np.zeros(operations.shape, dtype=np.bool_),
        numbers=empty if numbers is None else numbers,
    )


def _ids(entry: str, index: int) -> Ints:
    words = entry.strip().strip("[]()").replace(",", " ").split()
    if not words or not _OP_IDS.issuperset(words):
        raise UserError(
            f"archs: entry {index} is neither a NAS-Bench-201 string nor a string of op ids: {entry[:60]!r}.",
            hint=f"op ids are integers from 0 to {MAX_OPS - 1}, separated by spaces",
        )
    return np.array([int(word) for word in words], dtype=np.int64)


def _numbers(entry: object, index: int) -> Floats:
    try:
        row = np.asarray(entry, dtype=np.float64)
    except (TypeError, ValueError) as err:
        raise UserError(f"archs: entry {index} is not a row of numbers ({err}).") from err
    if row.ndim != 1 or not len(row) or not np.all(np.isfinite(row)):
        raise UserError(f"archs: entry {index} must be a non-empty row of finite numbers, got shape {row.shape}.")
    return row
