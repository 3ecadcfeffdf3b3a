"""The `conform` node: a graph that other tools wrote, in the form that quantizers and runtimes here expect.

Old exporters list weights among the inputs, fix the batch, leave BatchNorm beside its convolution and write opsets that
know no scales per channel. None of that is wrong, and all of it stops a quantizer or slows a runtime. The new graph is
run beside the old one, and what changes an answer is not kept. It adds no preprocessing and changes no weights' type.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
from onnx import version_converter

from edgekd.core.bundle import BundleKind
from edgekd.core.stage import Context, Inputs, Port, Stage, StageConfig, StageResult, port
from edgekd.errors import BuildFailed, EdgekdError, UserError
from edgekd.export.stage import simplified
from edgekd.runtimes.compare import Tolerance, compare_outputs
from edgekd.runtimes.onnx_file import MODEL_FILE, graph_from_file, onnx_interface, size_mib, write_graph
from edgekd.runtimes.onnx_view import LEAST_IR, forget_weights_as_inputs_
from edgekd.runtimes.onnxruntime import RUNTIME
from edgekd.runtimes.samples import random_images
from edgekd.runtimes.session import FloatArray

BATCH = "N"
LEAST_OPSET = 13
"""The first one whose QuantizeLinear has a scale for each channel."""
OPSET = 17
CHECKED_IMAGES = 3
TOLERANCE = Tolerance(atol=1e-4, rtol=1e-4)


class ConformConfig(StageConfig):
    """Nothing to choose."""


class ConformStage(Stage[ConformConfig]):
    """ONNX to ONNX: the same function with one input, a dynamic batch where the graph allows it, and a newer opset.

    Metrics: `max_error` between both graphs on noise, in standard deviations of the output; `dynamic_batch`.
    """

    name: ClassVar[str] = "conform"
    Config: ClassVar[type[StageConfig]] = ConformConfig
    ports: ClassVar[Mapping[str, Port]] = {"model": port(BundleKind.ONNX)}
    produces: ClassVar[BundleKind] = BundleKind.ONNX

    def run(self, inputs: Inputs, ctx: Context) -> StageResult:
        model = inputs.one("model")
        source, path = ctx.path(model, MODEL_FILE), ctx.scratch / MODEL_FILE
        images = random_images(model.model.preprocessing.input_shape, samples=CHECKED_IMAGES, seed=ctx.seed)
        expected = _outputs(source, images, model.inputs[0].name, one_by_one=True)
        said = []
        graph = graph_from_file(source)
        forget_weights_as_inputs_(graph)
        graph.ir_version = max(graph.ir_version, LEAST_IR)
        graph, newer = _newer(graph)
        if newer:
            said.append(newer)
        dynamic = True
        try:
            error = _written(_with_dynamic_batch(graph), path, expected, images, one_by_one=False)
        except EdgekdError as err:
            dynamic = False
            said.append(f"The batch stays fixed, since the graph answers otherwise with a dynamic one: {err.message}")
            error = _written(graph, path, expected, images, one_by_one=True)
        specs = onnx_interface(path)
        bundle = model.model_copy(
            update={"inputs": specs[0], "outputs": specs[1], "files": {MODEL_FILE: ctx.blobs.add(path)}}
        )
        metrics = {"size_mib": size_mib(path), "max_error": error, "dynamic_batch": dynamic}
        return StageResult(bundle=bundle, metrics=metrics, decisions=tuple(said))


def _newer(model: onnx.ModelProto) -> tuple[onnx.ModelProto, str]:
    """The graph at an opset that can hold INT8, and a sentence where it was not there already.

    Raises:
        BuildFailed: onnx cannot convert it.
    """
    found = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if found >= LEAST_OPSET:
        return model, ""
    try:
        return version_converter.convert_version(model, OPSET), f"Converted from opset {found} to {OPSET}."
    except Exception as err:  # the converter raises what its C++ code does
        raise BuildFailed(
            f"The graph has opset {found}, and onnx cannot bring it to {OPSET}: {err}",
            hint=f"export it again with opset {OPSET}",
        ) from err


def _with_dynamic_batch(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose inputs and outputs have the batch `N`; shapes inside are forgotten, to be inferred anew."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for value in (*copy.graph.input, *copy.graph.output):
        if value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_param = BATCH
    del copy.graph.value_info[:]
    return copy


def _written(
    graph: onnx.ModelProto, path: Path, expected: Mapping[str, FloatArray], images: FloatArray, *, one_by_one: bool
) -> float:
    """Writes the simplified graph and returns its largest error against what the old one gave.

    Raises:
        EdgekdError: It does not load, run, or agree.
    """
    write_graph(simplified(graph), path, made_by="conform")
    name = onnx_interface(path)[0][0].name
    found = _outputs(path, images, name, one_by_one=one_by_one)
    compared = compare_outputs(expected, found)
    if not all(TOLERANCE.holds(ref, got) for ref, got in zip(expected.values(), found.values(), strict=True)):
        raise BuildFailed(f"its outputs differ by {compared.max_error:.2g} of their spread.")
    return compared.max_error


def _outputs(path: Path, images: FloatArray, name: str, *, one_by_one: bool) -> dict[str, FloatArray]:
    size = 1 if one_by_one else len(images)
    with RUNTIME.open(path) as session:
        if len(session.input_names) != 1:
            raise UserError(f"The graph has {len(session.input_names)} inputs; expected one, of images.")
        parts = [session.infer({name: images[at : at + size]}) for at in range(0, len(images), size)]
    return {output: np.concatenate([part[output] for part in parts]) for output in parts[0]}
