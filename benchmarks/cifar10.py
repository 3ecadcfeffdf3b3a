"""What the benchmarks on CIFAR-10 share: the trained teacher, the images as one file, and the facts of the machine.

They need `cifar10/expand.py` (CIFAR-10 re-encoded as JPEG) and `weights/models.py` with `cifar10_resnet56_jpeg.pt` in a
data folder outside this repository.
"""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

import edgekd
from edgekd.core.preprocess import Preprocessing
from edgekd.pipeline.request import ModelSource

PREPROCESSING = Preprocessing(size=(32, 32), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def resnet56(data: Path) -> ModelSource:
    """The teacher: ResNet-56, fine-tuned on the JPEG set, 89.73 % top-1 on its 10,000 test images."""
    sys.path.insert(0, str(data / "weights"))  # where its definition is
    return ModelSource(
        path=str(data / "weights" / "cifar10_resnet56_jpeg.pt"),
        arch="models:CifarResNet",
        arch_kwargs={"depth": 56},
        preprocessing=PREPROCESSING,
    )


def cifar10_npz(data: Path, path: Path, *, images: int | None = None, held_out: int | None = None) -> Path:
    """The first training images, and the first test images as the held-out part, in one `.npz`; `path`, made once.

    Args:
        data: Folder with `cifar10/`.
        path: Its name tells how many images it holds: an existing file is taken as it is.
        images: None for all.
        held_out: None for all.
    """
    if path.exists():
        return path
    sys.path.insert(0, str(data / "cifar10"))
    import expand

    train, labels, classes, _ = expand.load("train")
    held, held_labels, _, _ = expand.load("test")
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        path,
        images=train[:images],
        labels=labels[:images],
        classes=np.array([str(name) for name in classes]),
        val_images=held[:held_out],
        val_labels=held_labels[:held_out],
    )
    return path


PLACES = ("--data", "--work", "--out")
"""Flags that say where files lie, and nothing of the result."""


def command() -> str:
    """How this script was called, without the places of files."""
    words, given = [f"benchmarks/{Path(sys.argv[0]).name}"], iter(sys.argv[1:])
    for word in given:
        if word in PLACES:
            next(given, None)
        elif not word.startswith(tuple(f"{place}=" for place in PLACES)):
            words.append(word)
    return " ".join(["python", *words])


def machine() -> dict[str, Any]:
    """Cores, processor and system."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    found = (line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return {
        "cores": os.cpu_count(),
        "processor": next(found, platform.processor()),
        "system": platform.platform(),
    }


def versions() -> dict[str, str]:
    """Of what decides about accuracies and times of training."""
    return {"edgekd": edgekd.__version__, "torch": torch.__version__, "python": platform.python_version()}
