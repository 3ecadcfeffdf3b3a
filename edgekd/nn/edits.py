"""Changes of a built module as plain data, so that a pruned network reloads without the pruner and without a pickle.

An edit `resize` holds the new shapes of tensors and the new values of the numbers that modules keep beside them
(`out_channels`, `normalized_shape`, `num_heads`). It is found by comparing two modules, so it needs no list of layer
types, and covers bare parameters and layers of other libraries as well. An edit `replace` puts a block of
`edgekd.nn.blocks` in the place of a submodule: a shallower network, or a cheaper block. An edit `fuse` turns branches
into the form they are deployed in (`edgekd.nn.reparam`). An edit `split` gives the flat graph of a rebuilt program the
parts that can be replaced (`edgekd.nn.split`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from pydantic import Field, JsonValue, NonNegativeInt
from torch import Tensor, nn

from edgekd.core.recipe import Edit
from edgekd.core.schema import Schema
from edgekd.errors import EdgekdError, UserError
from edgekd.nn.blocks import BLOCKS
from edgekd.nn.reparam import FUSE, fuse_
from edgekd.nn.split import split_

Number = bool | int | float | tuple[int, ...]


class Resize(Schema):
    """Arguments of a `resize` edit.

    Attributes:
        tensors: New shape by state-dict name; a tensor keeps its leading part along each axis.
        numbers: New values by module path and attribute.
    """

    tensors: dict[str, tuple[NonNegativeInt, ...]]
    numbers: dict[str, dict[str, Number]]


class Replace(Schema):
    """Arguments of a `replace` edit.

    Attributes:
        path: Of the submodule that goes.
        block: A name in `edgekd.nn.blocks.BLOCKS`.
        kwargs: Of the block.
    """

    path: str = Field(min_length=1)
    block: str
    kwargs: dict[str, JsonValue] = Field(default_factory=dict)


class Split(Schema):
    """Arguments of a `split` edit.

    Attributes:
        cuts: Names of the nodes of the program's graph after which a part ends.
    """

    cuts: tuple[str, ...] = Field(min_length=1)


def split_edit(cuts: Sequence[str]) -> Edit:
    """The edit that splits a rebuilt program into `part0`, `part1` and so on."""
    return Edit(kind="split", args=Split(cuts=tuple(cuts)).plain())


def replace_edit(path: str, block: str, kwargs: Mapping[str, JsonValue] | None = None) -> Edit:
    """The edit that puts a new, randomly initialised block in the place of the submodule at `path`."""
    return Edit(kind="replace", args=Replace(path=path, block=block, kwargs=dict(kwargs or {})).plain())


def resize_edit(before: nn.Module, after: nn.Module) -> Edit:
    """The edit that turns a module of `before`'s shapes into one of `after`'s.

    Args:
        before: As the recipe builds it.
        after: The same architecture with smaller tensors, a pruned copy for example.

    Raises:
        EdgekdError: `after` differs by more than sizes: other modules or tensors, or a buffer that no state dict holds.
    """
    old, new = _tensors(before), _tensors(after)
    if old.keys() != new.keys() or dict(before.named_modules()).keys() != dict(after.named_modules()).keys():
        names = sorted(old.keys() ^ new.keys())[:8]
        raise EdgekdError(
            f"A resize edit describes new sizes only, but the two modules differ in their parts: {names}."
        )
    lost = [name for name in old.keys() - before.state_dict().keys() if not torch.equal(old[name], new[name])]
    if lost:
        raise EdgekdError(f"The buffer {min(lost)!r} changed, and it is not part of the state dict: it would be lost.")
    shapes = {name: tuple(value.shape) for name, value in new.items() if value.shape != old[name].shape}
    numbers = {}
    for (path, part), (_, changed) in zip(before.named_modules(), after.named_modules(), strict=True):
        was, now = _numbers(part), _numbers(changed)
        differing = {name: value for name, value in now.items() if name in was and was[name] != value}
        if differing:
            numbers[path] = differing
    return Edit(kind="resize", args=Resize(tensors=shapes, numbers=numbers).plain())


def replay_edits_(module: nn.Module, edits: Iterable[Edit]) -> None:
    """Applies the edits in order.

    Raises:
        UserError: An edit of an unknown kind, or one that does not fit the module.
    """
    for edit in edits:
        if edit.kind == "resize":
            _resize_(module, Resize.parse(edit.args, "edit 'resize'"))
        elif edit.kind == "replace":
            _replace_(module, Replace.parse(edit.args, "edit 'replace'"))
        elif edit.kind == "split":
            split_(module, Split.parse(edit.args, "edit 'split'").cuts)
        elif edit == FUSE:
            fuse_(module)
        else:
            raise UserError(
                f"This edgekd cannot replay the edit {edit.kind!r}; it knows: resize, replace, fuse, split.",
                hint="the bundle was made by another version of edgekd",
            )


def _replace_(module: nn.Module, replace: Replace) -> None:
    parent_path, _, name = replace.path.rpartition(".")
    parts = dict(module.named_modules())
    if replace.path not in parts:
        raise _changed(f"replaces {replace.path} by {replace.block!r}", "no such submodule")
    setattr(parts[parent_path], name, BLOCKS.get(replace.block)(replace.kwargs))


def _resize_(module: nn.Module, resize: Resize) -> None:
    tensors = _tensors(module)
    replaced: dict[int, Tensor] = {}
    for name, shape in resize.tensors.items():
        old = tensors.get(name)
        if old is None or not _fits(shape, old.shape):
            raise _changed(f"resizes {name} to {shape}", "no such tensor" if old is None else tuple(old.shape))
        # Two names of one parameter stay one parameter.
        if id(old) not in replaced:
            kept = old.detach()[tuple(slice(size) for size in shape)].clone()
            replaced[id(old)] = nn.Parameter(kept, old.requires_grad) if isinstance(old, nn.Parameter) else kept
        path, _, attribute = name.rpartition(".")
        setattr(module.get_submodule(path), attribute, replaced[id(old)])
    parts = dict(module.named_modules())
    for path, values in resize.numbers.items():
        for attribute, value in values.items():
            if path not in parts or not hasattr(parts[path], attribute):
                raise _changed(f"sets {path}.{attribute} to {value}", "no such number")
            setattr(parts[path], attribute, value)


def _fits(shape: tuple[int, ...], old: tuple[int, ...]) -> bool:
    return len(shape) == len(old) and all(new <= was for new, was in zip(shape, old, strict=True))


def _changed(edit: str, found: object) -> UserError:
    return UserError(
        f"The recipe {edit}, but the built model has {found} there.",
        hint="the code behind the builder has changed since the bundle was made; use the version that made it",
    )


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers under every name they have."""
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


def _numbers(module: nn.Module) -> Mapping[str, Number]:
    """Public plain numbers that a module keeps in attributes."""
    return {
        name: tuple(value) if isinstance(value, tuple) else value
        for name, value in vars(module).items()
        if not name.startswith("_") and name != "training" and _is_number(value)
    }


def _is_number(value: object) -> bool:
    return isinstance(value, bool | int | float) or (
        isinstance(value, tuple) and all(isinstance(item, int) for item in value)
    )
