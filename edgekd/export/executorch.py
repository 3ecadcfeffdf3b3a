"""Converts a PyTorch model to an ExecuTorch program (`.pte`) whose operations XNNPACK computes.

The model is exported by `torch.export`, quantized there for INT8 (PyTorch 2 Export quantization with XNNPACK's own
quantizer: int8 activations with a zero point per tensor, symmetric int8 weights per channel), and partitioned: XNNPACK
takes what it can, ExecuTorch's portable kernels run the rest. What was left to them is counted and said.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from edgekd.core.blobs import disk_errors
from edgekd.core.bundle import BundleKind
from edgekd.core.digest import Json
from edgekd.errors import BuildFailed
from edgekd.export.convert import Conversion, Converted, Converter, unsupported
from edgekd.export.executorch_forms import as_xnnpack_takes_it, xnnpack_quantizer
from edgekd.nn.build import module_from_bundle
from edgekd.nn.mode import evaluating
from edgekd.nn.quiet import quiet_exporter
from edgekd.nn.reparam import reparameterised
from edgekd.runtimes.executorch import INSTALL, RUNTIME
from edgekd.runtimes.native_output import native_stderr
from edgekd.runtimes.session import Availability, FloatArray
from edgekd.targets.schema import Precision

FILE = "model.pte"
SCHEME = "xnnpack"
SHOWN = 6
MOST_CHARACTERS = 300
OPSET = f"ATen of torch {torch.__version__.split('+')[0]}"
_BOOKKEEPING = ("executorch_call_delegate", "getitem", "alloc")


class ExecuTorchConverter(Converter):
    """`torch.export`, XNNPACK's quantizer and partitioner, `to_executorch`."""

    name: ClassVar[str] = "executorch"
    tool: ClassVar[str] = "executorch"
    takes: ClassVar[BundleKind] = BundleKind.TORCH
    precisions: ClassVar[tuple[Precision, ...]] = ("fp32", "int8")

    def availability(self) -> Availability:
        found = RUNTIME.availability()
        if not found.ok:
            return found
        try:
            with quiet_exporter():
                import executorch.backends.xnnpack.partition.xnnpack_partitioner
                import executorch.exir  # noqa: F401
        except (ImportError, OSError) as err:
            return Availability(ok=False, version=found.version, reason=f"executorch: {err}", install=INSTALL)
        return found

    def convert(self, job: Conversion) -> Converted:
        module = reparameterised(module_from_bundle(job.source, job.blobs))
        with evaluating(module), torch.no_grad(), quiet_exporter(), native_stderr():
            program = exported(module, job.images)
            if job.precision == "int8":
                program = quantized(program, job.images)
            edge = _lowered(program)
            graph = edge.exported_program().graph_module
            counts = operations_of(graph)  # before memory is planned, which changes the graph in place
            made = _written(edge, graph)
        path = job.scratch / FILE
        with disk_errors(path):
            path.write_bytes(made)
        return Converted(
            files={FILE: path},
            scheme=SCHEME if job.precision == "int8" else "",
            metrics=counts.metrics,
            decisions=counts.decisions,
        )


CONVERTER = ExecuTorchConverter()


def exported(module: nn.Module, images: FloatArray) -> ExportedProgram:
    """The module's evaluation-mode program for one image (1, C, H, W), in operators that XNNPACK takes.

    Raises:
        BuildFailed: It cannot be traced.
    """
    try:
        program = torch.export.export(module, (torch.from_numpy(images[:1]),), strict=False)
        return as_xnnpack_takes_it(program)
    except (RuntimeError, ValueError, TypeError, AttributeError) as err:
        raise BuildFailed(
            f"{type(module).__name__} could not be traced for ExecuTorch: {_summary(err)}",
            hint="the forward pass may not depend on the values of its input",
        ) from err


def quantized(program: ExportedProgram, images: FloatArray) -> ExportedProgram:
    """The program with Q/DQ around what XNNPACK computes in int8, its ranges observed on images (N, C, H, W).

    Raises:
        BuildFailed: The quantizer cannot handle it.
    """
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    try:
        observed = prepare_pt2e(program.module(), xnnpack_quantizer())
        for at in range(len(images)):
            observed(torch.from_numpy(images[at : at + 1]))
        return torch.export.export(convert_pt2e(observed), (torch.from_numpy(images[:1]),), strict=False)
    except Exception as err:  # a third-party quantizer: whatever it stumbles over, FP32 still serves
        raise BuildFailed(
            f"XNNPACK's quantizer failed with {type(err).__name__}: {_summary(err)}", hint="convert in FP32"
        ) from err


