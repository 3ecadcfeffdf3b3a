"""From a module to an ONNX file: one self-contained graph with fixed names, equal bytes for equal modules."""

from __future__ import annotations

import re
from pathlib import Path

import onnx
import torch
from torch import nn

from edgekd.core.blobs import disk_errors
from edgekd.errors import BuildFailed
from edgekd.nn.mode import evaluating
from edgekd.nn.onnx_opset import NEWER, OLDER, in_opset_17
from edgekd.nn.quiet import quiet_exporter
from edgekd.nn.shapes import example_images

INPUT_NAME = "images"
OUTPUT_NAME = "logits"


def onnx_from_module(
    module: nn.Module,
    input_shape: tuple[int, int, int],
    path: Path,
    *,
    opset: int = 20,
    dynamic_batch: bool = True,
) -> None:
    """Writes the module's evaluation-mode graph: input `images` (N, C, H, W), output `logits` (N, K), both float32.

    Args:
        module: Left as it was.
        input_shape: (C, H, W) of one image.
        path: The file to write; weights are inside it.
        opset: Of the default ONNX domain.
        dynamic_batch: Leaves N open; otherwise N is 1.

    Raises:
        BuildFailed: The module cannot be traced, or uses an operator without an ONNX form, which is named.
    """
    # Two images: a batch of one would be taken for a constant.
    images = example_images(module, input_shape, batch=2 if dynamic_batch else 1)
    dynamic = ({0: torch.export.Dim("N")},) if dynamic_batch else None
    name = type(module).__name__
    with evaluating(module), torch.no_grad(), quiet_exporter():
        try:
            traced = torch.export.export(module, (images,), dynamic_shapes=dynamic)
        except (RuntimeError, ValueError, TypeError, AttributeError) as err:
            raise BuildFailed(
                f"{name} could not be traced for ONNX: {_summary(err)}",
                hint="the forward pass may not depend on the values of its input or on a certain batch size",
            ) from err
        try:
            program = torch.onnx.export(
                traced,
                dynamo=True,
                opset_version=opset,
                input_names=[INPUT_NAME],
                output_names=[OUTPUT_NAME],
                dynamic_shapes=dynamic,
            )
        except torch.onnx.OnnxExporterError as err:
            raise BuildFailed(
                f"{name} cannot be written in ONNX opset {opset}: {_unsupported(err)}",
                hint="replace the operator in the model, or raise --opset",
            ) from err
    if program is None:
        raise BuildFailed(f"The ONNX exporter of torch {torch.__version__} gave no graph for {name}.")
    graph = program.model_proto
    _forget_origin_(graph)
    graph = _in_opset(graph, opset, name)
    if dynamic_batch:
        _check_open_batch(graph, name)
    with disk_errors(path):
        path.write_bytes(graph.SerializeToString(deterministic=True))


def _in_opset(graph: onnx.ModelProto, opset: int, name: str) -> onnx.ModelProto:
    """The graph in the opset that was asked for; the exporter writes 18 where 17 is asked for, and says nothing."""
    found = _opset_of(graph)
    if opset == found:
        return graph
    if opset == OLDER and found == NEWER:
        return in_opset_17(graph)
    raise BuildFailed(
        f"{name} was to be written in ONNX opset {opset}, but torch {torch.__version__} wrote {found}.",
        hint=f"--opset {found}",
    )


def _opset_of(model: onnx.ModelProto) -> int:
    return max(int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx"))


def _forget_origin_(model: onnx.ModelProto) -> None:
    """Removes stack traces, source paths and names of Python objects: large, private, and different by machine."""
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    model.graph.doc_string = ""
    for function in model.functions:
        del function.metadata_props[:]
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info, *model.graph.initializer):
        del value.metadata_props[:]
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""


def _check_open_batch(model: onnx.ModelProto, name: str) -> None:
    """A traced reshape to a number can fix the batch without a word from the exporter."""
    for value in (*model.graph.input, *model.graph.output):
        batch = value.type.tensor_type.shape.dim[0]
        if not batch.dim_param:
            raise BuildFailed(
                f"{name} fixes the batch size of {value.name!r} to {batch.dim_value}, so that no graph for every batch "
                "exists.",
                hint="write shapes in the forward pass with x.shape[0] instead of a number",
            )


def _unsupported(err: BaseException) -> str:
    """The operators without an ONNX form that an exporter's error names, or a summary of it."""
    causes = []
    cause: BaseException | None = err
    while cause is not None:
        causes.append(str(cause))
        cause = cause.__cause__ or cause.__context__
    found = re.findall(r"No (?:ONNX function|decompositions) found for <OpOverload\(op='([\w.:]+)'", " ".join(causes))
    return f"no ONNX form of {', '.join(sorted(set(found)))}." if found else _summary(err)


def _summary(err: BaseException) -> str:
    lines = [line.strip(" -") for line in str(err).splitlines() if line.strip()]
    # torch's own first line says only that a constraint failed; the cause follows.
    return next((line for line in lines if "specialized it" in line), lines[0] if lines else type(err).__name__)
