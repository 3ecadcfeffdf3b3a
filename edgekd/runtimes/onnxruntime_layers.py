"""Reads the trace that ONNX Runtime writes when profiling is on: which node ran where, in what, and for how long."""

from __future__ import annotations

import json
from collections.abc import Mapping
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
        calls: The last so many calls are averaged; earlier ones warmed up.
    """
    events: list[dict[str, Any]] = json.loads(path.read_text())
    starts = [event["ts"] for event in events if event["name"] == "model_run"]
    begin = sorted(starts)[-calls] if len(starts) >= calls else 0
    found: dict[str, tuple[Mapping[str, Any], list[int]]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_SUFFIX) and event["ts"] >= begin:
            name = event["name"][: -len(_SUFFIX)]
            found.setdefault(f"{event['args']['node_index']} {name}", (event["args"], []))[1].append(event["dur"])
    return [
        LayerTime(
            name=key.partition(" ")[2],
            op=args["op_name"],
            provider=args["provider"],
            arithmetic=arithmetic(args),
            mean_ms=sum(durations_us) / calls / 1000,
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
