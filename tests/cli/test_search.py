"""`edgekd search`, in this process: what it prints, writes and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from edgekd.cli.app import exit_code_of
from edgekd.core.recipe import ModelRecipe
from edgekd.nn.build import module_from_recipe
from edgekd.pipeline.recipes import read_recipe
from edgekd.search.proxies.objective import scoring_objectives
from edgekd.search.report import SearchReport
from edgekd.testing.toys import toy_recipe

SIZE = 16
ARCH = [
    "--arch", "edgekd:residual", "--arch-arg", "depths=[3, 3]", "--arch-arg", "widths=[24, 32, 64]",
    "--arch-arg", "classes=4", "--arch-arg", "in_channels=3", "--input-shape", f"3x{SIZE}x{SIZE}",
    "--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5",
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a teacher, and labelled images enough to train on."""
    monkeypatch.chdir(tmp_path)
    kwargs = {"depths": [3, 3], "widths": [24, 32, 64], "classes": 4, "in_channels": 3}
    recipe = toy_recipe(size=SIZE).model_copy(update={"kwargs": kwargs})
    torch.save(module_from_recipe(recipe).state_dict(), tmp_path / "model.pt")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (320, SIZE, SIZE, 3), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", images=images, labels=np.arange(320) % 4)
    return tmp_path


def searched(*extra: str, out: str = "search") -> int:
    command = ["search", "model.pt", *ARCH, "--target", "jetson", "--evaluations", "12", "--proxy", "params+macs",
        "-o", out,
    ]  # fmt: skip
    return exit_code_of([*command, "--workers", "1", "-q", *extra])


def found(folder: Path, out: str = "search") -> SearchReport:
    return SearchReport.parse(json.loads((folder / out / "search.json").read_text()), "search.json")


def test_it_prints_the_front_the_pick_and_its_reason(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert searched("--data", "data.npz", "--picks", "2") == 0
    printed = capsys.readouterr().out
    report = found(folder)
    assert "predicted ms" in printed
    for rank, pick in enumerate(report.picks[:2], start=1):
        assert f"→ {rank}" in printed
        assert f"pick {rank}   {pick.text}" in printed
        assert pick.reason in printed


def test_recipes_of_the_picks_build(folder: Path) -> None:
    assert searched("--data", "data.npz", "--picks", "2") == 0
    for rank, pick in enumerate(found(folder).picks[:2], start=1):
        plain = json.loads((folder / "search" / f"student-{rank}.json").read_text())
        recipe = ModelRecipe.parse(plain, "student")
        assert recipe == pick.recipe
        assert module_from_recipe(recipe)(torch.zeros(1, 3, SIZE, SIZE)).shape == (1, 4)


def test_the_next_step_takes_the_search_from_the_store(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert searched("--data", "data.npz") == 0
    assert "edgekd run search/compress.yaml" in capsys.readouterr().out
    recipe, _ = read_recipe(folder / "search" / "compress.yaml")
    assert {"search", "pick", "student-distill"} <= {node.name for node in recipe.graph.nodes}
    for extra in ([], ["options.picks=3"]):
        assert exit_code_of(["run", "search/compress.yaml", *extra, "-o", "out", "--dry-run", "--format", "json"]) == 0
        plan = json.loads(capsys.readouterr().out)
        decisions = {decision["node"]: decision for decision in plan["decisions"]}
        assert decisions["search"]["action"] == "reuse", decisions["search"]["reasons"]


def test_without_data_students_are_scored_on_noise_and_that_is_said(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert searched("--proxy", "naswot") == 0
    printed = capsys.readouterr().out
    assert "scored on images of noise" in printed
    assert "--data FOLDER_OR_NPZ" in printed
    assert not (folder / "search" / "compress.yaml").exists()


def test_a_budget_that_no_student_keeps_ends_with_the_budget_that_admits_one(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert searched("--max-latency-ms", "0.000001") == 1
    printed = capsys.readouterr().out
    assert "the fastest one is predicted to take" in printed
    assert "admits one" in printed
    assert "It is the cheapest student: none keeps the limit." in printed
    assert not found(folder).within_limit


def test_json_is_the_report(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["search", "model.pt", *ARCH, "--target", "jetson", "--evaluations", "6", "--proxy", "params"]
    assert exit_code_of([*command, "--format", "json"]) == 0
    assert SearchReport.parse(json.loads(capsys.readouterr().out), "stdout") == found(folder)


def test_a_dry_run_writes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert searched("--dry-run") == 0
    assert "first time" in capsys.readouterr().out
    assert not (folder / "search" / "search.json").exists()


def test_fewer_students_than_picks_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert searched("--max-latency-ms", "0.000001", "--picks", "2") == 1
    assert "found no student 2 within the limit: this branch repeats student 1" in capsys.readouterr().out
    assert not (folder / "search" / "student-2.json").exists()


def test_an_earlier_search_is_replaced_and_a_foreign_file_is_not(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert searched("--picks", "2") == 0
    assert searched() == 0
    assert not (folder / "search" / "student-2.json").exists()
    (folder / "mine").mkdir()
    (folder / "mine" / "search.json").write_text('{"query": "cats"}')
    assert searched(out="mine") == 2
    assert "was not written by a search; it is left as it is" in capsys.readouterr().err
    assert (folder / "mine" / "search.json").read_text() == '{"query": "cats"}'


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("--space", "residul", "Did you mean 'residual'"),
        ("--searcher", "nsga3", "Did you mean 'nsga2'"),
        ("--proxy", "parms", "Did you mean 'params'"),
        ("--workers", "many", "a number of processes, or a Ray cluster; got 'many'"),
    ],
)
def test_wrong_values_are_answered_with_what_was_expected(
    folder: Path, capsys: pytest.CaptureFixture[str], flag: str, value: str, said: str
) -> None:
    assert searched(flag, value) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(("command", "missing"), [(["--target", "jetson"], "MODEL.PT"), (["model.pt"], "--target")])
def test_a_model_and_a_target_are_needed(capsys: pytest.CaptureFixture[str], command: list[str], missing: str) -> None:
    assert exit_code_of(["search", *command]) == 2
    assert missing in capsys.readouterr().err


def test_everything_that_can_be_asked_for_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(["search", "--list"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("residual", "evolution", "nsga2", "diswot", "loss-NAME"))
    assert exit_code_of(["search", "--list", "--format", "json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {entry["name"] for entry in listed["searcher"]} == {"evolution", "nsga2", "random", "exhaustive"}
    assert all(entry["what"] for kind in ("space", "searcher") for entry in listed[kind])
    (of_objectives,) = (entry for entry in listed["proxy"] if entry["name"] == "loss-NAME")
    assert of_objectives["formula"].endswith(", ".join(scoring_objectives()))
    assert "fitnet" not in of_objectives["formula"], "it trains a regressor"
