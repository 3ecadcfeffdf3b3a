"""Type-tagged SHA-256 digests of plain values and files.

Two values have one digest exactly when they have the same type and the same content: `1`, `1.0`, `True` and `"1"` all
differ; the order of a mapping does not matter, the order of a sequence does. Golden digests in the tests hold the
encoding: changing it makes every store unreadable, so do it by bumping `ENCODING`.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NewType, TypeAlias, Union

Digest = NewType("Digest", str)
"""Lower-case hexadecimal SHA-256, 64 characters."""

Json: TypeAlias = Union[None, bool, int, float, str, Sequence["Json"], Mapping[str, "Json"]]
"""What a recipe, a config or a report may hold."""

ENCODING = b"edgekd-digest-1"
_CHUNK = 1 << 20


def digest(tag: str, *values: Json | bytes) -> Digest:
    """The digest of `values` under a purpose `tag`, so that equal values of different purposes never collide.

    Args:
        tag: What the digest is for, such as `"bundle"` or `"run"`.
        values: JSON-like values (tuples count as lists) or bytes.

    Raises:
        TypeError: A value of another type; the message names where it stands.
    """
    hasher = hashlib.sha256(ENCODING)
    for part in _encode((tag, *values), "value"):
        hasher.update(part)
    return Digest(hasher.hexdigest())


def file_digest(path: Path) -> Digest:
    """The plain SHA-256 of a file's bytes (what `sha256sum` prints)."""
    hasher = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            hasher.update(chunk)
    return Digest(hasher.hexdigest())


def is_digest(text: str) -> bool:
    """Whether `text` has the form of a digest."""
    return len(text) == 64 and all(c in "0123456789abcdef" for c in text)


def _encode(value: object, where: str) -> Iterator[bytes]:
    if value is None:
        yield b"N;"
    elif isinstance(value, bool):
        yield b"T;" if value else b"F;"
    elif isinstance(value, int):
        yield f"i{int(value)};".encode()
    elif isinstance(value, float):
        # + 0.0 turns -0.0 into 0.0: the two compare equal, so they must not give two keys.
        yield b"f" + struct.pack(">d", float(value) + 0.0)
    elif isinstance(value, str):
        data = str(value).encode()
        yield f"s{len(data)}:".encode() + data
    elif isinstance(value, bytes):
        yield f"b{len(value)}:".encode() + value
    elif isinstance(value, Mapping):
        yield from _encode_mapping(value, where)
    elif isinstance(value, Sequence):
        yield f"l{len(value)}:".encode()
        for index, item in enumerate(value):
            yield from _encode(item, f"{where}[{index}]")
    else:
        raise TypeError(f"{where} is a {type(value).__name__}; only JSON-like values and bytes have a digest")


def _encode_mapping(value: Mapping[object, object], where: str) -> Iterator[bytes]:
    keys: list[str] = []
    for key in value:
        if not isinstance(key, str):
            raise TypeError(f"{where} has the key {key!r} of type {type(key).__name__}; only str keys have a digest")
        keys.append(key)
    yield f"m{len(keys)}:".encode()
    for key in sorted(keys):
        yield from _encode(key, f"{where} key")
        yield from _encode(value[key], f"{where}.{key}")
