"""An ONNX file without its large weights, read by skipping over them.

What a graph costs follows from shapes, but reading the file whole takes the time of its weights: 80 of 86 ms for a
ResNet-50. Here the protobuf wire format (protobuf.dev/programming-guides/encoding) is walked down to the initializers,
whose data is passed over in the file. Constants inside nodes and subgraphs are kept. Nothing can run what comes out.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

LARGE = 16 * 1024
"""Bytes of data from which a tensor's are left out; up to 1,024 elements always take less."""
_VARINT, _EIGHT, _LENGTH, _FOUR = 0, 1, 2, 5
_INSIDE = {("model", 7): "graph", ("graph", 5): "tensor"}
"""Fields that are walked into: the graph of a model, the initializers of a graph."""
_DATA = frozenset({4, 5, 6, 7, 9, 10, 11})
"""Fields of a tensor that hold its elements."""


def outline_from_file(path: Path) -> onnx.ModelProto:
    """The model with every tensor's name, type and dimensions, and the elements of small ones only.

    Raises:
        DecodeError: Not a protobuf message of this kind.
        OSError: The file cannot be read.
    """
    model = onnx.ModelProto()
    with path.open("rb") as stream:
        model.ParseFromString(outline_bytes(stream, path.stat().st_size))
    return model


def outline_bytes(stream: BinaryIO, size: int) -> bytes:
    """The message without large data, from a stream that can seek, at its start; see `outline_from_file`."""
    return _walked(stream, size, "model")


def _walked(stream: BinaryIO, end: int, inside: str) -> bytes:
    """The fields from here to `end`, of a message of the kind `inside`."""
    kept = []
    while (start := stream.tell()) < end:
        tag = _varint(stream)
        number, wire = tag >> 3, tag & 7
        length = _payload(stream, wire)
        stop = stream.tell() + length
        if stop > end:
            raise DecodeError(f"field {number} at byte {start} reaches beyond its message")
        kind = _INSIDE.get((inside, number)) if wire == _LENGTH and length > LARGE else None
        if kind is not None:
            body = _walked(stream, stop, kind)
            kept += [_encoded(tag), _encoded(len(body)), body]
        elif not (inside == "tensor" and number in _DATA and length > LARGE):
            stream.seek(start)
            kept.append(stream.read(stop - start))
        stream.seek(stop)
    return b"".join(kept)


def _payload(stream: BinaryIO, wire: int) -> int:
    """Bytes that follow before the next field."""
    if wire == _VARINT:
        _varint(stream)
        return 0
    if wire == _LENGTH:
        return _varint(stream)
    if wire in (_EIGHT, _FOUR):
        return 8 if wire == _EIGHT else 4
    raise DecodeError(f"wire type {wire} does not occur in ONNX files")


def _varint(stream: BinaryIO) -> int:
    """A variable-length integer."""
    value = 0
    for place in range(10):
        byte = stream.read(1)
        if not byte:
            raise DecodeError("the file ends within a field")
        value |= (byte[0] & 0x7F) << (7 * place)
        if byte[0] < 0x80:
            return value
    raise DecodeError("a number longer than ten bytes")


def _encoded(value: int) -> bytes:
    parts = bytearray()
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)
