"""`torch.export` programs (`.pt2`), opened without running code that the file carries.

`torch.export.load` trusts its file: it unpickles some members without restriction, evaluates the symbolic shapes and
the guards as Python, and pastes names of the graph into generated code (torch 2.14: `pt2_archive/_package.py`,
`_export/serde/serialize.py`, `export/_unlift.py`). So every member is examined first, and a program that holds
anything but tensors, operators of torch and plain names is refused.
"""

from __future__ import annotations

import copy
import io
import json
import pickle
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from edgekd.errors import UserError
from edgekd.nn.rebuild import module_from_program

_RAW = re.compile(
    r"data/(weights/weight_\d+|constants/tensor_\d+)|version|archive_(format|version)|byteorder|\.data/.*|extra/.*"
)
_PICKLED = re.compile(
    r"(data/(sample_inputs|weights|constants)/.*|serialized_(state_dict|constants|example_inputs))\.pt"
)
_GRAPH = re.compile(r"models/.*\.json|serialized_exported_program\.json")
_CONFIG = re.compile(r"data/(weights|constants)/.*_config\.json")
# Names, operator targets, treespec types, einsum equations: no quote, no backslash, no call.
_PLAIN = re.compile(r"[\w.,:;>< \-/\[\]|*+=]*")
# Sizes such as `Symbol('s7', positive=True, integer=True)` or `Mul(Integer(2), s7)`: names, numbers and signs only.
# Possessive, for a hostile text must not make the match slow.
_SYMBOLIC = re.compile(
    r"(Symbol\('\w++'(, \w++=(True|False))*+\)|[A-Z][A-Za-z]*+|[a-z]++\d++|\d++(\.\d++)?|[-+*/(),<>= ])*+"
)
# Pasted into the source of a generated function.
_IDENTIFIER = re.compile(r"[\w.]*")
_ALLOWED = {"expr_str": _SYMBOLIC, "name": _IDENTIFIER, "forward_arg_names": _IDENTIFIER}
_TREES = ("in_spec", "out_spec")
# Shown to people only, or never evaluated here (`guards_code`: see `frozen_module`).
_INERT = ("metadata", "guards_code", "stack_trace")
_UNREADABLE = (
    zipfile.BadZipFile,
    pickle.UnpicklingError,
    RuntimeError,
    ValueError,
    KeyError,
    TypeError,
    AssertionError,
)


def load_program(path: Path) -> ExportedProgram:
    """The program in a file.

    Raises:
        UserError: Not a readable program, one of an incompatible torch, or one that holds code.
    """
    try:
        return torch.export.load(_examined(path))
    except _UNREADABLE as err:
        raise UserError(
            f"{path} is not a torch.export program that torch {torch.__version__} can read: {err}",
            hint="save it again with torch.export.save(program, path) and a torch of this version",
        ) from err


def module_from_program_file(path: Path, *, frozen: bool) -> nn.Module:
    """The program's module with its weights.

    Args:
        path: A file that `load_program` accepts.
        frozen: Take the traced graph as it is, instead of rebuilding layers that train.

    Raises:
        UserError: The file is refused.
        BuildFailed: Its layers cannot be rebuilt.
    """
    program = load_program(path)
    return frozen_module(program) if frozen else module_from_program(program)


def frozen_module(program: ExportedProgram) -> nn.Module:
    """The traced graph as a module that only infers; its weights are copies.

    The guards, Python source that comes with the file, are left out.
    """
    return _Frozen(copy.deepcopy(program.module(check_guards=False)))


class _Frozen(nn.Module):
    """Answers a change of mode, which exported modules refuse: it has only one."""

    def __init__(self, traced: nn.Module) -> None:
        super().__init__()
        self.traced = traced.requires_grad_(False)
        self.training = False

    def train(self, mode: bool = True) -> Self:
        return self

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.traced(images)
        return logits


def _examined(path: Path) -> io.BytesIO:
    """A copy of the archive that holds what was examined and nothing else, so that no second reader sees more."""
    copied = io.BytesIO()
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(copied, "w") as target:
        names = archive.namelist()
        # torch's reader ignores case: of two such members it could take the other one.
        if len({name.lower() for name in names}) != len(names):
            raise _refusal(path, "two members of one name")
        for name in names:
            content = archive.read(name)
            _examine(content, name, path)
            target.writestr(name, content)
    copied.seek(0)
    return copied


def _examine(content: bytes, name: str, path: Path) -> None:
    inner = name.partition("/")[2] or name
    if _GRAPH.fullmatch(inner):
        _refuse_code_in_graph(json.loads(content), path)
    elif _CONFIG.fullmatch(inner):
        _refuse_pickled_payload(json.loads(content), path)
    elif _PICKLED.fullmatch(inner):
        _refuse_pickle(content, path, name)
    elif not _RAW.fullmatch(inner):
        raise _refusal(path, f"the member {name}")


def _refuse_pickle(content: bytes, path: Path, name: str) -> None:
    """Lets through what `weights_only` can load: torch tries that first, and falls back only when it fails."""
    if not content:
        return
    unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(content))
    if unsafe:
        raise _refusal(path, f"a pickle of {', '.join(sorted(unsafe))} in {name}")
    torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")


def _refuse_pickled_payload(config: dict[str, Any], path: Path) -> None:
    for name, payload in config["config"].items():
        if payload["use_pickle"] or not re.fullmatch(r"(weight|tensor)_\d+", payload["path_name"]):
            raise _refusal(path, f"the pickled constant {name!r}")


def _refuse_code_in_graph(graph: dict[str, Any], path: Path) -> None:
    for key, text in _strings(graph):
        if not _ALLOWED.get(key, _PLAIN).fullmatch(text):
            raise _refusal(path, f"the text {text[:60]!r} in its graph")


def _strings(value: object, key: str = "") -> Iterator[tuple[str, str]]:
    """(nearest key, text) of every string that torch may interpret, keys of mappings included."""
    if isinstance(value, str):
        if key in _TREES or (key == "context" and value.startswith(('"', "[", "{"))):
            yield from _strings(json.loads(value), "tree")
        else:
            yield key, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            if name not in _INERT:
                yield "key", name
                yield from _strings(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner, key)


def _refusal(path: Path, what: str) -> UserError:
    return UserError(
        f"{path} holds {what}, which torch could run as code while it loads. Only tensors, operators and plain names "
        "are accepted in a torch.export program.",
        hint="give the state dict instead, with --arch timm:NAME or --arch package.module:factory",
    )
