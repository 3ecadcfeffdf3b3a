"""The benchmark of all objectives: rows are trained once, summed up rightly, and really train on toy data."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from edgekd.cli.console import ConsoleReporter
from edgekd.core.events import RecordingReporter
from edgekd.pipeline.request import ModelSource, Request
from edgekd.testing.toy_data import toy_dataset
from edgekd.testing.toys import toy_cnn, toy_recipe


@pytest.fixture(scope="module")
def table() -> ModuleType:
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    try:
        import objectives_table

        return objectives_table
    finally:
        sys.path.pop(0)


def options(work: Path, **changed: Any) -> argparse.Namespace:
    given: dict[str, Any] = {
        "work": work, "students": ["resnet20"], "objectives": ["no-kd", "kd"], "seeds": 2, "quick": False, "images": 64,
        "held_out": 16, "epochs": 2, "batch_size": 16, "lr": 0.05, "views": 1, "threads": 1,
        "device": "cpu", "leading": None,
    }  # fmt: skip
    return argparse.Namespace(**{**given, **changed})


class FakeBench:
    """Counts what it is asked; accuracy is a function of the row."""

    def __init__(self) -> None:
        self.reporter = RecordingReporter()
        self.asked: list[tuple[str, str, int]] = []

    def row(self, pair: str, objective: str, seed: int) -> dict[str, Any]:
        self.asked.append((pair, objective, seed))
        top1 = {"no-kd": 0.5, "kd": 0.7, "fitnet": 0.9, "sp": 0.6}[objective] + 0.1 * seed
        return {"student": pair, "objective": objective, "seed": seed, "top1": top1, "agreement": 0.5, "seconds": 2.0}


def test_a_run_that_was_killed_trains_only_what_is_missing_and_not_what_another_setting_trained(
    table: ModuleType, tmp_path: Path
) -> None:
    first, later, other = FakeBench(), FakeBench(), FakeBench()
    table.train_rows(first, options(tmp_path, seeds=1))
    rows = table.train_rows(later, options(tmp_path))
    assert first.asked == [("resnet20", "no-kd", 0), ("resnet20", "kd", 0)]
    assert later.asked == [("resnet20", "no-kd", 1), ("resnet20", "kd", 1)]
    assert [(row["objective"], row["seed"]) for row in rows] == [("no-kd", 0), ("kd", 0), ("no-kd", 1), ("kd", 1)]
    table.train_rows(other, options(tmp_path, epochs=3))
    assert len(other.asked) == 4


def test_the_table_holds_mean_spread_and_gain_over_plain_training_best_first(table: ModuleType, tmp_path: Path) -> None:
    given = options(tmp_path)
    summary = table.summarised(table.train_rows(FakeBench(), given), given)
    best, plain = summary["pairs"]["resnet20"]
    assert (best["objective"], plain["objective"]) == ("kd", "no-kd")
    assert best["top1"] == pytest.approx(0.75)
    assert best["top1_sd"] == pytest.approx(0.1 / 2**0.5)
    assert best["gain_over_no_kd"] == pytest.approx(0.2)
    assert summary["setting"]["epochs"] == 2
    assert summary["setting"]["seeds"] == 2


def test_only_the_best_and_the_two_they_are_compared_with_have_more_seeds(table: ModuleType, tmp_path: Path) -> None:
    given, bench = options(tmp_path, objectives=["no-kd", "kd", "fitnet", "sp"], leading=1, seeds=3), FakeBench()
    summary = table.summarised(table.train_rows(bench, given), given)
    entries = {entry["objective"]: entry for entry in summary["pairs"]["resnet20"]}
    assert {name: len(entry["top1_by_seed"]) for name, entry in entries.items()} == {
        "no-kd": 3, "kd": 3, "fitnet": 3, "sp": 1,
    }  # fmt: skip
    # One seed is compared with the same seed of plain training; the seed that chose is left out beside.
    assert entries["sp"]["gain_over_no_kd"] == pytest.approx(0.1)
    assert entries["sp"]["top1_unchosen"] is None
    assert entries["fitnet"]["gain_over_no_kd"] == pytest.approx(0.4)
    assert entries["fitnet"]["top1_unchosen"] == pytest.approx(1.05)


@pytest.mark.slow
def test_rows_of_every_kind_train_on_toy_data(table: ModuleType, tmp_path: Path) -> None:
    recipe, dataset = toy_recipe(), toy_dataset(n=80)
    torch.save(toy_cnn(seed=7).state_dict(), tmp_path / "model.pt")
    split, held = dataset.train, dataset.select
    np.savez(
        tmp_path / "data.npz",
        images=split.images(np.arange(len(split)), recipe.preprocessing),
        labels=split.labels,
        val_images=held.images(np.arange(len(held)), recipe.preprocessing),
        val_labels=held.labels,
    )
    kwargs = dict(recipe.kwargs)
    source = ModelSource(
        path=str(tmp_path / "model.pt"),
        arch=recipe.builder,
        arch_kwargs=kwargs,
        preprocessing=recipe.preprocessing,
        labels=recipe.labels,
    )
    with ConsoleReporter() as reporter:
        request = Request(model=source, target="host", data=str(tmp_path / "data.npz"))
        bench = table.Bench(options(tmp_path), reporter, request, {"resnet20": (recipe.builder, kwargs)})
        for objective in ("no-kd", "kd", "sp", "pskd", "kd-random-teacher"):  # answers, inside, no teacher, untrained
            row = bench.row("resnet20", objective, seed=0)
            assert 0 <= row["top1"] <= 1
            assert row["seconds"] > 0
            assert row["objective"] == objective