def _lowered(program: ExportedProgram) -> Any:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    try:
        return to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    except Exception as err:  # a compiler with errors of many kinds, none of them its own
        if lacking := re.search(r"Operator torch\._ops\.(\w+)\.(\w+)[\w.]* is not in Core ATen", str(err)):
            operator = f"{lacking[1]}::{lacking[2]}"
            raise _unsupported(operator, program.run_decompositions().graph_module, "it is not in Core ATen") from err
        raise BuildFailed(
            f"ExecuTorch could not lower the program: {_summary(err)}",
            hint="replace the operator that the message names, or deploy in another runtime",
        ) from err


def _written(edge: Any, graph: fx.GraphModule) -> bytes:
    """The program's bytes.

    Raises:
        BuildFailed: An operation has no kernel in ExecuTorch.
    """
    try:
        made = edge.to_executorch()
    except Exception as err:  # as in _lowered
        lacking = re.search(r"[Mm]issing out variants?: *\{?'?([\w:.]+)", str(err))
        if lacking is None:
            raise BuildFailed(f"ExecuTorch could not write the program: {_summary(err)}") from err
        raise _unsupported(lacking[1], graph, _summary(err)) from err
    known = RUNTIME.kernels()
    for entry in made.executorch_program.execution_plan[0].operators:
        name = f"{entry.name}.{entry.overload}" if entry.overload else entry.name
        if name not in known:
            raise _unsupported(name, graph, "no kernel of this name is registered in the runtime")
    return bytes(made.buffer)


def _unsupported(operator: str, graph: fx.GraphModule, message: str) -> BuildFailed:
    """The error for an operator `aten::name.overload`, with the place of its first node in the graph."""
    nodes = (node for node in portable_nodes(graph) if operator_of(node) == operator.split(".")[0])
    where = next((place_of(node) for node in nodes), "")
    return unsupported("executorch", operator=operator, where=where, opset=OPSET, message=message)


@dataclass(frozen=True)
class Operations:
    """Where the operations of a program run.

    Attributes:
        delegated: In XNNPACK.
        parts: Into how many calls of XNNPACK they fell: each further one costs a copy and a synchronisation.
        portable: In ExecuTorch's own kernels, by operator; those on single numbers are left out, they take no time.
    """

    delegated: int
    parts: int
    portable: Counter[str]

    @property
    def metrics(self) -> dict[str, Json]:
        return {
            "xnnpack_operations": self.delegated,
            "xnnpack_parts": self.parts,
            "portable_operations": self.portable.total(),
        }

    @property
    def decisions(self) -> tuple[str, ...]:
        if not self.portable:
            return ()
        named = ", ".join(f"{count} {name}" for name, count in self.portable.most_common(SHOWN))
        more = f" and {rest} more" if (rest := len(self.portable) - SHOWN) > 0 else ""
        return (
            f"XNNPACK computes {self.delegated} operations in {self.parts} parts; {self.portable.total()} are left to "
            f"ExecuTorch's portable kernels, which are slow: {named}{more}.",
        )


def operations_of(graph: fx.GraphModule) -> Operations:
    """Counts the operations of a lowered program."""
    calls = [node for node in graph.graph.nodes if node.name.startswith("executorch_call_delegate")]
    parts: list[Any] = [graph.get_submodule(str(call.args[0].target)) for call in calls]
    delegated = sum(
        node.op == "call_function" and not node.name.startswith(_BOOKKEEPING)
        for part in parts
        for node in part.original_module.graph_module.graph.nodes
    )
    portable = Counter(operator_of(node).split("::")[-1] for node in portable_nodes(graph) if _size(node) > 1)
    return Operations(delegated, len(parts), portable)


def portable_nodes(graph: fx.GraphModule) -> Iterator[fx.Node]:
    """What is left of a lowered program outside its delegates."""
    for node in graph.graph.nodes:
        if node.op == "call_function" and not node.name.startswith(_BOOKKEEPING):
            yield node


def operator_of(node: fx.Node) -> str:
    """`aten::native_layer_norm`: the operator of a lowered node, without its overload."""
    schema = getattr(node.target, "_schema", None)
    return str(schema.name) if schema is not None else str(node.target)


def place_of(node: fx.Node) -> str:
    """`blocks.0.norm, at vit.py:12 x = self.norm(x)`: the module and the line that a node came from."""
    stack = node.meta.get("nn_module_stack") or {}
    modules = [str(path) for path, _ in stack.values()]
    lines = [line.strip() for line in str(node.meta.get("stack_trace") or "").splitlines() if line.strip()]
    source = re.sub(r'File ".*?([^/\\"]+)", line (\d+).*', r"\1:\2", lines[-2]) if len(lines) > 1 else ""
    found = [modules[-1].removeprefix("L['self'].") if modules else "", f"{source} {lines[-1]}" if source else ""]
    return ", at ".join(text for text in found if text)


def _size(node: fx.Node) -> int:
    value = node.meta.get("val")
    return value.numel() if isinstance(value, Tensor) else 2


def _summary(err: BaseException) -> str:
    """The first line that says something, without line breaks."""
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    return (lines[0] if lines else type(err).__name__)[:MOST_CHARACTERS]
