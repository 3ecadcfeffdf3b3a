"""Reads the trace that ONNX Runtime writes when profiling is on: which node ran where, in what, and for how long."""

from __future__ import annotations

import bisect
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekd.core.layers import Arithmetic, LayerTime

CONVERSIONS = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Cast", "ReorderInput"})
CONVERSIONS_AND_LAYOUT = CONVERSIONS | {"ReorderOutput", "Transpose", "MemcpyFromHost", "MemcpyToHost"}
INT8_INSIDE = frozenset({"DynamicQuantizeMatMul", "DynamicQuantizeLSTM"})
"""Operators that take float and compute in 8 bits."""
_SUFFIX = "_kernel_time"


def layers_from_trace(path: Path, calls: int) -> list[LayerTime]:
    """The nodes of a trace in the order of their first run; whole microseconds are all that it records.

    Args:
        path: The file that `end_profiling` named.
        calls: The last so many calls count; earlier ones warmed up.
    """
    return layers_from_events(json.loads(path.read_text()), calls)


def layers_from_events(events: Sequence[Mapping[str, Any]], calls: int) -> list[LayerTime]:
    """The same from the events of a trace."""
    starts = sorted(event["ts"] for event in events if event["name"] == "model_run")[-calls:]
    found: dict[str, tuple[Mapping[str, Any], list[int]]] = {}
    for event in events:
        call = bisect.bisect_right(starts, event["ts"]) - 1
        if event.get("cat") == "Node" and event["name"].endswith(_SUFFIX) and call >= 0:
            key = f"{event['args']['node_index']} {event['name'][: -len(_SUFFIX)]}"
            found.setdefault(key, (event["args"], [0] * len(starts)))[1][call] += event["dur"]
    return [
        LayerTime(
            name=key.partition(" ")[2],
            op=args["op_name"],
            provider=args["provider"],
            arithmetic=arithmetic(args),
            median_ms=statistics.median(durations_us) / 1000,
        )
        for key, (args, durations_us) in found.items()
    ]


def arithmetic(args: Mapping[str, Any]) -> Arithmetic:
    """What a node computed in, from its operator and the type of its first input."""
    if args["op_name"] in CONVERSIONS_AND_LAYOUT:
        return "conversion"
    types = [next(iter(entry), "") for entry in args.get("input_type_shape", [])]
    first = types[0] if types else ""
    if args["op_name"] in INT8_INSIDE or first in ("int8", "uint8"):
        return "int8"
    return "float" if first in ("float", "float16", "bfloat16", "double") else "other"
