"""Reads what TensorRT says of an engine's layers: the inspector's JSON, and the times that it tells a profiler.

Written after the documentation and published outputs of TensorRT 8.5 to 11; not checked against hardware. TensorRT
fuses: a layer often stands for several operators of the graph, and its name lists them.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from edgekd.core.layers import Arithmetic, LayerTime

CONVERSIONS = frozenset({"Reformat", "Quantize", "Dequantize", "Cast"})
BOOKKEEPING = frozenset({"NoOp", "Shape", "ShapeHostToDeviceCopy", "Constant", "Wait", "Signal"})
UNKNOWN = "unknown"
"""Operator of a layer of an engine that was built without detailed names."""


def layers_from_information(
    information: Mapping[str, Any], times_ms: Mapping[str, Sequence[float]], provider: str
) -> list[LayerTime]:
    """The layers in the engine's order; those that the profiler was told of alone come last.

    Args:
        information: Of `EngineInspector.get_engine_information` in its JSON form. Its layers are objects where the
            engine was built with detailed verbosity, else names.
        times_ms: By the layer's name, a value for each recorded call.
        provider: The device.
    """
    told = [layer if isinstance(layer, Mapping) else {"Name": layer} for layer in information.get("Layers", [])]
    known = {str(layer.get("Name", "")): layer for layer in told}
    names = [*(name for name in known if name in times_ms), *(name for name in times_ms if name not in known)]
    return [
        LayerTime(
            name=name,
            op=operator(known.get(name, {})),
            provider=provider,
            arithmetic=arithmetic(known.get(name, {})),
            kernel=str(known.get(name, {}).get("TacticName", "")),
            median_ms=max(0.0, statistics.median(times_ms[name])),
        )
        for name in names
        if times_ms[name]
    ]


def operator(layer: Mapping[str, Any]) -> str:
    """The operator of a layer: `ParameterType` names it as the network did, `LayerType` as the implementation does."""
    return str(layer.get("ParameterType") or layer.get("LayerType") or UNKNOWN)


def arithmetic(layer: Mapping[str, Any]) -> Arithmetic:
    """What a layer computed in: the type of its first input, or of its weights where the input's is not told."""
    names = {str(layer.get("LayerType", "")), operator(layer)}
    if names & CONVERSIONS:
        return "conversion"
    if names & BOOKKEEPING:
        return "other"
    weights = layer.get("Weights")
    for text in (_format(layer), str(weights.get("Type", "")) if isinstance(weights, Mapping) else ""):
        lowered = text.lower()
        if "int8" in lowered:
            return "int8"
        if any(word in lowered for word in ("float", "half", "fp32", "fp16", "bf16", "fp8", "tf32")):
            return "float"
    return "other"


def _format(layer: Mapping[str, Any]) -> str:
    """Memory format and type of the first input, one text in all versions."""
    inputs = layer.get("Inputs")
    first = inputs[0] if isinstance(inputs, Sequence) and inputs else None
    return str(first.get("Format/Datatype", "")) if isinstance(first, Mapping) else ""
