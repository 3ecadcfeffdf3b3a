"""What a block library holds, as plain data; the trained weights lie beside it in one safetensors file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor

from edgekd.core.blobs import disk_errors
from edgekd.core.report import REPORT_SCHEMA_VERSION
from edgekd.core.schema import Schema
from edgekd.search.blocks.chain import Block
from edgekd.search.blocks.replacement import Replacement

BLOCKS_FILE = "blocks.safetensors"
State = dict[str, Tensor]


class Scored(Schema):
    """A replacement that can be chosen.

    Attributes:
        replacement: What it is.
        error: Loss of its local training over the training activations; None for one without weights.
        kl: KL(teacher || teacher with this one replacement), nats per image, on images it was not trained on.
    """

    replacement: Replacement
    error: float | None
    kl: float


class LibraryReport(Schema):
    """The result of the block library.

    Attributes:
        blocks: Of the teacher, in the order in which they run.
        scored: All finished replacements, by position.
        skipped: Why a replacement has no score, by its key.
        images: Training images whose activations were used.
        held_out: Further training images, for the scores.
        seed: With which both were drawn.
    """

    schema_version: int = REPORT_SCHEMA_VERSION
    blocks: tuple[Block, ...] = Field(min_length=1)
    scored: tuple[Scored, ...]
    skipped: dict[str, str]
    images: int
    held_out: int
    seed: int


def save_states(states: Mapping[str, State], path: Path) -> None:
    """Writes the weights of several replacements into one file.

    Args:
        states: State dicts by the replacements' keys.
        path: Of the file.
    """
    tensors = {
        f"{key}/{name}": value.detach().to("cpu", copy=True).contiguous()
        for key, state in states.items()
        for name, value in state.items()
    }
    with disk_errors(path):
        save_file(tensors, path)


def load_states(path: Path) -> dict[str, State]:
    """What `save_states` wrote."""
    states: dict[str, State] = {}
    for name, value in load_file(path).items():
        key, _, inner = name.partition("/")
        states.setdefault(key, {})[inner] = value
    return states
