"""FP32 and FP16 graphs for timing: as the stages `export` and `fp16` write them, without samples and unproven."""

from __future__ import annotations

from pathlib import Path

import onnx

from edgekd.errors import BuildFailed
from edgekd.export.float16 import float16_from_float32
from edgekd.export.stage import simplified
from edgekd.runtimes.onnx_file import graph_from_file


def fp32_form(source: Path, scratch: Path) -> onnx.ModelProto:
    """The simplified graph, or the plain one where it cannot be simplified; see `edgekd.runtimes.forms`."""
    graph = graph_from_file(source)
    try:
        return simplified(graph)
    except BuildFailed:
        return graph_from_file(source)


def fp16_form(source: Path, scratch: Path) -> onnx.ModelProto:
    """The simplified graph with every operator in float16 that has such a form; see `edgekd.runtimes.forms`."""
    return float16_from_float32(fp32_form(source, scratch))
