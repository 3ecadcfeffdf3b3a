"""`edgekd teachers`, in this process, with toy teachers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from edgekd.cli.app import exit_code_of
from edgekd.core.recipe import ModelRecipe
from edgekd.nn.build import module_from_recipe
from edgekd.testing.harness import make_context
from edgekd.testing.toy_data import toy_dataset
from edgekd.testing.toys import toy_recipe
from edgekd.train.config import TrainConfig
from edgekd.train.fit import distil_

SHAPES = {"narrow": ([1, 1], [12, 12, 24]), "wide": ([1, 2], [24, 24, 48])}
STUDENT = "edgekd:residual depths=[1,1] widths=[8,8,16]"
INPUT = ["--input-shape", "3x8x8", "--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5"]


def arch(name: str) -> str:
    depths, widths = SHAPES[name]
    return f"edgekd:residual depths={depths} widths={widths} classes=4".replace(", ", ",")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with labelled images and the weights of two trained networks."""
    folder = tmp_path_factory.mktemp("teachers")
    data = toy_dataset(n=400)
    p = toy_recipe().preprocessing
    rows = np.arange(len(data.train))
    labels = data.train.labels
    assert labels is not None
    np.savez(folder / "data.npz", images=data.train.images(rows, p), labels=labels)
    for name, (depths, widths) in SHAPES.items():
        recipe = ModelRecipe(
            builder="edgekd:residual", kwargs={"depths": [*depths], "widths": [*widths], "classes": 4}, preprocessing=p
        )
        module = module_from_recipe(recipe, seed=1)
        distil_(module, None, data, p, TrainConfig(epochs=4, lr=0.05), make_context(folder / name))
        torch.save(module.state_dict(), folder / f"{name}.pt")
    return folder


def command(world: Path, *extra: str, names: tuple[str, ...] = ("narrow", "wide")) -> list[str]:
    given = [part for name in names for part in ("--teacher", str(world / f"{name}.pt"), "--arch", arch(name))]
    short = ["--epochs", "10", "--seeds", "2", "--batch-size", "32", "--store", str(world / "store")]
    return ["teachers", "--student", STUDENT, *given, "--data", str(world / "data.npz"), *INPUT, *short, *extra]


def test_it_pilots_the_shortlist_and_shows_every_number(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(command(world, "--format", "json", "--pilot-share", "0.2")) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found["plan"] == {"epochs": 2, "full_epochs": 10, "seeds": 2, "images": 32, "objective": "kd"}
    assert [c["teacher"]["name"] for c in found["candidates"]] == ["narrow", "wide"]
    advice = found["advice"]
    assert advice["teacher"] in {"narrow", "wide"}
    assert {pilot["name"] for pilot in advice["pilots"]} == {
        c["teacher"]["name"] for c in found["candidates"] if c["piloted"]
    }
    for pilot in [*advice["pilots"], advice["labels_alone"]]:
        assert len(pilot["by_seed"]) == 2
        assert pilot["low"] <= pilot["accuracy"] <= pilot["high"]

    assert exit_code_of(command(world, "--format", "json", "--pilot-share", "0.2")) == 0
    again = capsys.readouterr()
    assert json.loads(again.out) == found
    states = [line["state"] for line in map(json.loads, again.err.splitlines()) if line["event"] == "node"]
    assert set(states) == {"reused"}


def test_an_assistant_is_cut_from_the_strongest_teacher_and_piloted_when_asked_for(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extra = ("--assistant", "--seeds", "1", "--format", "json")
    assert exit_code_of(command(world, *extra, names=("wide",))) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["assistant"]["teacher"] == "wide"
    assert 0 < found["assistant"]["macs_keep"] < 1
    assert found["assistant_made"]["size"]["macs_m"] <= found["assistant"]["macs_m"]
    assert {pilot["name"] for pilot in found["advice"]["pilots"]} == {"wide", "assistant"}


def test_a_dry_run_shows_the_shortlist_and_trains_nothing(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(command(world, "--dry-run")) == 0
    captured = capsys.readouterr()
    assert "student: 0.00" in captured.out
    assert "Nothing was trained. " in captured.out
    assert "2 seeds each, 1 of 10 epochs." in captured.out
    assert "pilot0" not in captured.err


def test_each_teacher_needs_its_own_architecture(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of([*command(world), "--teacher", str(world / "wide.pt")]) == 2
    said = capsys.readouterr().err
    assert "3 --teacher and 2 --arch: each teacher needs its own" in said
    assert "--arch - stands for a torch.export file" in said


def test_data_without_labels_is_refused(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = np.load(world / "data.npz")["images"]
    np.savez(world / "bare.npz", images=images)
    assert exit_code_of([*command(world), "--data", str(world / "bare.npz")]) == 2
    assert "has no labels, and pilots are judged by their accuracy" in capsys.readouterr().err


def test_an_architecture_with_an_open_quote_is_refused(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of([*command(world), "--student", "edgekd:residual 'depths"]) == 2
    assert "expected NAME KEY=VALUE" in capsys.readouterr().err
