"""Learned levels: golden values, gradients against finite differences, and the stage."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from edgekd.core.bundle import ModelBundle
from edgekd.core.stage import Context, StageResult
from edgekd.data.dataset import UNLABELLED
from edgekd.errors import UserError
from edgekd.nn.build import WEIGHTS_FILE, module_from_bundle
from edgekd.quant import dq_stage
from edgekd.quant.bucket import bucketed, decode
from edgekd.quant.codes import CODES_FILE, read_codes
from edgekd.quant.differentiable_quantization import (
    LearnedLevels,
    chosen_layers,
    first_points,
    freeze_levels_,
    gradient_norms,
    learn_levels_,
    looked_up,
    nearest,
    shared_points,
)
from edgekd.quant.dq_stage import DifferentiableQuantizeConfig, DifferentiableQuantizeStage
from edgekd.testing.harness import make_context, make_inputs, run_stage
from edgekd.testing.toy_data import toy_dataset
from edgekd.testing.toys import toy_bundle, toy_cnn

VALUES = torch.tensor([-1, -0.2, 0.1, 0.4, 2, 1, 0.3, 0.9, -0.6, 0.05], dtype=torch.float64)
COUNTS = {"stages.0.0.conv1": 4, "stages.1.0.conv2": 5}


def levels_of(seed: int, *shape: int, count: int = 4, bucket_size: int = 16) -> LearnedLevels:
    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return LearnedLevels(weight, count, bucket_size, "quantile")


def test_levels_assignment_and_gradient_have_their_golden_values() -> None:
    levels = LearnedLevels(VALUES, 4, 4, "quantile")
    assert levels.points.tolist() == pytest.approx([0, 0.352941, 0.785714, 1], abs=1e-6)
    points = levels.points.detach().requires_grad_()
    codes = nearest(levels.shares, points.detach())
    assert codes.reshape(-1)[:10].tolist() == [0, 2, 2, 3, 3, 1, 0, 1, 0, 3]
    made = looked_up(points, codes, levels.scale, levels.offset).reshape(-1)[:10]
    (made * torch.arange(1, 11, dtype=torch.float64) / 10).sum().backward()
    assert points.grad is not None
    assert points.grad.tolist() == pytest.approx([1.915, 2.38, 0.70, 2.06])


def test_points_shared_by_gradients_have_their_golden_values() -> None:
    assert shared_points([0.5, 0.3, 0.2], [16, 16, 16]) == (20, 15, 13)


@given(st.lists(st.tuples(st.floats(0, 1e3), st.integers(4, 16)), min_size=1, max_size=8))
def test_sharing_keeps_the_number_of_points_and_two_for_each(pairs: list[tuple[float, int]]) -> None:
    norms, counts = [norm for norm, _ in pairs], [count for _, count in pairs]
    shared = shared_points(norms, counts)
    assert sum(shared) == sum(counts)
    assert all(2 <= count // 2 <= got for got, count in zip(shared, counts, strict=True))


def test_no_tensor_gets_more_points_than_a_byte_can_number() -> None:
    assert max(shared_points([1.0, 0.0, 0.0], [256, 256, 256])) == 256


def test_gradients_of_levels_agree_with_finite_differences() -> None:
    levels = levels_of(0, 6, 4, 3, 3)
    target = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def loss() -> Tensor:
        return (levels(torch.empty(0)) - target).pow(2).sum()

    loss().backward()
    grad = levels.scaled_points.grad
    assert grad is not None
    for index in range(4):
        with torch.no_grad():
            # No weight lies so near to a border that this changes its code.
            was, before = levels.scaled_points[index].clone(), loss()
            levels.scaled_points[index] += 1e-8
            slope = float(loss() - before) / 1e-8
            levels.scaled_points[index] = was
        assert float(grad[index]) == pytest.approx(slope, rel=1e-4)


def test_a_step_moves_weights_by_the_learning_rate_times_their_mean_gradient() -> None:
    weight = torch.rand(64, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    levels = LearnedLevels(weight, 4, 256, "uniform")
    before = levels(torch.empty(0)).detach()
    levels(torch.empty(0)).sum().backward()  # a gradient of 1 for every weight
    grad = levels.scaled_points.grad
    assert grad is not None
    with torch.no_grad():
        levels.scaled_points -= 0.001 * grad
        # The median: a weight at the border of two levels takes the other one and jumps by their distance.
        moved = (before - levels(torch.empty(0))).median() / 0.001
    assert 0.5 < float(moved) < 2


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), count=st.integers(2, 17), scale=st.floats(1e-3, 1e3))
def test_levels_are_sorted_after_any_step_and_codes_are_the_nearest(seed: int, count: int, scale: float) -> None:
    levels = levels_of(seed, 5, 11, count=count)
    with torch.no_grad():
        levels.scaled_points += scale * torch.randn(count, generator=torch.Generator().manual_seed(seed))
    q = levels.quantized()
    assert q.levels is not None
    assert (q.levels.diff() > 0).all()
    distances = (levels.shares[..., None] - q.levels).abs()
    chosen = distances.gather(-1, q.codes.long()[..., None])[..., 0]
    assert (chosen <= distances.amin(-1) + 1e-12).all()
    torch.testing.assert_close(decode(q), levels(torch.empty(0)).detach())


def test_a_weight_of_equal_values_stays_what_it_is() -> None:
    weight = torch.full((3, 4), 0.25)
    levels = LearnedLevels(weight, 4, 8, "quantile")
    assert torch.equal(levels(weight), weight)
    assert torch.equal(decode(levels.quantized()), weight)


def test_uniform_levels_are_evenly_spaced() -> None:
    values, scale, offset = bucketed(VALUES, 4)
    assert first_points((values - offset) / scale, 5, "uniform").tolist() == [0, 0.25, 0.5, 0.75, 1]


def test_only_levels_train_and_freezing_gives_an_ordinary_network_with_the_same_answers() -> None:
    network = toy_cnn()
    names = set(network.state_dict())
    learned = learn_levels_(network, COUNTS, bucket_size=64, init="quantile")
    trainable = [name for name, p in network.named_parameters() if p.requires_grad]
    assert len(trainable) == len(COUNTS)
    assert all(name.endswith("scaled_points") for name in trainable)
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = network(images).detach()
    coded = freeze_levels_(network, learned)
    assert set(network.state_dict()) == names
    torch.testing.assert_close(network(images).detach(), expected)
    for path in COUNTS:
        weight = network.get_submodule(path).weight
        assert isinstance(weight, nn.Parameter)
        assert weight.requires_grad
        assert torch.equal(weight, decode(coded[f"{path}.weight"]))
        assert len(coded[f"{path}.weight"].codes.unique()) <= COUNTS[path]


def test_the_norm_is_that_of_the_mean_gradient_and_the_network_is_left_alone() -> None:
    network = toy_cnn()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    images = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(8) % 4
    (norm,) = gradient_norms(network, ["stages.0.0.conv1"], [(images[:4], labels[:4]), (images[4:], labels[4:])])
    F.cross_entropy(network(images), labels).backward()
    weight = network.get_submodule("stages.0.0.conv1").weight
    assert isinstance(weight, nn.Parameter)
    assert weight.grad is not None
    assert norm / 2 == pytest.approx(float(weight.grad.norm()), rel=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_excluding_a_layer_that_does_not_exist_or_all_of_them_is_an_error() -> None:
    with pytest.raises(UserError, match="Did you mean 'classifier'"):
        chosen_layers(toy_cnn(), ("clasifier",))
    with pytest.raises(UserError, match="Nothing is left to quantize"):
        chosen_layers(toy_cnn(), chosen_layers(toy_cnn(), ()))


def test_training_levels_brings_the_network_nearer_to_its_own_full_precision() -> None:
    network, images = toy_cnn(), torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = network(images).detach()
    learn_levels_(network, dict.fromkeys(chosen_layers(network, ()), 4), bucket_size=64, init="quantile")
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=1.0, momentum=0.9)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = F.mse_loss(network(images), expected)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]


# ---- the stage


def leveled(
    folder: Path, *, labelled: bool = True, taught: bool = False, **options: object
) -> tuple[StageResult, ModelBundle, Context]:
    ctx = make_context(folder, resources={"data": toy_dataset(n=160, labelled=labelled)})
    student = toy_bundle(ctx.blobs, ctx.scratch, seed=1)
    config = DifferentiableQuantizeConfig.parse({"epochs": 3, "batch_size": 32, "bucket_size": 64, **options}, "test")
    ports = {"student": student} | ({"teacher": toy_bundle(ctx.blobs, ctx.scratch, seed=2)} if taught else {})
    return run_stage(DifferentiableQuantizeStage(config), make_inputs(**ports), ctx), student, ctx


@pytest.mark.parametrize("bits", [2, 3])
def test_the_stages_weights_have_few_levels_and_its_codes_are_the_same_numbers(tmp_path: Path, bits: int) -> None:
    result, student, ctx = leveled(tmp_path, bits=bits)
    state, before = (load_file(ctx.path(bundle, WEIGHTS_FILE)) for bundle in (result.bundle, student))
    packed, coded = read_codes(ctx.path(result.bundle, CODES_FILE))
    assert all(torch.equal(state[name], packed[name]) for name in state)
    assert max(q.bits for q in coded.values()) == bits
    assert max(len(group.unique()) for group in state["stages.0.0.conv1.weight"].reshape(-1, 64)) <= 2**bits
    assert torch.equal(state["classifier.weight"], before["classifier.weight"])
    assert not torch.equal(state["stages.0.0.bn1.running_mean"], before["stages.0.0.bn1.running_mean"])
    assert torch.equal(state["stages.0.0.bn1.weight"], before["stages.0.0.bn1.weight"])
    assert result.bundle.tags == {"weights_bits": bits, "weights_granularity": "levels"}
    assert f"{2**bits} learned levels each; stem.0, classifier stayed float32" in result.decisions[-1]
    sizes = [float(str(result.metrics[f"size_mib{suffix}"])) for suffix in ("_huffman", "_packed", "")]
    assert sizes == sorted(sizes)


def test_a_rerun_gives_the_same_content(tmp_path: Path) -> None:
    assert leveled(tmp_path / "a")[0].bundle.content == leveled(tmp_path / "b")[0].bundle.content


def test_sensitive_layers_get_more_levels_with_and_without_labels(tmp_path: Path) -> None:
    for labelled in (True, False):
        result, _, ctx = leveled(tmp_path / str(labelled), labelled=labelled, redistribute=True, epochs=1)
        _, coded = read_codes(ctx.path(result.bundle, CODES_FILE))
        assert len({q.steps for q in coded.values()}) > 1
        assert " to " in result.decisions[-1]


def test_sensitivity_is_measured_on_all_classes_of_data_that_is_stored_class_by_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def recorded(student: nn.Module, paths: tuple[str, ...], batches: Iterator[tuple[Tensor, Tensor]]) -> list[float]:
        kept = list(batches)
        seen.extend(label for _, labels in kept for label in labels.tolist())
        return gradient_norms(student, paths, iter(kept))

    monkeypatch.setattr(dq_stage, "gradient_norms", recorded)
    data = toy_dataset(n=160)
    assert data.train.labels is not None
    data = replace(data, train=data.train.subset(np.argsort(data.train.labels, kind="stable")))
    ctx = make_context(tmp_path, resources={"data": data})
    student = toy_bundle(ctx.blobs, ctx.scratch, seed=1)
    config = DifferentiableQuantizeConfig(epochs=1, batch_size=8, bucket_size=64, redistribute=True)
    run_stage(DifferentiableQuantizeStage(config), make_inputs(student=student), ctx)
    assert len(seen) == dq_stage.GRADIENT_BATCHES * 8 < len(data.train)
    assert set(seen) == {0, 1, 2, 3}


def test_an_image_without_a_label_counts_with_the_students_own_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []

    def recorded(student: nn.Module, paths: tuple[str, ...], batches: Iterator[tuple[Tensor, Tensor]]) -> list[float]:
        kept = list(batches)
        for images, labels in kept:
            with torch.no_grad():
                seen.extend(zip(labels.tolist(), student(images).argmax(1).tolist(), strict=True))
        return gradient_norms(student, paths, iter(kept))

    monkeypatch.setattr(dq_stage, "gradient_norms", recorded)
    data = toy_dataset(n=160)
    assert data.train.labels is not None
    given = np.where(np.arange(len(data.train)) % 2, UNLABELLED, data.train.labels)
    ctx = make_context(tmp_path, resources={"data": replace(data, train=data.train.labelled(given))})
    student = toy_bundle(ctx.blobs, ctx.scratch, seed=1)
    config = DifferentiableQuantizeConfig(epochs=1, batch_size=16, bucket_size=64, redistribute=True)
    run_stage(DifferentiableQuantizeStage(config), make_inputs(student=student), ctx)
    assert all(0 <= label < 4 for label, _ in seen)
    assert sum(label == answer for label, answer in seen) >= len(seen) * 0.4
    assert any(label != answer for label, answer in seen), "labels that are known stay"


def test_nothing_that_leaves_the_levels_may_come_later() -> None:
    assert {"prune", "distill", "quantized-distill", "sparse-distill"} <= DifferentiableQuantizeStage.never_before


def test_another_network_can_teach(tmp_path: Path) -> None:
    alone, taught = leveled(tmp_path / "a", epochs=1)[0], leveled(tmp_path / "b", epochs=1, taught=True)[0]
    assert alone.metrics["train_distill_loss"] != taught.metrics["train_distill_loss"]


def test_stored_logits_teach_alone_where_there_are_some(tmp_path: Path) -> None:
    ctx = make_context(tmp_path)
    student, answers = toy_bundle(ctx.blobs, ctx.scratch, seed=0), toy_bundle(ctx.blobs, ctx.scratch, seed=1)
    alone, taught = make_inputs(student=student), make_inputs(student=student, answers=answers)
    assert dq_stage._with_teacher(alone).one("teacher") == student
    assert dq_stage._with_teacher(taught).maybe("teacher") is None


def test_the_result_is_an_ordinary_bundle(tmp_path: Path) -> None:
    result, _, ctx = leveled(tmp_path, epochs=1)
    assert module_from_bundle(result.bundle, ctx.blobs)(torch.zeros(1, 3, 8, 8)).shape == (1, 4)
