"""What the stages that put weights on a grid have in common: the packed file beside the weights, and its size."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from edgekd.core.bundle import ModelBundle
from edgekd.core.digest import Json
from edgekd.core.stage import Context
from edgekd.errors import BuildFailed
from edgekd.nn.build import module_from_bundle
from edgekd.quant.bucket import Quantized
from edgekd.quant.codes import CODES_FILE, code_counts, huffman_bits, packed_bytes, read_codes, write_codes

_MIB = 1 << 20


def with_codes(bundle: ModelBundle, student: nn.Module, coded: Mapping[str, Quantized], ctx: Context) -> ModelBundle:
    """The bundle with the packed form of its weights as one more file."""
    path = ctx.scratch / CODES_FILE
    write_codes(path, student.state_dict(), coded)
    files = {**bundle.files, CODES_FILE: ctx.blobs.add(path)}
    path.unlink()
    return bundle.model_copy(update={"files": files})


def sizes(bundle: ModelBundle, student: nn.Module, coded: Mapping[str, Quantized], ctx: Context) -> dict[str, Json]:
    """Size of the packed file, and what Huffman codes would make of it, by formula, with their mean length."""
    full = sum(x.numel() for name, x in student.state_dict().items() if name not in coded)
    length = huffman_bits(code_counts(coded.values()))
    huffman = packed_bytes(full=full, coded=coded.values(), bits=length)
    packed = ctx.path(bundle, CODES_FILE).stat().st_size
    return {"size_mib_packed": packed / _MIB, "size_mib_huffman": huffman / _MIB, "huffman_bits": length}


def require_equal_codes(bundle: ModelBundle, ctx: Context) -> None:
    """Raises `BuildFailed` when the packed file and the weights of a bundle are not the same numbers."""
    state = module_from_bundle(bundle, ctx.blobs).state_dict()
    packed, _ = read_codes(ctx.path(bundle, CODES_FILE))
    off = [name for name in state if not torch.equal(state[name], packed[name])]
    if off:
        raise BuildFailed(f"Packed weights differ from those of the model in {', '.join(off[:8])}.")
