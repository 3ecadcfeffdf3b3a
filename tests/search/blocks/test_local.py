from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from edgekd.nn.build import module_from_bundle
from edgekd.search.blocks.activations import boundaries, logits_with, stage_inputs
from edgekd.search.blocks.chain import chains, find_blocks, stages
from edgekd.search.blocks.local import LocalTraining, answers, train_block_, train_together_
from edgekd.search.blocks.score import Judge, divergence, logits_of
from edgekd.testing.toys import toy_cnn
from tests.nn.zoo import images, randomised
from tests.search.blocks.nets import block
from tests.search.blocks.world import RECIPE, library, teacher_bundle

SHAPE = (3, 8, 8)


def maps(seed: int) -> torch.Tensor:
    return torch.rand(64, 8, 4, 4, generator=torch.Generator().manual_seed(seed))


def test_a_block_learns_what_a_run_does_and_the_error_is_relative() -> None:
    x = maps(0)
    target = 3 * torch.relu(x - x.mean())
    learner = block()
    first = train_block_(copy.deepcopy(learner), x, target, LocalTraining(epochs=1), seed=0)
    error = train_block_(learner, x, target, LocalTraining(epochs=40, batch_size=16), seed=0)
    assert error < 0.5 * first
    y, t = learner(x).detach().double(), target.double()
    assert error == pytest.approx(float((y - t).square().mean() / t.square().mean()), rel=1e-4)


def test_batch_norm_statistics_are_those_of_all_activations() -> None:
    x = 3 + 5 * maps(1)
    learner = nn.Sequential(nn.BatchNorm2d(8))
    train_block_(learner, x, x, LocalTraining(epochs=1, batch_size=8), seed=0)
    assert torch.allclose(learner[0].running_mean, x.mean((0, 2, 3)), atol=1e-4)


def test_equal_seeds_train_equally_and_others_do_not() -> None:
    start = block()
    blocks = [copy.deepcopy(start) for _ in range(3)]
    for learner, seed in zip(blocks, (0, 0, 1), strict=True):
        train_block_(learner, maps(0), maps(1), LocalTraining(epochs=1), seed=seed)
    first, again, other = (learner.conv1.weight for learner in blocks)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_divergence_is_that_of_the_two_distributions() -> None:
    t, s = images(4).flatten(1)[:, :5], images(4).flatten(1)[:, 5:10]
    p, q = t.double().softmax(1), s.double().softmax(1)
    assert divergence(t, s) == pytest.approx(float((p * (p / q).log()).sum(1).mean()))
    assert divergence(t, t) == 0


def test_the_teacher_goes_on_from_what_a_replacement_gives() -> None:
    teacher = randomised(toy_cnn())
    found = find_blocks(teacher, SHAPE)
    inputs = stage_inputs(teacher, found, images(5))
    for stage, first in zip(stages(found), inputs, strict=True):
        between = boundaries(teacher, found, stage, first)
        for index in stage:
            outputs = between[index + 1 - stage.start]
            logits = logits_with(teacher, found, chains(found)[0], index, outputs, images(5))
            assert torch.allclose(logits, logits_of(teacher, images(5)), atol=1e-5)
            part = teacher.get_submodule(found[index].path)
            assert torch.allclose(answers(part, between[index - stage.start]), outputs, atol=1e-5)


def test_a_joint_training_brings_a_network_closer_to_the_teacher() -> None:
    teacher, student = randomised(toy_cnn()), toy_cnn(seed=1)
    logits = logits_of(teacher, images(32))
    before = divergence(logits, logits_of(student, images(32)))
    train_together_(student, images(32), logits, LocalTraining(epochs=10, batch_size=8), seed=0)
    assert divergence(logits, logits_of(student, images(32))) < 0.5 * before


@pytest.mark.parametrize("lr", [2e-3, 1e3])
def test_settling_never_leads_away_from_the_teacher(tmp_path: Path, lr: float) -> None:
    report, _, ctx = library(tmp_path, families=[{"block": "identity", "longest": 1}])
    teacher = module_from_bundle(teacher_bundle(ctx), ctx.blobs)
    judge = Judge(teacher, report, RECIPE.preprocessing, ctx)
    student = copy.deepcopy(teacher)
    student.stages[0][1] = nn.Identity()
    before = judge.settled_(copy.deepcopy(student), None, seed=0)
    state = copy.deepcopy(student.state_dict())
    after = judge.settled_(student, LocalTraining(epochs=2, batch_size=8, lr=lr), seed=0)
    assert after <= before
    if lr > 1:
        assert after == before
        assert torch.equal(student.classifier.weight, state["classifier.weight"])
