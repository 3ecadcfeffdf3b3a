"""ONNX files as edgekd keeps them: one file, checked, and equal bytes for equal graphs.

Exporters and quantizers leave traces of when, where and with what they ran; a content address must not depend on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from pydantic import JsonValue

from edgekd.core.blobs import Blobs, disk_errors
from edgekd.core.bundle import BundleKind, ModelBundle, TensorSpec
from edgekd.errors import BuildFailed, UserError

MODEL_FILE = "model.onnx"
BYTES_PER_MIB = 1 << 20
TORCH_SUFFIXES = (".pt", ".pth", ".pt2", ".safetensors")


def graph_from_file(path: Path) -> onnx.ModelProto:
    """The model in `path`, weights included.

    Raises:
        UserError: Not an ONNX file, or a second file that holds its weights is missing or damaged.
    """
    try:
        return onnx.load(path)
    except (DecodeError, OSError, ValueError, onnx.checker.ValidationError) as err:
        raise UserError(f"{path} is not a readable ONNX file: {err}", hint=_hint(path)) from err


def _hint(path: Path) -> str | None:
    """What to do where a file of PyTorch was given in the place of a graph."""
    if path.suffix not in TORCH_SUFFIXES:
        return None
    return f"of a PyTorch model make a package first, and give that: edgekd export {path} [--arch ...] -o exported"


def write_graph(model: onnx.ModelProto, path: Path, *, made_by: str) -> None:
    """Checks the model, forgets its origin and writes it.

    Args:
        model: Changed in place: metadata and documentation strings go.
        path: The file to write, self-contained.
        made_by: The step, for messages.

    Raises:
        BuildFailed: The graph is not valid ONNX.
    """
    forget_origin_(model)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as err:
        raise BuildFailed(f"The graph that {made_by} made is not valid ONNX: {err}") from err
    with disk_errors(path):
        path.write_bytes(model.SerializeToString(deterministic=True))


def forget_origin_(model: onnx.ModelProto) -> None:
    """Removes what names a tool, a path or a time; drops opsets that no node uses."""
    model.producer_name, model.producer_version, model.doc_string = "edgekd", "", ""
    del model.metadata_props[:]
    graph = model.graph
    graph.name, graph.doc_string = "model", ""
    del graph.metadata_props[:]
    for part in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    used = {node.domain for node in graph.node} | {""}
    kept = [entry for entry in model.opset_import if entry.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)


def bundle_from_graph(path: Path, *, carry: ModelBundle, tags: Mapping[str, JsonValue], blobs: Blobs) -> ModelBundle:
    """An ONNX bundle of a written graph.

    Args:
        path: What `write_graph` wrote.
        carry: The bundle it was made from: its inputs, outputs, recipe and tags go along.
        tags: Added to those, or in their place: `precision` and `scheme` at least.
        blobs: Takes the file.
    """
    return ModelBundle(
        kind=BundleKind.ONNX,
        inputs=carry.inputs,
        outputs=carry.outputs,
        files={MODEL_FILE: blobs.add(path)},
        recipe=carry.recipe,
        tags={**carry.tags, **tags},
    )


def onnx_interface(path: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs of an ONNX file; a dynamic axis has its name in the graph, or `?` without one.

    Raises:
        UserError: Not an ONNX file.
    """
    return interface_of(graph_from_file(path))


def interface_of(model: onnx.ModelProto) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """As `onnx_interface`, of a model in memory; its weights need not be there."""
    graph = model.graph
    # Old exporters list the weights among the inputs, as defaults that a caller could replace.
    constants = {entry.name for entry in graph.initializer}
    inputs = tuple(_spec(value) for value in graph.input if value.name not in constants)
    return inputs, tuple(_spec(value) for value in graph.output)


def fix_axes_(model: onnx.ModelProto, sizes: tuple[int, int, int]) -> None:
    """Gives the open axes of a graph's one image input these sizes (C, H, W), and outputs that share their names too.

    Other shapes are forgotten, to be inferred anew.
    """
    constants = {entry.name for entry in model.graph.initializer}
    (value,) = (value for value in model.graph.input if value.name not in constants)
    known = {}
    for axis, size in zip(list(value.type.tensor_type.shape.dim)[1:], sizes, strict=True):
        if not axis.HasField("dim_value"):
            known[axis.dim_param] = size
            axis.dim_value = size
    for output in model.graph.output:
        for axis in output.type.tensor_type.shape.dim:
            if axis.dim_param and axis.dim_param in known:
                axis.dim_value = known[axis.dim_param]
    del model.graph.value_info[:]


def size_mib(path: Path) -> float:
    """Size of a file in MiB."""
    return path.stat().st_size / BYTES_PER_MIB


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    axes = (axis.dim_value if axis.HasField("dim_value") else axis.dim_param or "?" for axis in tensor.shape.dim)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    return TensorSpec(name=value.name, shape=tuple(axes), dtype=dtype.name)
