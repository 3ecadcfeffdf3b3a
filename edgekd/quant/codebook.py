"""Packed weights in ONNX: the codes, levels and buckets of a quantized student, as far as standard operators go.

    channel grids            w = DequantizeLinear(codes, scale)                          one scale per output channel
    buckets, even levels     w = Reshape(Slice(DequantizeLinear(codes, scale) + offset))
    buckets, learned levels  w = Reshape(Slice(Gather(levels, codes) * scale + offset))

Codes of up to 4 bits are 4-bit integers (opset 21) and larger ones bytes. ONNX has no 3-bit type, and runtimes do not
read its 2-bit one yet: codes of 2 bits stand four to a byte, and a table that all weights share takes bytes apart.

    codes = Reshape(Slice(Gather(table, bytes)))                                         table: 256 rows of 4 codes

Only initialisers go in, so a runtime folds all of it when it loads the graph and computes in float32: this makes the
file smaller, not inference faster. Where export has folded BatchNorm into a weight, its factor
per output channel goes into the scale of a channel grid, and follows as a product elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, version_converter

from edgekd.errors import BuildFailed
from edgekd.quant.bucket import Quantized, decode

TWO_BITS, FOUR_BITS = 2, 4
FEWEST_IN_BYTES = 2048
"""Codes of 2 bits from which bytes take less than 4-bit integers, with the nodes that take them apart."""
FOUR_BIT_OPSET = 21
FOUR_BIT_IR = 10
_SAME = 1e-4
"""How far a weight of the graph may lie from its code times a factor, relative to the largest weight of its channel."""

Floats = NDArray[np.float32]


@dataclass
class _Parts:
    """What is put in the place of one weight."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[TensorProto] = field(default_factory=list)
    shared: dict[str, TensorProto] = field(default_factory=dict)
    """Constants that several weights use, by name."""

    def constant(self, name: str, value: NDArray[Any]) -> str:
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def node(self, kind: str, inputs: list[str], name: str, output: str | None = None, **attributes: Any) -> str:
        output = output or name
        self.nodes.append(helper.make_node(kind, inputs, [output], name, **attributes))
        return output


