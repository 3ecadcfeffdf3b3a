"""The page on objectives says of each what the registry says, and its examples run."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from edgekd.data.augment import Augment
from edgekd.distill.teacher_file_stage import StoredLogitsConfig, StoredLogitsStage
from edgekd.testing.harness import make_context, make_inputs, run_stage
from edgekd.testing.toy_data import toy_dataset
from edgekd.testing.toys import toy_recipe
from edgekd.train.config import TrainConfig
from edgekd.train.loss_plan import plan_loss
from edgekd.train.objective import OBJECTIVES, TAPPED, label_free_objectives

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "objectives.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_every_objective_is_on_the_page_with_what_it_asks_of_labels_and_teacher() -> None:
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in PAGE.splitlines() if line.startswith("| `")]
    said = {row[0].strip("`"): (row[1], row[2]) for row in rows}
    expected = {}
    for name in OBJECTIVES:
        kind = OBJECTIVES.get(name)
        asked = "none" if not kind.needs_teacher else "inside" if kind.needs_of_teacher & TAPPED else "logits"
        asked = "trained along" if kind.trains_teacher else asked
        expected[name] = ("no" if name in label_free_objectives() else "yes", asked)
    assert len(rows) == len(said)
    assert said == expected


def test_the_recipe_on_the_page_is_a_loss() -> None:
    (recipe,) = blocks("yaml")
    plan = plan_loss(TrainConfig.parse(yaml.safe_load(recipe), "page"), teachers=1, labelled=True)
    assert [term.label for term in plan.terms] == ["dkd", "crd"]


def test_the_python_on_the_page_runs() -> None:
    code, _ = blocks("python")
    rng = torch.Generator().manual_seed(0)
    given = {
        "teacher_logits": torch.randn(20, 3, generator=rng),
        "labels": torch.arange(20) % 3,
        "one_hot": torch.eye(3)[torch.arange(20) % 3],
        "on_labels": torch.rand(20, 3, generator=rng),
        "on_outputs": torch.rand(20, 3, generator=rng),
    }
    exec(code, given)  # the page is ours
    assert 0.05 <= given["temperature"] <= 20
    assert 0 <= given["alpha"] <= 1


def test_the_file_of_logits_that_the_page_writes_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _, code = blocks("python")
    p, data = toy_recipe().preprocessing, toy_dataset()
    exec(code, {"dataset": data, "preprocessing": p, "teacher": lambda x: x.mean((2, 3), dtype=np.float32)})
    config = StoredLogitsConfig(path="logits.npz", preprocessing=p, augment=Augment(pad_px=4, flip=True))
    result = run_stage(StoredLogitsStage(config), make_inputs(), make_context(tmp_path, resources={"data": data}))
    assert (result.metrics["views"], result.metrics["samples"]) == (4, len(data.train))
