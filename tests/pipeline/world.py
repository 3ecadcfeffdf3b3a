"""A small world to run the main job in: digits-like data, a trained toy network, and short settings."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from edgekd.core.recipe import ModelRecipe
from edgekd.nn.build import module_from_recipe
from edgekd.testing.toy_data import toy_dataset
from edgekd.testing.toys import toy_recipe

SIZE = 16
CLASSES = 4
ARCH = [
    "--arch", "edgekd:residual", "--arch-arg", "depths=[2, 2, 2]", "--arch-arg", "widths=[16, 16, 32, 64]",
    "--arch-arg", f"classes={CLASSES}", "--arch-arg", "in_channels=3",
    "--input-shape", f"3x{SIZE}x{SIZE}", "--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5",
]  # fmt: skip
SHORT = [
    "--evaluations", "4", "--epochs", "2", "--recover-epochs", "1", "--batch-size", "32", "--duration", "0.2",
    "--warmup", "0.05", "--calib-samples", "16",
]  # fmt: skip


@dataclass(frozen=True)
class World:
    """Files of a user: `model` is a state dict, `data` an `.npz` with labels."""

    folder: Path
    model: Path
    data: Path

    def command(self, *extra: str, out: str = "out", store: str = "store") -> list[str]:
        """Arguments of `edgekd compress` for the host."""
        places = ["-o", str(self.folder / out), "--store", str(self.folder / store)]
        return ["compress", str(self.model), *ARCH, "--target", "host", *places, *SHORT, *extra]


def large_recipe() -> ModelRecipe:
    """The network of the world: large enough that the search space holds clearly smaller students."""
    kwargs = {"depths": [2, 2, 2], "widths": [16, 16, 32, 64], "classes": CLASSES, "in_channels": 3}
    return toy_recipe(classes=CLASSES, size=SIZE).model_copy(update={"kwargs": kwargs})


def make_world(folder: Path) -> World:
    """Trains the toy for a moment and writes both files."""
    dataset = toy_dataset(classes=CLASSES, n=640, size=SIZE)
    recipe = large_recipe()
    split, p = dataset.train, recipe.preprocessing
    images = split.images(np.arange(len(split)), p)
    labels = split.labels
    assert labels is not None
    model = module_from_recipe(recipe, seed=0).train()
    batch = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(12):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(batch), torch.from_numpy(labels)).backward()
        optimizer.step()
    torch.save(model.state_dict(), folder / "model.pt")
    held = (dataset.select, dataset.test)
    np.savez(
        folder / "data.npz",
        images=images,
        labels=labels,
        val_images=np.concatenate([part.images(np.arange(len(part)), p) for part in held]),
        val_labels=np.concatenate([part.labels for part in held]),
    )
    return World(folder, folder / "model.pt", folder / "data.npz")


def edgekd(arguments: list[str], cwd: Path, timeout_s: float = 300.0) -> subprocess.CompletedProcess[str]:
    """Runs the command line as a user does, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "edgekd", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        check=False,
    )
