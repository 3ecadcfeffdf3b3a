"""The embedded default of `edgekd demo`: real handwritten digits, and a small teacher trained on them once.

The images are the 1,797 digits of scikit-learn (Alpaydin and Kaynak, 1998; test part of the UCI set), upscaled from
8x8 to 32x32 pixels, so that nothing has to be downloaded. The teacher is trained by the same engine as every student.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from edgekd.core.blobs import disk_errors
from edgekd.core.bundle import BundleKind
from edgekd.core.events import Reporter
from edgekd.core.graph import Graph, Node
from edgekd.core.preprocess import Preprocessing
from edgekd.core.recipe import ModelRecipe
from edgekd.core.report import Budget
from edgekd.core.runner import Runner, RunSettings
from edgekd.core.stage import Execution
from edgekd.core.store import LocalStore
from edgekd.data.sources import load_dataset
from edgekd.nn.build import module_from_recipe
from edgekd.nn.save import bundle_from_module
from edgekd.pipeline.request import ModelSource, Options, Request
from edgekd.pipeline.stages import STAGES
from edgekd.pipeline.training import train_config

SIZE_PX = 32
HELD_OUT = 600
TEACHER_EPOCHS = 15
ARCH = "edgekd:residual"
ARCH_KWARGS = {"depths": [2, 2, 2], "widths": [16, 16, 32, 64], "classes": 10, "in_channels": 1}
PREPROCESSING = Preprocessing(size=(SIZE_PX, SIZE_PX), mean=(0.3,), std=(0.35,))
OPTIONS = Options(epochs=14, recover_epochs=6, evaluations=100, flip=False, batch_size=64, prune_keep=0.6)


def digits_npz(path: Path) -> Path:
    """Writes the digits with a held-out part to `path` and returns it; an existing file is kept."""
    if path.exists():
        return path
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    images = np.stack([_upscaled(image) for image in digits.images[order]])
    labels = digits.target[order].astype(np.int64)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(
            path,
            images=images[HELD_OUT:],
            labels=labels[HELD_OUT:],
            val_images=images[:HELD_OUT],
            val_labels=labels[:HELD_OUT],
        )
    return path


def trained_teacher(data: Path, path: Path, store: LocalStore, reporter: Reporter, execution: Execution) -> Path:
    """Trains the teacher on the training part of `data`, or takes it from the store, and writes its state dict."""
    dataset = load_dataset(str(data))
    recipe = ModelRecipe(builder=ARCH, kwargs=ARCH_KWARGS, preprocessing=PREPROCESSING, labels=tuple(dataset.classes))
    scratch = path.parent / "initial"
    with disk_errors(path):
        scratch.mkdir(parents=True, exist_ok=True)
    start = bundle_from_module(module_from_recipe(recipe, seed=0), recipe=recipe, blobs=store.blobs, scratch=scratch)
    shutil.rmtree(scratch, ignore_errors=True)
    config = train_config(
        OPTIONS, epochs=TEACHER_EPOCHS, fresh=True, size=PREPROCESSING.size, images=len(dataset.train)
    )
    alone = config | {"objective": None, "teacher_views": 0}
    node = Node(name="train-teacher", stage="distill", config=alone, inputs={"student": ("@start",)})
    graph = Graph(inputs={"start": BundleKind.TORCH}, nodes=(node,))
    settings = RunSettings(resources={"data": dataset}, reporter=reporter, execution=execution)
    trained = Runner(STAGES, store).run(graph, {"start": start}, settings).bundle("train-teacher")
    weights = load_file(store.blobs.path(trained.file("weights.safetensors")))
    with disk_errors(path):
        torch.save(weights, path)
    return path


def digits_request(model: Path, data: Path) -> Request:
    """The main job on the digits: what a user would type for a model of their own."""
    return Request(
        model=ModelSource(path=str(model), arch=ARCH, arch_kwargs=ARCH_KWARGS, preprocessing=PREPROCESSING),
        target="host",
        data=str(data),
        budget=Budget(max_latency_ms=0.5, max_drop=0.01),
    )


def _upscaled(
    image: np.ndarray[tuple[int, int], np.dtype[np.float64]],
) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    """(32, 32) uint8 from (8, 8) values in [0, 16]."""
    small = Image.fromarray(np.round(image * (255 / 16)).astype(np.uint8))
    return np.asarray(small.resize((SIZE_PX, SIZE_PX), Image.Resampling.BICUBIC))
