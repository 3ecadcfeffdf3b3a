"""Quantized weights as a file: codes packed to their bits, scales, and everything that stayed in full precision.

`weights.safetensors` of the same bundle holds the very same numbers as float32, for every tool that knows nothing of
grids; this file is what a device with its own decoder would store.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from edgekd.core.blobs import disk_errors
from edgekd.errors import UserError
from edgekd.quant.bucket import Quantized, WeightGrid, decode

CODES_FILE = "codes.safetensors"
FORMAT = 1
# One key only: safetensors writes several in an order that changes from run to run.
_HEADER = "edgekd"


def write_codes(path: Path, state: Mapping[str, Tensor], coded: Mapping[str, Quantized], grid: WeightGrid) -> None:
    """Writes a state dict with some weights as codes.

    Args:
        path: Where to.
        state: All tensors of a module.
        coded: Weights to store as codes, by their names in `state`. Codes and scales must be those that the weights
            were decoded from: quantizing decoded weights again may move a scale by the last bit.
        grid: Their grid.

    Raises:
        UserError: The disk is full or read-only.
    """
    tensors = {name: x.detach().cpu().contiguous() for name, x in state.items() if name not in coded}
    for name, q in coded.items():
        tensors[f"codes:{name}"] = _packed(q, grid)
        tensors[f"scale:{name}"] = q.scale.reshape(-1).cpu()
        if q.offset is not None:
            tensors[f"offset:{name}"] = q.offset.reshape(-1).cpu()
    shapes = {name: list(q.shape) for name, q in coded.items()}
    header = json.dumps({"format": FORMAT, "grid": grid.plain(), "shapes": shapes}, sort_keys=True)
    with disk_errors(path):
        save_file(tensors, path, metadata={_HEADER: header})


def read_codes(path: Path) -> dict[str, Tensor]:
    """The state dict that `write_codes` was given; weights on the grid come back bit for bit.

    Raises:
        UserError: Another kind of file, or another format.
    """
    with safe_open(path, framework="pt") as stream:
        header = json.loads((stream.metadata() or {}).get(_HEADER, "{}"))
        if header.get("format") != FORMAT:
            raise UserError(f"{path}: format {header.get('format')!r} of packed weights, this edgekd reads {FORMAT}.")
        grid = WeightGrid.parse(header["grid"], str(path))
        tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 - not a mapping
    state = {name: x for name, x in tensors.items() if ":" not in name}
    for name, shape in header["shapes"].items():
        offset = tensors.get(f"offset:{name}")
        state[name] = decode(
            Quantized(
                codes=_unpacked(tensors[f"codes:{name}"], tensors[f"scale:{name}"], torch.Size(shape), grid),
                scale=tensors[f"scale:{name}"][:, None],
                offset=None if offset is None else offset[:, None],
                steps=grid.steps,
                shape=torch.Size(shape),
            )
        )
    return state


def packed_bytes(*, full: int, coded: Iterable[Quantized], bits: float) -> float:
    """Bytes of the numbers themselves: `4 * full + bits * values / 8 + 4 * scales + 4 * offsets`.

    Args:
        full: Values that stay float32.
        coded: Quantized weights; a bucket has a scale and an offset, a channel a scale.
        bits: Per code: the grid's, or the mean length of an entropy code.
    """
    total = 4.0 * full
    for q in coded:
        total += bits * q.shape.numel() / 8 + 4 * q.scale.numel() * (1 if q.offset is None else 2)
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


def _packed(q: Quantized, grid: WeightGrid) -> Tensor:
    """uint8: 8 / bits codes per byte, the first in the lowest bits."""
    codes = _unsigned(q)
    per_byte = 8 // grid.bits
    codes = np.concatenate([codes, np.zeros(-len(codes) % per_byte, dtype=np.uint8)]).reshape(-1, per_byte)
    shifts = np.arange(per_byte, dtype=np.uint8) * np.uint8(grid.bits)
    return torch.from_numpy(np.bitwise_or.reduce(codes << shifts, axis=1))


def _unpacked(packed: Tensor, scale: Tensor, shape: torch.Size, grid: WeightGrid) -> Tensor:
    """(G, k) codes as `Quantized` has them."""
    shifts = np.arange(8 // grid.bits, dtype=np.uint8) * np.uint8(grid.bits)
    codes = (packed.numpy()[:, None] >> shifts) & np.uint8(2**grid.bits - 1)
    flat = torch.from_numpy(codes.reshape(-1)[: shape.numel()]).to(scale.dtype)
    if grid.granularity == "channel":
        return flat.reshape(len(scale), -1) - grid.steps
    size = min(grid.bucket_size, len(flat))
    return torch.cat([flat, flat.new_zeros(-len(flat) % size)]).reshape(-1, size)
