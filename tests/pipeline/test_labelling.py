"""What to label next: far from what has a label, and written so that a person finds the image."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from edgekd.cli.app import exit_code_of
from edgekd.core.events import SilentReporter
from edgekd.core.stage import Execution
from edgekd.core.store import LocalStore
from edgekd.errors import UserError
from edgekd.nn.build import module_from_recipe
from edgekd.pipeline.labelling import LabelRequest, images_to_label, write_labels
from edgekd.pipeline.request import ModelSource
from edgekd.testing.toy_data import toy_dataset
from edgekd.testing.toys import toy_recipe

RECIPE = toy_recipe()
ARCH = [
    "--arch", "edgekd:residual", "--arch-arg", "depths=[1, 1]", "--arch-arg", "widths=[8, 8, 16]",
    "--arch-arg", "classes=4", "--arch-arg", "in_channels=3", "--input-shape", "3x8x8",
    "--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5",
]  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows four classes, labelled images of two of them, and a folder with some of all four."""
    folder, data = tmp_path_factory.mktemp("label"), toy_dataset(n=200)
    labels, p = data.train.labels, RECIPE.preprocessing
    assert labels is not None
    images = data.train.images(np.arange(len(labels)), p)
    model = module_from_recipe(RECIPE, seed=0).train()
    batch = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(batch), torch.from_numpy(labels)).backward()
        optimizer.step()
    torch.save(model.state_dict(), folder / "model.pt")
    two = labels < 2
    np.savez(folder / "data.npz", images=images[two], labels=labels[two], classes=np.array(["0", "1"]))
    (folder / "pool").mkdir()
    others = toy_dataset(n=120, seed=4).train
    assert others.labels is not None
    for row, (pixels, label) in enumerate(zip(others.images(np.arange(len(others)), p), others.labels, strict=True)):
        if label < 2 or row < 40:
            Image.fromarray(pixels).save(folder / "pool" / f"{row:03d}-{label}.png")
    return folder


def asked(world: Path, count: int) -> LabelRequest:
    arch = {"depths": [1, 1], "widths": [8, 8, 16], "classes": 4, "in_channels": 3}
    model = ModelSource(
        path=str(world / "model.pt"),
        arch="edgekd:residual",
        arch_kwargs={**arch, **RECIPE.kwargs},
        preprocessing=RECIPE.preprocessing,
        labels=("0", "1", "2", "3"),
    )
    return LabelRequest(model=model, data=str(world / "data.npz"), unlabelled=str(world / "pool"), count=count)


def test_images_of_classes_without_any_label_come_first(world: Path, tmp_path: Path) -> None:
    report = images_to_label(asked(world, 6), LocalStore(tmp_path), SilentReporter(), Execution(device="cpu"))
    classes = [Path(row.image).stem[-1] for row in report.images]
    assert {"2", "3"} <= set(classes[:3]), "of the pool they are a fifth"
    distances = [row.distance for row in report.images]
    assert distances == sorted(distances, reverse=True)
    assert 0 < distances[0] <= 2**0.5 + 1e-9
    write_labels(report, tmp_path / "list.csv")
    rows = list(csv.DictReader((tmp_path / "list.csv").open()))
    assert [row["image"] for row in rows] == [row.image for row in report.images]
    assert all(Path(row["image"]).is_file() for row in rows)


def test_more_images_than_there_are_cannot_be_chosen(world: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Expected to choose 1 to"):
        images_to_label(asked(world, 9999), LocalStore(tmp_path), SilentReporter(), Execution(device="cpu"))


def test_the_verb_writes_the_list(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arch = [part.replace("widths=[8, 8, 16]", f"widths={RECIPE.kwargs['widths']}") for part in ARCH]
    arch = [part.replace("depths=[1, 1]", f"depths={RECIPE.kwargs['depths']}") for part in arch]
    places = ["--data", str(world / "data.npz"), "--unlabelled", str(world / "pool"), "--count", "5"]
    assert exit_code_of(["label", str(world / "model.pt"), *arch, *places]) == 0
    assert "images to label, most valuable first" in capsys.readouterr().out
    assert len((tmp_path / "to_label.csv").read_text().splitlines()) == 6
