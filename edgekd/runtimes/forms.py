"""The forms in which an FP32 graph may be deployed, made without samples: good for timing, for nothing else.

A stage that only wants to know how long an engine takes needs the nodes that the deployed one will have, and no ranges:
what numbers stand in them does not change the time. Who makes a form stands with the stage that makes it in earnest.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import onnx

from edgekd.core.registry import Registry
from edgekd.errors import DeviceUnavailable
from edgekd.targets.schema import Precision, QuantScheme

Form: TypeAlias = Callable[[Path, Path], onnx.ModelProto]
"""(file of an exported float32 graph, folder for files meanwhile) to the graph in that form; raises `BuildFailed`."""

FORMS: Registry[Form] = Registry(
    "form of a graph",
    {
        "fp32": "edgekd.export.timing:fp32_form",
        "fp16": "edgekd.export.timing:fp16_form",
        "ort-u8s8": "edgekd.quant.timing:ort_form",
        "openvino": "edgekd.quant.timing:nncf_form",
        "tensorrt-s8": "edgekd.quant.timing:trt_form",
    },
)


def form_name(precision: Precision, scheme: QuantScheme | None) -> str:
    """The form of a precision.

    Args:
        precision: Of the engine.
        scheme: The runtime's form of INT8.

    Raises:
        DeviceUnavailable: INT8 that is not written as a graph.
    """
    name = str(scheme) if precision == "int8" else precision
    if name not in FORMS:
        raise DeviceUnavailable(
            f"There is no {precision.upper()} graph in the form {name!r} to be timed.",
            hint=f"time another precision or runtime; known are {', '.join(FORMS)}",
        )
    return name
