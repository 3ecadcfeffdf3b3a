"""The page on objectives says of each what the registry says, and its examples run."""

from __future__ import annotations

import re
from pathlib import Path

import torch
import yaml

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
    (code,) = blocks("python")
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
