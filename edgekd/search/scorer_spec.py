"""A scorer as plain data, so that another process or another machine builds the same one.

A module would have to be pickled, and a pickle runs code where it is read; a recipe and a safetensors file do not.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from torch import nn

from edgekd.core.blobs import Blobs
from edgekd.core.bundle import ModelBundle
from edgekd.core.recipe import ModelRecipe
from edgekd.nn.build import PROGRAM_FILE, WEIGHTS_FILE, module_from_recipe
from edgekd.nn.save import checked_weights
from edgekd.search.proxy import Batch
from edgekd.search.proxy_names import proxy_from_name
from edgekd.search.scoring import Scorer


@dataclass(frozen=True, kw_only=True, eq=False)
class ScorerSpec:
    """What a `Scorer` is made of.

    Attributes:
        teacher: Its architecture.
        weights: Its state dict as the bytes of a safetensors file. Layers draw theirs anew, but what belongs to no
            layer (position embeddings, scales) keeps these values.
        program: The bytes of its `torch.export` program, for the builder `program`.
        images: (N, C, H, W) float32, preprocessed.
        labels: (N,) int64.
        proxies: Names in `PROXIES`.
        seeds: Of the random weights.
    """

    teacher: ModelRecipe
    weights: bytes
    program: bytes | None = None
    images: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    proxies: tuple[str, ...]
    seeds: tuple[int, ...]

    @property
    def draws_weights(self) -> bool:
        """Whether networks are run at all; counting takes milliseconds, less than a process takes to start."""
        return any(proxy_from_name(name).uses_weights for name in self.proxies)

    def scorer(self) -> Scorer:
        """The scorer; equal specs give equal scores on equal machines."""
        batch = Batch(images=torch.from_numpy(self.images), labels=torch.from_numpy(self.labels))
        return Scorer(self._module(), batch, proxies=self.proxies, seeds=self.seeds)

    def _module(self) -> nn.Module:
        if self.program is None:
            module = module_from_recipe(self.teacher)
        else:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / PROGRAM_FILE
                path.write_bytes(self.program)
                module = module_from_recipe(self.teacher, program=path)
        module.load_state_dict(safetensors.torch.load(self.weights))
        return module


def scorer_spec(
    teacher: nn.Module, recipe: ModelRecipe, batch: Batch, *, proxies: Sequence[str], seeds: Sequence[int]
) -> ScorerSpec:
    """The spec of a scorer whose teacher is a module that `recipe` builds.

    Args:
        teacher: Left as it was.
        recipe: Of the teacher; a recipe whose builder is `program` needs `scorer_spec_from_bundle`.
        batch: What every network sees.
        proxies: Names in `PROXIES`.
        seeds: Of the random weights.
    """
    return ScorerSpec(
        teacher=recipe,
        weights=safetensors.torch.save(checked_weights(teacher.state_dict())),
        images=batch.images.numpy(),
        labels=batch.labels.numpy(),
        proxies=tuple(proxies),
        seeds=tuple(seeds),
    )


def scorer_spec_from_bundle(
    teacher: ModelBundle, blobs: Blobs, batch: Batch, *, proxies: Sequence[str], seeds: Sequence[int]
) -> ScorerSpec:
    """The spec of a scorer whose teacher is the model of a TORCH bundle."""
    program = teacher.model.builder == "program"
    return ScorerSpec(
        teacher=teacher.model,
        weights=blobs.path(teacher.file(WEIGHTS_FILE)).read_bytes(),
        program=blobs.path(teacher.file(PROGRAM_FILE)).read_bytes() if program else None,
        images=batch.images.numpy(),
        labels=batch.labels.numpy(),
        proxies=tuple(proxies),
        seeds=tuple(seeds),
    )
