"""From a recipe, and a bundle's weights, to a module. Reads nothing but the files of the bundle.

A builder of the form `module:package.module:factory` imports the user's own code, from the working directory too.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from pydantic import JsonValue
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from edgekd.core.blobs import Blobs
from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.recipe import ModelRecipe
from edgekd.core.schema import suggest
from edgekd.errors import UserError
from edgekd.nn.edits import replay_edits_
from edgekd.nn.models import BUILDERS
from edgekd.nn.program import module_from_program_file
from edgekd.nn.timm import module_from_timm

WEIGHTS_FILE = "weights.safetensors"
PROGRAM_FILE = "program.pt2"


def module_from_bundle(bundle: ModelBundle, blobs: Blobs) -> nn.Module:
    """The bundle's model with its weights, in evaluation mode, on the CPU.

    Raises:
        UserError: Not a TORCH bundle, a missing file, or weights that do not fit the recipe.
    """
    if bundle.kind is not BundleKind.TORCH:
        raise UserError(f"A module is built from a torch bundle, but this is a {bundle.kind} bundle.")
    recipe = bundle.model
    program = blobs.path(bundle.file(PROGRAM_FILE)) if recipe.builder == "program" else None
    module = module_from_recipe(recipe, program=program)
    path = blobs.path(bundle.file(WEIGHTS_FILE))
    try:
        module.load_state_dict(load_file(path))
    except (RuntimeError, SafetensorError) as err:
        raise UserError(
            f"The weights {path} do not fit the recipe of builder {recipe.builder!r} with {len(recipe.edits)} edits: "
            f"{err}",
            hint="the code behind the builder has changed since the bundle was made; use the version that made it",
        ) from err
    return module


def module_from_recipe(recipe: ModelRecipe, *, program: Path | None = None, seed: int = 0) -> nn.Module:
    """The recipe's architecture with its edits, randomly initialised, in evaluation mode, on the CPU.

    Equal recipes and seeds give equal weights; the global random state is left as it was.

    Args:
        program: The `torch.export` program, for the builder `program` only; its own weights are loaded.
        seed: Of the initial weights.

    Raises:
        UserError: The builder is unknown or its arguments do not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        module = _built(recipe, program)
        replay_edits_(module, recipe.edits)
    return module.eval()


def is_trainable(recipe: ModelRecipe) -> bool:
    """Whether the recipe's module has layers that train, prune and change mode; only a frozen program has none."""
    return recipe.builder != "onnx" and not (recipe.builder == "program" and recipe.kwargs.get("form") == "frozen")


def _built(recipe: ModelRecipe, program: Path | None) -> nn.Module:
    scheme, _, name = recipe.builder.partition(":")
    if scheme == "edgekd":
        return BUILDERS.get(name)(recipe.kwargs)
    if scheme == "timm":
        return module_from_timm(name, recipe.kwargs)
    if scheme == "module":
        return _module_from_factory(name, recipe.kwargs)
    if scheme == "program":
        if program is None:
            raise UserError(f"The builder 'program' needs the file {PROGRAM_FILE}, and none was given.")
        return module_from_program_file(program, frozen=not is_trainable(recipe))
    raise UserError("An ONNX graph has no PyTorch module: it can be quantized, profiled and judged, but not trained.")


def _module_from_factory(place: str, kwargs: Mapping[str, JsonValue]) -> nn.Module:
    """The result of calling `package.module:factory` with `kwargs`."""
    with working_directory_importable():
        factory = _factory(place)
        try:
            inspect.signature(factory).bind(**kwargs)
        except TypeError as err:
            raise UserError(
                f"--arch {place} does not take the arguments {dict(kwargs)}: {err}.",
                hint=f"its signature is {inspect.signature(factory)}; pass arguments with --arch-arg name=value",
            ) from err
        module = factory(**kwargs)
    if not isinstance(module, nn.Module):
        raise UserError(f"--arch {place} must return a torch.nn.Module, but returned {type(module).__name__}.")
    return module


def _factory(place: str) -> Callable[..., object]:
    name, _, attribute = place.partition(":")
    if not name or not attribute:
        raise UserError(f"--arch {place!r}: expected package.module:factory.")
    try:
        found = importlib.import_module(name)
    except ImportError as err:
        raise UserError(
            f"--arch {place}: cannot import {name} ({err}).",
            hint=f"run from the folder that holds {name.split('.')[0]}, or install the package it is part of",
        ) from err
    factory: Callable[..., object] | None = getattr(found, attribute, None)
    if not callable(factory):
        near = suggest(attribute, (key for key, value in vars(found).items() if callable(value)))
        raise UserError(f"--arch {place}: {found.__file__} has no function or class {attribute!r}.{near}")
    return factory


@contextmanager
def working_directory_importable() -> Iterator[None]:
    """Finds the user's modules that lie in the working directory, which a console script does not see by itself."""
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)
