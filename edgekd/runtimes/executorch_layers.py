"""Reads the times of operations from ExecuTorch's event trace."""

from __future__ import annotations

import re
import statistics
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgekd.core.layers import Arithmetic, LayerTime

BACKEND = "XnnpackBackend"
PORTABLE = "portable"
"""ExecuTorch's own kernels, written to run anywhere: correct, and slow."""
_PORTABLE_CALL = "native_call_"
_MOVES = ("Convert", "Transpose")
_SHAPES = ("Copy", "Static Reshape", "Slice", "Static Slice", "Concatenate", "Even Split")
_INT8 = re.compile(r"\b(QS8|QC8W?|QU8|QD8|S8|U8)\b")
_FLOAT = re.compile(r"\bF(32|16)\b")


def layers_from_dump(path: Path, calls: int, *, quantized: bool) -> list[LayerTime]:
    """The operations in the order they ran, with medians over the last `calls` runs.

    Args:
        path: What the runtime wrote.
        calls: Runs that count; earlier ones warmed up.
        quantized: The program is meant to compute in int8; it decides what is said of operations without a type.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a program that was converted elsewhere has no record of its making
        from executorch.devtools import Inspector

        blocks = Inspector(etdump_path=str(path)).event_blocks
    events = [event for block in blocks if block.name == "Execute" for event in block.events]
    return layers_from_events(events, calls, quantized=quantized)


def layers_from_events(events: Sequence[Any], calls: int, *, quantized: bool) -> list[LayerTime]:
    """As `layers_from_dump`, of events with `name`, `is_delegated_op` and times `perf_data.raw` in ms, one a run."""
    found: list[LayerTime] = []
    for event in events:
        portable = event.name.startswith(_PORTABLE_CALL)
        if not (event.is_delegated_op or portable) or event.perf_data is None:
            continue  # what encloses others: the run, the call of a delegate, the call of an operator
        text = event.name.removeprefix(_PORTABLE_CALL).split(" #")[0].strip()
        found.append(
            LayerTime(
                name=f"{len(found)}: {text}",
                op=text.split(" (")[0].split(".")[0],
                provider=PORTABLE if portable else BACKEND,
                arithmetic="float" if portable else arithmetic(text, quantized=quantized),
                kernel=text,
                median_ms=max(statistics.median(event.perf_data.raw[-calls:]), 0.0),
            )
        )
    return found


def arithmetic(kernel: str, *, quantized: bool) -> Arithmetic:
    """What an operation of XNNPACK computed in, from a name such as `Convolution (NHWC, QC8) IGEMM`.

    Element-wise operations have no type in their name: in a quantized program it is not known, and `other` is said.
    """
    op = kernel.split(" (")[0]
    if op in _MOVES:
        return "conversion"
    if op in _SHAPES:
        return "other"
    if _INT8.search(kernel):
        return "int8"
    return "float" if _FLOAT.search(kernel) or not quantized else "other"