def codebook_from_float32(model: onnx.ModelProto, coded: Mapping[str, Quantized]) -> onnx.ModelProto:
    """A new graph whose quantized weights are codes; it computes what the old one does, up to rounding of float32.

    Args:
        model: The FP32 graph of the student; left as it was.
        coded: Its quantized weights, by parameter name.

    Raises:
        BuildFailed: A quantized weight is not in the graph, so what is stored would not be what was trained.
        UserError: The graph has an opset that knows no 4-bit integers and cannot be converted.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    if any(q.bits <= FOUR_BITS for q in coded.values()):
        made = _with_four_bits(made)
    graph = made.graph
    weights = {entry.name: numpy_helper.to_array(entry) for entry in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    shared: dict[str, TensorProto] = {}
    for name, q in coded.items():
        place, factor, transposed = _found(name, q, weights)
        parts = _expanded(place, q, factor, transposed)
        entry = next(entry for entry in graph.initializer if entry.name == place)
        graph.initializer.remove(entry)
        graph.initializer.extend(parts.constants)
        nodes += parts.nodes
        shared |= parts.shared
        del weights[place]
    graph.initializer.extend(shared.values())
    users = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *users])
    return made


def _found(name: str, q: Quantized, weights: Mapping[str, NDArray[Any]]) -> tuple[str, Floats, bool]:
    """The initialiser of a weight, its factor per output channel, and whether the graph has it transposed.

    Exporters rename; the values tell. The parameter's own name is tried first.
    """
    wanted: Floats = decode(q).numpy()
    for place in sorted(weights, key=lambda other: other != name):
        value = weights[place]
        for transposed in (False, True) if wanted.ndim == 2 else (False,):
            found = value.T if transposed and value.ndim == 2 else value
            if found.shape == wanted.shape and found.dtype == np.float32:
                factor = _factor(found, wanted)
                if factor is not None:
                    return place, factor, transposed
    raise BuildFailed(
        f"The exported graph holds no weight that is {name!r} up to a factor per output channel.",
        hint="export the very bundle that the codes belong to",
    )


def _factor(found: Floats, wanted: Floats) -> Floats | None:
    """(O,) float32 with `found = factor * wanted`, None where there is none; 1 for channels of zeros."""
    rows, others = found.reshape(len(found), -1).astype(np.float64), wanted.reshape(len(wanted), -1).astype(np.float64)
    power = (others**2).sum(1)
    factor = np.where(power > 0, (rows * others).sum(1) / np.where(power > 0, power, 1), 1.0)
    largest = np.abs(rows).max(1, initial=0)
    off = np.abs(rows - factor[:, None] * others).max(1, initial=0)
    return factor.astype(np.float32) if (off <= _SAME * largest + 1e-30).all() else None


def _expanded(place: str, q: Quantized, factor: Floats, transposed: bool) -> _Parts:
    """Nodes and constants that compute the initialiser `place`."""
    parts = _Parts()
    if q.offset is None:
        axis = 1 if transposed else 0
        codes = q.codes.numpy().reshape(q.shape)
        codes = np.ascontiguousarray(codes.T) if transposed else codes
        # A negative factor turns the codes over instead of the scale: scales are to be positive.
        turned = np.sign(factor).astype(np.float32) + (factor == 0)
        shape = [-1 if index == axis else 1 for index in range(codes.ndim)]
        scale = (q.scale.numpy().reshape(-1) * np.abs(factor)).astype(np.float32)
        inputs = [_codes(parts, place, codes * turned.reshape(shape), q.bits), parts.constant(f"{place}_scale", scale)]
        parts.node("DequantizeLinear", inputs, f"{place}_dq", place, axis=axis)
        return parts
    value = _bucket_values(parts, place, q)
    value = parts.node("Reshape", [value, parts.constant(f"{place}_flat", np.array([-1]))], f"{place}_flattened")
    if q.codes.numel() != q.shape.numel():
        ends = [parts.constant(f"{place}_{n}", np.array([x])) for n, x in (("from", 0), ("to", q.shape.numel()))]
        value = parts.node("Slice", [value, *ends], f"{place}_cut")
    steps: list[tuple[str, NDArray[Any]]] = [("Reshape", np.array(q.shape, np.int64))]
    if not np.allclose(factor, 1, rtol=1e-6, atol=0):
        steps.append(("Mul", factor.reshape(-1, *[1] * (len(q.shape) - 1))))
    for index, (kind, operand) in enumerate(steps):
        last = index == len(steps) - 1 and not transposed
        name = f"{place}_{kind.lower()}"
        value = parts.node(kind, [value, parts.constant(f"{name}_by", operand)], name, place if last else None)
    if transposed:
        parts.node("Transpose", [value], f"{place}_transpose", place)
    return parts


def _bucket_values(parts: _Parts, place: str, q: Quantized) -> str:
    """(G, k) weights in buckets, the last one with its filling."""
    assert q.offset is not None
    offset = parts.constant(f"{place}_offset", q.offset.numpy())
    codes = _codes(parts, place, q.codes.numpy(), q.bits, unsigned=True)
    if q.levels is None:
        scale = parts.constant(f"{place}_scale", (q.scale / q.steps).numpy().reshape(-1))
        value = parts.node("DequantizeLinear", [codes, scale], f"{place}_dq", axis=0)
    else:
        index = parts.node("Cast", [codes], f"{place}_index", to=TensorProto.INT32)
        levels = parts.constant(f"{place}_levels", q.levels.numpy())
        value = parts.node("Gather", [levels, index], f"{place}_gather", axis=0)
        scale = parts.constant(f"{place}_scale", q.scale.numpy())
        value = parts.node("Mul", [value, scale], f"{place}_scaled")
    return parts.node("Add", [value, offset], f"{place}_moved")


def _codes(parts: _Parts, place: str, codes: NDArray[Any], bits: int, *, unsigned: bool = False) -> str:
    """The value that holds codes in their own shape: a constant, or what bytes are taken apart into."""
    name = f"{place}_codes"
    if bits <= TWO_BITS and codes.size >= FEWEST_IN_BYTES:
        return _codes_from_bytes(parts, name, codes, np.dtype(np.uint8 if unsigned else np.int8))
    if bits > FOUR_BITS:
        return parts.constant(name, codes.astype(np.uint8 if unsigned else np.int8))
    kind = TensorProto.UINT4 if unsigned else TensorProto.INT4
    parts.constants.append(helper.make_tensor(name, kind, codes.shape, codes.astype(np.int8).reshape(-1)))
    return name


def _codes_from_bytes(parts: _Parts, name: str, codes: NDArray[Any], kind: np.dtype[Any]) -> str:
    """Codes of 2 bits, four to a byte, the first one in its lowest bits."""
    lowest, places = int(kind.kind == "i") * -1, np.arange(4) * TWO_BITS
    flat = codes.reshape(-1).astype(np.int64) - lowest
    filled = np.concatenate([flat, np.zeros(-len(flat) % 4, np.int64)]).reshape(-1, 4)
    packed = parts.constant(f"{name}_packed", (filled << places).sum(1).astype(np.uint8))
    table = f"codes_in_a_byte_{kind.name}"
    rows = (np.arange(256)[:, None] >> places & 3) + lowest
    parts.shared[table] = numpy_helper.from_array(rows.astype(kind), table)
    index = parts.node("Cast", [packed], f"{name}_bytes", to=TensorProto.INT32)
    value = parts.node("Gather", [table, index], f"{name}_apart", axis=0)
    if filled.size != len(flat):
        value = parts.node("Reshape", [value, parts.constant(f"{name}_line", np.array([-1]))], f"{name}_in_line")
        ends = [parts.constant(f"{name}_{n}", np.array([x])) for n, x in (("first", 0), ("end", len(flat)))]
        value = parts.node("Slice", [value, *ends], f"{name}_without_filling")
    return parts.node("Reshape", [value, parts.constant(f"{name}_shape", np.array(codes.shape))], name)


def _with_four_bits(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph in the first opset with 4-bit integers; on the way there operators change, as ReduceMean did at 18."""
    opset = next((entry.version for entry in model.opset_import if not entry.domain), FOUR_BIT_OPSET)
    if opset < FOUR_BIT_OPSET:
        try:
            model = version_converter.convert_version(model, FOUR_BIT_OPSET)
        except Exception as err:  # a third-party converter: it raises what it stumbles over
            raise BuildFailed(
                f"Weights of up to {FOUR_BITS} bits need opset {FOUR_BIT_OPSET}, and the graph of opset {opset} cannot "
                f"be converted: {err}",
                hint="export with opset=20 or above",
            ) from err
    model.ir_version = max(model.ir_version, FOUR_BIT_IR)
    return model
