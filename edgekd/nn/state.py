"""State dicts as people save them: wrapped, prefixed, incomplete; found, or refused with what does not fit."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from edgekd.errors import UserError

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "weights", "params")
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
_SHOWN = 8


def state_from_file(path: Path, *, safetensors: bool) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors of a state-dict file by name, on the CPU, and notes on what was taken off around them.

    Raises:
        UserError: Unreadable, or it holds no tensors under names.
    """
    try:
        content = load_file(path) if safetensors else torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, SafetensorError, pickle.UnpicklingError, EOFError) as err:
        raise UserError(f"{path} cannot be read: {err}", hint="it may be cut off: copy it again") from err
    return state_from_checkpoint(content, str(path))


def state_from_checkpoint(content: object, where: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors by name inside what a training script saved, and notes on what was taken off around them.

    Args:
        content: A state dict, or a mapping that holds one as `state_dict`, `model` and so on.
        where: The file, for messages.

    Raises:
        UserError: No tensors under names are found.
    """
    notes: list[str] = []
    wrapper = next((key for key in _WRAPPERS if isinstance(content, Mapping) and _is_nested(content.get(key))), None)
    if isinstance(content, Mapping) and wrapper is not None:
        notes.append(f"Took the weights from {wrapper!r} of the checkpoint, which holds {_some(content)}.")
        content = content[wrapper]
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        found = f"a mapping of {_some(content)}" if isinstance(content, Mapping) else f"a {type(content).__name__}"
        raise UserError(
            f"{where}: expected a state dict, names with tensors, but it holds {found}.",
            hint="save it with torch.save(model.state_dict(), path)",
        )
    return {str(name): value for name, value in content.items()}, tuple(notes)


def load_state_(module: nn.Module, state: Mapping[str, Tensor], where: str) -> tuple[str, ...]:
    """Loads a state dict into the module, without the prefixes that wrappers add, and returns notes on them.

    Raises:
        UserError: Names or shapes do not fit; the message lists the first of each.
    """
    expected = module.state_dict()
    state, notes = _without_prefixes(state, expected)
    # BatchNorm counts its batches only since torch 0.4.1; inference does not read the count.
    missing = [name for name in expected if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in expected]
    shapes = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(value.shape)}"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    if missing or unexpected or shapes:
        parts = (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        raise UserError(
            f"The state dict {where} does not fit {type(module).__name__}: "
            + "; ".join(f"{len(names)} {what} ({_some(names)})" for what, names in parts if names)
            + ".",
            hint="give the architecture these weights were trained with: --arch, and its arguments with --arch-arg",
        )
    module.load_state_dict(state, strict=False)
    return notes


def bare_name(name: str) -> str:
    """A weight's name without the prefixes that wrappers add."""
    while (prefix := next((prefix for prefix in _PREFIXES if name.startswith(prefix)), None)) is not None:
        name = name.removeprefix(prefix)
    return name


def _without_prefixes(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> tuple[Mapping[str, Tensor], tuple[str, ...]]:
    removed = ""
    while not state.keys() & expected.keys():
        prefix = next((prefix for prefix in _PREFIXES if all(name.startswith(prefix) for name in state)), None)
        if prefix is None:
            break
        removed += prefix
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state, (f"Took the prefix {removed!r} off the names of the weights.",) if removed else ()


def _is_nested(value: object) -> bool:
    return isinstance(value, Mapping) and any(isinstance(inner, Tensor) for inner in value.values())


def _some(names: Mapping[str, object] | list[str]) -> str:
    shown = [str(name) for name in names]
    return ", ".join(shown[:_SHOWN]) + (", ..." if len(shown) > _SHOWN else "")
