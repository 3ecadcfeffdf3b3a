"""From a search's report to a network: which one, with which weights, and what happens when there are too few."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from edgekd.nn.build import module_from_bundle
from edgekd.nn.count import count_macs
from edgekd.search.pick_stage import PickConfig, PickStage
from edgekd.search.spaces.residual import ResidualSpace
from edgekd.testing.harness import make_inputs, run_stage
from tests.search.test_stage import search, teacher_bundle


def test_the_picked_student_is_built_with_weights_from_the_seed(tmp_path: Path) -> None:
    report, result, ctx, _ = search(tmp_path)
    first, again = (run_stage(PickStage(PickConfig()), make_inputs(search=result.bundle), ctx) for _ in range(2))
    assert first.bundle.content == again.bundle.content
    assert first.bundle.model == report.picks[0].recipe
    module = module_from_bundle(first.bundle, ctx.blobs)
    assert module(torch.zeros(1, 3, 8, 8)).shape == (1, 4)
    assert first.metrics["macs_m"] == pytest.approx(count_macs(module, (3, 8, 8)) / 1e6)
    assert report.picks[0].reason in first.decisions[0]


def test_a_rank_beyond_the_picks_repeats_the_last_one_and_says_so(tmp_path: Path) -> None:
    _, result, ctx, _ = search(tmp_path, picks=2)
    inputs = make_inputs(search=result.bundle)
    last, beyond = (run_stage(PickStage(PickConfig(rank=rank)), inputs, ctx) for rank in (1, 3))
    assert beyond.bundle.content == last.bundle.content
    assert "found no student 4 within the limit: this branch repeats student 2" in beyond.decisions[0]
    assert not any("repeats" in line for line in last.decisions)


def test_the_space_may_take_weights_over_from_the_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, result, ctx, _ = search(tmp_path)

    def initialise(
        cls: type[ResidualSpace], module: nn.Module, teacher: nn.Module, input_shape: tuple[int, int, int]
    ) -> tuple[str, ...]:
        assert input_shape == (3, 8, 8)
        with torch.no_grad():
            next(module.parameters()).fill_(float(next(teacher.parameters()).flatten()[0]))
        return ("Filled.",)

    monkeypatch.setattr(ResidualSpace, "initialise_", classmethod(initialise))
    inputs = make_inputs(search=result.bundle, teacher=teacher_bundle(ctx))
    picked = run_stage(PickStage(PickConfig()), inputs, ctx)
    assert "Filled." in picked.decisions
    teacher = module_from_bundle(teacher_bundle(ctx), ctx.blobs)
    student = module_from_bundle(picked.bundle, ctx.blobs)
    assert (next(student.parameters()) == next(teacher.parameters()).flatten()[0]).all()
