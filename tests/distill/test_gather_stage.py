"""Choosing from images without labels, and training on what was chosen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from edgekd.core.bundle import ModelBundle
from edgekd.core.digest import digest
from edgekd.core.stage import Context
from edgekd.data.augment import Augment
from edgekd.data.dataset import UNLABELLED, ArrayImages, Dataset, Split
from edgekd.distill.gather_stage import GatherConfig, GatherStage
from edgekd.distill.stage import DistillStage
from edgekd.distill.teach_stage import TeachConfig, TeachStage
from edgekd.errors import UserError
from edgekd.nn.build import module_from_bundle
from edgekd.nn.save import bundle_from_module
from edgekd.testing.harness import make_context, make_inputs, run_stage
from edgekd.testing.toy_data import toy_dataset
from edgekd.testing.toys import toy_bundle, toy_recipe
from edgekd.train.config import TrainConfig
from edgekd.train.evaluate_torch import module_accuracy, module_logits
from edgekd.train.pool import CLASSES, ROWS, training_data

OF_THE_TASK = 120
P = toy_recipe().preprocessing


def pool_of(dataset: Dataset, *, of_the_task: int = OF_THE_TASK, noise: int = 80) -> Dataset:
    """The data beside a pool: images of the task that it does not have, then pure noise."""
    task = toy_dataset(n=160, seed=5)
    split = task.train
    own = split.images(np.arange(min(of_the_task, len(split))), P)
    rng = np.random.default_rng(0)
    pixels = np.concatenate([own, rng.integers(0, 256, (noise, 8, 8, 3), dtype=np.uint8)])
    pool = Split(ArrayImages(pixels), np.arange(len(pixels)), None)
    return dataset.with_pool(pool, digest("test", pixels.tobytes()), "a pool stands beside the data")


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> tuple[Context, ModelBundle, ModelBundle]:
    """Context with data and pool, a teacher that knows the task, and what it gathers."""
    folder = tmp_path_factory.mktemp("gather")
    whole = make_context(folder / "teacher", resources={"data": toy_dataset(n=160, seed=5)})
    teacher = run_stage(
        DistillStage(TrainConfig(epochs=12, batch_size=16, lr=0.05, objective=None)),
        make_inputs(student=toy_bundle(whole.blobs, whole.scratch, seed=7)),
        whole,
    ).bundle
    ctx = make_context(folder / "run", resources={"data": pool_of(toy_dataset(n=40))})
    moved = bundle_from_module(
        module_from_bundle(teacher, whole.blobs), recipe=teacher.model, blobs=ctx.blobs, scratch=ctx.scratch
    )
    return ctx, moved, run_stage(GatherStage(GatherConfig(per_class=None)), make_inputs(teacher=moved), ctx).bundle


def test_images_of_the_task_are_gathered_and_noise_is_left(taught: tuple[Context, ModelBundle, ModelBundle]) -> None:
    ctx, teacher, _ = taught
    result = run_stage(GatherStage(GatherConfig(per_class=None)), make_inputs(teacher=teacher), ctx)
    rows = np.load(ctx.path(result.bundle, ROWS))
    assert (rows < OF_THE_TASK).mean() > 0.9, "of the pool it is 60 %"
    assert len(rows) > 0.4 * OF_THE_TASK
    assert result.metrics["gathered"] == len(rows)
    assert 0.5 < float(str(result.metrics["pool_shift"])) < 1
    clean = make_context(ctx.scratch / "clean", resources={"data": pool_of(toy_dataset(n=40), noise=0)})
    copied = bundle_from_module(
        module_from_bundle(teacher, ctx.blobs), recipe=teacher.model, blobs=clean.blobs, scratch=clean.scratch
    )
    alike = run_stage(GatherStage(GatherConfig()), make_inputs(teacher=copied), clean)
    assert float(str(alike.metrics["pool_shift"])) < float(str(result.metrics["pool_shift"]))


def test_the_choice_is_what_the_teachers_probabilities_say(
    taught: tuple[Context, ModelBundle, ModelBundle], tmp_path: Path
) -> None:
    ctx, teacher, gathered = taught
    data = ctx.resource("data", Dataset)
    assert data.pool is not None
    module = module_from_bundle(teacher, ctx.blobs)
    known, found = (
        torch.from_numpy(module_logits(module, split, P)).double().softmax(1).numpy()
        for split in (data.select, data.pool)
    )
    threshold = np.quantile(known.max(1), 0.1)
    expected = np.flatnonzero(found.max(1) >= threshold)
    assert np.load(ctx.path(gathered, ROWS)).tolist() == expected.tolist()
    assert np.load(ctx.path(gathered, CLASSES)).tolist() == found[expected].argmax(1).tolist()
    few = run_stage(GatherStage(GatherConfig(per_class=0.5)), make_inputs(teacher=teacher), ctx).bundle
    most = round(0.5 * len(data.train) / 4)
    assert np.bincount(np.load(ctx.path(few, CLASSES))).max() == most


def test_a_training_sees_the_gathered_images_and_is_judged_on_the_same_ones_as_without(
    taught: tuple[Context, ModelBundle, ModelBundle], tmp_path: Path
) -> None:
    ctx, teacher, gathered = taught
    data = ctx.resource("data", Dataset)
    joined = training_data(make_inputs(pool=gathered), ctx)
    rows = np.load(ctx.path(gathered, ROWS))
    assert len(joined.train) == len(data.train) + len(rows)
    assert joined.select is data.select
    assert joined.digest != data.digest
    assert joined.own_digest == data.own_digest == toy_dataset(n=40).digest
    assert joined.train.labels is not None
    assert data.pool is not None
    last = np.array([len(data.train), 0, len(joined.train) - 1])
    ends = data.pool.images(rows[[0, -1]], P)
    expected = np.stack([ends[0], data.train.images([0], P)[0], ends[1]])
    np.testing.assert_array_equal(joined.train.images(last, P), expected)

    config = TrainConfig(epochs=8, batch_size=16, lr=0.05, teacher_views=2, augment=Augment(flip=True))
    answers = run_stage(
        TeachStage(TeachConfig(views=2, augment=Augment(flip=True))), make_inputs(teacher=teacher, pool=gathered), ctx
    )
    assert answers.metrics["samples"] == len(joined.train)
    found = {}
    for name, more in (("alone", {}), ("with", {"pool": gathered, "answers": answers.bundle})):
        own = replace(ctx, scratch=tmp_path / name)
        own.scratch.mkdir()
        student = toy_bundle(ctx.blobs, own.scratch, seed=2)
        trained = run_stage(DistillStage(config), make_inputs(student=student, teacher=teacher, **more), own)
        module = module_from_bundle(trained.bundle, ctx.blobs)
        found[name] = module_accuracy(module, toy_dataset(n=160, seed=9).train, P)
    assert found["with"] > found["alone"] + 0.1, "32 images of its own are few"


def test_gathered_images_may_stay_without_a_label_and_teach_by_the_teachers_answers(
    taught: tuple[Context, ModelBundle, ModelBundle], tmp_path: Path
) -> None:
    ctx, teacher, named = taught
    data = ctx.resource("data", Dataset)
    config = GatherConfig(labels="none", sure_as=0.0, per_class=None)
    result = run_stage(GatherStage(config), make_inputs(teacher=teacher), ctx)
    assert set(result.bundle.files) == {ROWS}
    assert result.decisions[-1].startswith("They stay without a label")
    joined = training_data(make_inputs(pool=result.bundle), ctx)
    assert data.train.labels is not None
    assert joined.train.labels is not None
    added = len(np.load(ctx.path(result.bundle, ROWS)))
    assert joined.train.labels.tolist() == [*data.train.labels.tolist(), *[UNLABELLED] * added]
    assert joined.digest not in {data.digest, training_data(make_inputs(pool=named), ctx).digest}

    own = replace(ctx, scratch=tmp_path)
    answers = run_stage(
        TeachStage(TeachConfig(views=2, augment=Augment())), make_inputs(teacher=teacher, pool=result.bundle), own
    ).bundle
    student = toy_bundle(ctx.blobs, own.scratch, seed=2)
    inputs = make_inputs(student=student, teacher=teacher, pool=result.bundle, answers=answers)
    options = TrainConfig(epochs=4, batch_size=16, lr=0.05, teacher_views=2, objective="dho")
    trained = run_stage(DistillStage(options), inputs, own)
    assert trained.bundle.recipe == student.recipe
    concluded = trained.metrics["concluded_dho"]
    assert isinstance(concluded, dict)
    assert concluded["fold_images"] == len(joined.train)
    assert {"alpha", "beta", "fold_agreement_select", "accuracy_select_mixture"} <= set(concluded)
    module = module_from_bundle(trained.bundle, ctx.blobs)
    kept = concluded[f"accuracy_select_{concluded['kept']}"]
    assert module_accuracy(module, data.select, P) == trained.metrics["accuracy_select"] == pytest.approx(kept)
    with pytest.raises(UserError, match="'dkd' needs the label of every image"):
        DistillStage(TrainConfig(epochs=1, objective="dkd")).requires(inputs, own)


def test_answers_on_the_data_alone_do_not_fit_a_training_with_gathered_images(
    taught: tuple[Context, ModelBundle, ModelBundle], tmp_path: Path
) -> None:
    ctx, teacher, gathered = taught
    own = replace(ctx, scratch=tmp_path)
    answers = run_stage(TeachStage(TeachConfig(views=1)), make_inputs(teacher=teacher), own).bundle
    student = toy_bundle(ctx.blobs, ctx.scratch, seed=2)
    inputs = make_inputs(student=student, teacher=teacher, pool=gathered, answers=answers)
    with pytest.raises(UserError, match="data differ"):
        run_stage(DistillStage(TrainConfig(epochs=1, batch_size=16, teacher_views=1)), inputs, own)


def test_without_a_pool_or_without_anything_that_the_teacher_knows_nothing_is_gathered(
    taught: tuple[Context, ModelBundle, ModelBundle], tmp_path: Path
) -> None:
    ctx, teacher, gathered = taught
    bare = replace(ctx, resources={"data": toy_dataset(n=40)})
    with pytest.raises(UserError, match="has no pool"):
        run_stage(GatherStage(GatherConfig()), make_inputs(teacher=teacher), bare)
    with pytest.raises(UserError, match="were gathered from other data"):
        training_data(make_inputs(pool=gathered), bare)
    with pytest.raises(UserError, match="takes what a `gather` node makes"):
        training_data(make_inputs(pool=teacher), ctx)
    foreign = replace(ctx, resources={"data": pool_of(toy_dataset(n=40), of_the_task=0, noise=4)})
    with pytest.raises(UserError, match="of none: they show nothing of this task"):
        run_stage(GatherStage(GatherConfig(sure_as=1.0)), make_inputs(teacher=teacher), foreign)


def renamed(model: ModelBundle, labels: str) -> ModelBundle:
    return model.model_copy(update={"recipe": model.model.model_copy(update={"labels": tuple(labels)})})


def test_a_teacher_in_another_order_gives_the_images_the_numbers_of_the_data(
    taught: tuple[Context, ModelBundle, ModelBundle],
) -> None:
    """The teacher's first logit is the data's last class, and so on."""
    ctx, teacher, _ = taught
    data = ctx.resource("data", Dataset)
    named = Context(**{**vars(ctx), "resources": {"data": replace(data, classes=tuple("abcd"))}})
    stage = GatherStage(GatherConfig(per_class=None))
    numbers = []
    for labels in ("abcd", "dcba"):
        inputs = make_inputs(teacher=renamed(teacher, labels))
        stage.requires(inputs, named)
        bundle = stage.run(inputs, named).bundle
        numbers.append(np.load(ctx.blobs.path(bundle.file(CLASSES))))
    assert np.array_equal(numbers[1], 3 - numbers[0])
    with pytest.raises(UserError, match="The data and the teacher name other classes"):
        stage.requires(make_inputs(teacher=renamed(teacher, "abce")), named)
