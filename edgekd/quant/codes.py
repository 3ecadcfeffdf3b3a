"""Quantized weights as a file: codes packed to their bits, scales, levels, and what stayed in full precision.

`weights.safetensors` of the same bundle holds the very same numbers as float32, for every tool that knows nothing of
grids; this file is what a device with its own decoder would store.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from edgekd.core.blobs import disk_errors
from edgekd.errors import UserError
from edgekd.quant.bucket import Quantized, decode

CODES_FILE = "codes.safetensors"
FORMAT = 2
# One key only: safetensors writes several in an order that changes from run to run.
_HEADER = "edgekd"


def write_codes(path: Path, state: Mapping[str, Tensor], coded: Mapping[str, Quantized]) -> None:
    """Writes a state dict with some weights as codes.

    Args:
        path: Where to.
        state: All tensors of a module.
        coded: Weights to store as codes, by their names in `state`. Codes and scales must be those that the weights
            were decoded from: quantizing decoded weights again may move a scale by the last bit.

    Raises:
        UserError: The disk is full or read-only.
    """
    tensors = {name: x.detach().cpu().contiguous() for name, x in state.items() if name not in coded}
    for name, q in coded.items():
        tensors[f"codes:{name}"] = _packed(q)
        parts = {"scale": q.scale, "offset": q.offset, "levels": q.levels}
        tensors |= {f"{part}:{name}": x.reshape(-1).cpu() for part, x in parts.items() if x is not None}
    facts = {name: {"shape": list(q.shape), "steps": q.steps, "group": q.codes.shape[1]} for name, q in coded.items()}
    header = json.dumps({"format": FORMAT, "tensors": facts}, sort_keys=True)
    with disk_errors(path):
        save_file(tensors, path, metadata={_HEADER: header})


def read_codes(path: Path) -> tuple[dict[str, Tensor], dict[str, Quantized]]:
    """The state dict that `write_codes` was given, weights on their grid bit for bit, and the codes it was given.

    Raises:
        UserError: Another kind of file, or another format.
    """
    with safe_open(path, framework="pt") as stream:
        header = json.loads((stream.metadata() or {}).get(_HEADER, "{}"))
        if header.get("format") != FORMAT:
            raise UserError(f"{path}: format {header.get('format')!r} of packed weights, this edgekd reads {FORMAT}.")
        tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 - not a mapping
    coded = {name: _read(name, facts, tensors) for name, facts in header["tensors"].items()}
    state = {name: x for name, x in tensors.items() if ":" not in name}
    return state | {name: decode(q) for name, q in coded.items()}, coded


def _read(name: str, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Quantized:
    scale, offset = tensors[f"scale:{name}"], tensors.get(f"offset:{name}")
    empty = Quantized(
        codes=scale.new_empty(len(scale), facts["group"]),
        scale=scale[:, None],
        offset=None if offset is None else offset[:, None],
        steps=facts["steps"],
        shape=torch.Size(facts["shape"]),
        levels=tensors.get(f"levels:{name}"),
    )
    return replace(empty, codes=_unpacked(tensors[f"codes:{name}"], empty))


def packed_bytes(*, full: int, coded: Iterable[Quantized], bits: float | None = None) -> float:
    """Bytes of the numbers themselves: `4 * full + bits * values / 8 + 4 * (scales + offsets + levels)`.

    Args:
        full: Values that stay float32.
        coded: Quantized weights; a bucket has a scale and an offset, a channel a scale, a tensor its levels.
        bits: Per code, the mean length of an entropy code for example; None takes the bits of each tensor.
    """
    total = 4.0 * full
    for q in coded:
        floats = sum(x.numel() for x in (q.scale, q.offset, q.levels) if x is not None)
        total += (q.bits if bits is None else bits) * q.shape.numel() / 8 + 4 * floats
    return total


def huffman_bits(counts: Iterable[int]) -> float:
    """Mean length in bits of an optimal prefix code over symbols with these counts; 0 for fewer than two symbols."""
    heap = [count for count in counts if count > 0]
    total, weighted = sum(heap), 0
    heapq.heapify(heap)
    while len(heap) > 1:
        joined = heapq.heappop(heap) + heapq.heappop(heap)
        weighted += joined
        heapq.heappush(heap, joined)
    return weighted / total if total else 0.0


def code_counts(coded: Iterable[Quantized]) -> list[int]:
    """How often each code occurs, over all weights together: one code book serves the whole model."""
    counts = np.zeros(256, dtype=np.int64)
    for q in coded:
        counts += np.bincount(_unsigned(q), minlength=256)
    return [int(count) for count in counts]


def _unsigned(q: Quantized) -> npt.NDArray[np.uint8]:
    """(n,) codes from 0 on, without the last bucket's filling."""
    codes = q.codes if q.offset is not None else q.codes + q.steps
    found: npt.NDArray[np.uint8] = codes.reshape(-1)[: q.shape.numel()].to(torch.uint8).cpu().numpy()
    return found


def _packed(q: Quantized) -> Tensor:
    """uint8: the codes' bits one after the other, the lowest bit of each first, from the lowest bit of a byte on."""
    bits = np.unpackbits(_unsigned(q)[:, None], axis=1, bitorder="little")[:, : q.bits]
    return torch.from_numpy(np.packbits(bits.reshape(-1), bitorder="little"))


def _unpacked(packed: Tensor, q: Quantized) -> Tensor:
    """(G, k) codes as `Quantized` has them."""
    values = q.shape.numel()
    bits = np.unpackbits(packed.numpy(), count=values * q.bits, bitorder="little").reshape(values, q.bits)
    flat = torch.from_numpy(np.packbits(bits, axis=1, bitorder="little").reshape(-1)).to(q.scale.dtype)
    if q.offset is None:
        return flat.reshape(q.codes.shape) - q.steps
    return torch.cat([flat, flat.new_zeros(q.codes.numel() - values)]).reshape(q.codes.shape)
