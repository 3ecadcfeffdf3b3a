"""The visual vocabulary that all drawings share: a colour per precision, a shape per runtime."""

from __future__ import annotations

import math

from edgekd.core.report import METRIC_NAMES, Metric
from edgekd.report.svg import Attributes, tag

RUNTIME_NAMES = {
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "torch": "PyTorch",
    "tensorrt": "TensorRT",
    "executorch": "ExecuTorch",
    "ncnn": "ncnn",
    "litert": "LiteRT",
    "ort-web-node": "ORT Web, Node.js",
    "ort-web-browser": "ORT Web, browser",
}
PRECISION_NAMES = {"fp32": "FP32", "fp16": "FP16", "int8": "INT8"}
_CORNERS = {
    "openvino": (4, 45.0),
    "torch": (3, -90.0),
    "tensorrt": (4, 0.0),
    "executorch": (3, 90.0),
    "ncnn": (6, 0.0),
    "litert": (5, -90.0),
    "ort-web-node": (3, 0.0),
    "ort-web-browser": (3, 180.0),
}
"""Corners and turn in degrees; a runtime that is not listed is drawn as a disc."""


def runtime_name(runtime: str) -> str:
    """As its makers write it."""
    return RUNTIME_NAMES.get(runtime, runtime)


def precision_name(precision: str) -> str:
    return PRECISION_NAMES.get(precision, precision)


def metric_name(metric: Metric) -> str:
    """As it begins a line."""
    return METRIC_NAMES[metric].capitalize()


def marker(x: float, y: float, runtime: str, precision: str, size: float = 6, style: str = "") -> str:
    """A filled mark at a point, all shapes of about the same area."""
    classes = f"mark {precision} {style}".strip()
    if runtime not in _CORNERS:
        disc: Attributes = {"cx": x, "cy": y, "r": size, "class": classes}
        return tag("circle", disc)
    corners, turn = _CORNERS[runtime]
    radius = size * (1.25 if corners == 4 else 1.45)
    angles = [math.radians(turn + 360 * index / corners) for index in range(corners)]
    points = " ".join(f"{x + radius * math.cos(a):.1f},{y + radius * math.sin(a):.1f}" for a in angles)
    return tag("polygon", {"points": points, "class": classes})
