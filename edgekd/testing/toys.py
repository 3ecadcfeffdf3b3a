"""Models small enough for a unit test: a few thousand weights, milliseconds per step."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from edgekd.core.blobs import Blobs
from edgekd.core.bundle import ModelBundle
from edgekd.core.preprocess import Preprocessing
from edgekd.core.recipe import ModelRecipe
from edgekd.nn.build import module_from_recipe
from edgekd.nn.save import bundle_from_module


def toy_recipe(*, classes: int = 4, size: int = 8, channels: int = 3) -> ModelRecipe:
    """A residual network of two blocks, with pixels mapped to [-1, 1]."""
    return ModelRecipe(
        builder="edgekd:residual",
        kwargs={"depths": [1, 1], "widths": [8, 8, 16], "classes": classes, "in_channels": channels},
        preprocessing=Preprocessing(size=(size, size), mean=(0.5,) * channels, std=(0.5,) * channels),
        labels=tuple(f"class{index}" for index in range(classes)),
    )


def toy_cnn(*, classes: int = 4, channels: int = 3, seed: int = 0) -> nn.Module:
    """The network of `toy_recipe`, randomly initialised, in evaluation mode."""
    return module_from_recipe(toy_recipe(classes=classes, channels=channels), seed=seed)


def toy_bundle(
    blobs: Blobs, scratch: Path, *, seed: int = 0, classes: int = 4, size: int = 8, channels: int = 3
) -> ModelBundle:
    """A TORCH bundle of the network of `toy_recipe`; equal arguments give equal content."""
    recipe = toy_recipe(classes=classes, size=size, channels=channels)
    return bundle_from_module(module_from_recipe(recipe, seed=seed), recipe=recipe, blobs=blobs, scratch=scratch)
