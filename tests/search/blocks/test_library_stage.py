from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import edgekd.search.blocks.library as library_module
from edgekd.core.report_io import REPORT_FILE
from edgekd.data.calibration import calibration_samples
from edgekd.data.dataset import Dataset
from edgekd.errors import UserError
from edgekd.nn.build import module_from_bundle, module_from_recipe
from edgekd.search.blocks.library import Deadline
from edgekd.search.blocks.library_stage import BlockLibraryConfig, BlockLibraryStage
from edgekd.search.blocks.report import BLOCKS_FILE, load_states
from edgekd.testing.harness import make_inputs
from tests.search.blocks.world import RECIPE, context, library, teacher_bundle

OWN = {"families": [{"block": "own", "shortest": 2}, {"block": "identity", "longest": 1}]}


def test_scores_are_the_divergence_that_one_replacement_brings_into_the_whole_network(tmp_path: Path) -> None:
    report, result, ctx = library(tmp_path)
    teacher = module_from_bundle(teacher_bundle(ctx), ctx.blobs)
    states = load_states(ctx.path(result.bundle, BLOCKS_FILE))
    data = ctx.resource("data", Dataset)
    samples = calibration_samples(data, RECIPE.preprocessing, samples=report.images + report.held_out, seed=0)
    images = torch.from_numpy(samples.images[report.images :])
    assert len(images) == report.held_out == 16
    kinds = {one.replacement.block: one for one in report.scored}
    assert set(kinds) == {"own", "identity", "basic", "repvgg"}
    for one in kinds.values():
        recipe = RECIPE
        for edit in one.replacement.edits(report.blocks):
            recipe = recipe.with_edit(edit)
        changed = module_from_recipe(recipe)
        # What was not replaced keeps its weights; what was trained is in the library.
        place = report.blocks[one.replacement.first].path
        kept = {name: value for name, value in teacher.state_dict().items() if not name.startswith(f"{place}.")}
        changed.load_state_dict(kept, strict=False)
        if one.replacement.trained:
            changed.get_submodule(place).load_state_dict(states[one.replacement.key])
        with torch.no_grad():
            p, q = (module.double()(images.double()).softmax(1) for module in (teacher, changed))
        teacher.float()
        assert one.kl == pytest.approx(float((p * (p / q).log()).sum(1).mean()), rel=1e-3, abs=1e-7)


def test_a_block_that_learned_the_work_of_a_run_does_it_better_than_before(tmp_path: Path) -> None:
    brief, _, _ = library(tmp_path / "a", **OWN)
    longer, _, _ = library(tmp_path / "b", **OWN, training={"epochs": 20, "batch_size": 16})
    errors = [[one.error for one in report.scored if one.error is not None] for report in (brief, longer)]
    assert len(errors[0]) == len(errors[1]) > 3
    assert sum(errors[1]) < sum(errors[0])
    identities = [one for one in brief.scored if one.replacement.block == "identity"]
    assert identities
    assert all(one.error is None and one.kl > 0 for one in identities)


def test_a_killed_library_ends_as_the_uninterrupted_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, whole, ctx = library(tmp_path / "whole", **OWN)
    trained = sum(one is not None for one in load_states(ctx.path(whole.bundle, BLOCKS_FILE)))
    original, calls = library_module.train_block_, 0

    def dies_at_the_fourth(*arguments: Any) -> float:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(library_module, "train_block_", dies_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        library(tmp_path / "killed", **OWN)
    _, resumed, _ = library(tmp_path / "killed", **OWN)
    assert resumed.bundle.content == whole.bundle.content
    assert calls == trained + 1


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    report, _, ctx = library(tmp_path, **OWN)
    steps = [event for event in ctx.reporter.events if event.get("task") == library_module.TASK]  # type: ignore[attr-defined]
    assert steps[-1]["done"] == steps[-1]["total"] == len(report.scored)


def test_every_stage_gets_its_share_of_the_time() -> None:
    now = 0.0
    deadline = Deadline(30.0, 3, clock=lambda: now)
    shares = []
    for used in (10.0, 2.0, 18.0):
        deadline.next_part()
        assert not deadline.passed
        now += used
        shares.append(deadline.passed)
    assert shares == [True, False, True]


def test_after_the_limit_of_time_what_is_finished_is_used_and_the_rest_is_named(tmp_path: Path) -> None:
    report, result, _ = library(tmp_path, time_limit_s=1e-6)
    assert not report.scored
    assert set(report.skipped.values()) == {"the limit of time was reached"}
    assert any("left out: the limit of time was reached" in line for line in result.decisions)


def test_a_replacement_whose_training_diverges_is_left_out_with_the_reason(tmp_path: Path) -> None:
    families = [{"block": "conv"}]
    report, result, _ = library(tmp_path, families=families, training={"epochs": 2, "batch_size": 16, "lr": 1e38})
    assert not report.scored
    assert any("its training diverged" in line for line in result.decisions)


def test_fewer_images_are_used_where_memory_or_data_end_and_that_is_said(tmp_path: Path) -> None:
    report, result, _ = library(tmp_path, **OWN, images=4000, held_out=1000)
    assert (report.images, report.held_out) == (39, 9)
    assert any("Used 48 of 5000 training images, for the data has no more." in line for line in result.decisions)


def test_too_few_images_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekd.search.blocks.library_stage.bytes_per_image", lambda blocks: 2**17)
    with pytest.raises(UserError, match="memory for the activations of 8") as caught:
        library(tmp_path, memory_mib=1)
    assert "raise memory_mib" in str(caught.value)


def test_a_frozen_program_is_refused(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    frozen = RECIPE.model_copy(update={"builder": "program", "kwargs": {"form": "frozen"}})
    bundle = teacher_bundle(ctx).model_copy(update={"recipe": frozen})
    with pytest.raises(UserError, match="could not be rebuilt into layers"):
        BlockLibraryStage(BlockLibraryConfig()).requires(make_inputs(teacher=bundle), ctx)


def test_a_library_is_a_report_with_weights_beside_it(tmp_path: Path) -> None:
    report, result, ctx = library(tmp_path, **OWN)
    assert set(result.bundle.files) == {REPORT_FILE, BLOCKS_FILE}
    states = load_states(ctx.path(result.bundle, BLOCKS_FILE))
    assert set(states) == {one.replacement.key for one in report.scored if one.replacement.trained}
