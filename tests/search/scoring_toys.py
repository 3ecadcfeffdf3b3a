"""A scorer and candidates small enough for tests of the workers."""

from __future__ import annotations

import torch
from pydantic import JsonValue

from edgekd.core.recipe import ModelRecipe
from edgekd.search.proxy import Batch, batch_from_images
from edgekd.search.scorer_spec import ScorerSpec, scorer_spec
from edgekd.testing.toys import toy_cnn, toy_recipe


def toy_batch() -> Batch:
    """Six images of four classes."""
    images = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return batch_from_images(images, None, classes=4)


def toy_spec(*proxies: str) -> ScorerSpec:
    """Of a scorer with two seeds."""
    return scorer_spec(toy_cnn(), toy_recipe(), toy_batch(), proxies=proxies or ("diswot",), seeds=(0, 1))


def student(depth: int) -> ModelRecipe:
    """A student of one stage with so many blocks."""
    kwargs: dict[str, JsonValue] = {"depths": [depth, 1], "widths": [8, 8, 16], "classes": 4}
    return toy_recipe().model_copy(update={"kwargs": kwargs})


def factory(name: str, **kwargs: JsonValue) -> ModelRecipe:
    """A student that a function of `tests.search.fatal` builds."""
    return toy_recipe().model_copy(update={"builder": f"module:tests.search.fatal:{name}", "kwargs": kwargs})
