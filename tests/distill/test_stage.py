"""The stage: what it gives back, what it refuses before any work."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.stage import Context
from edgekd.data.dataset import Dataset
from edgekd.distill.stage import DistillStage
from edgekd.errors import BuildFailed, UserError
from edgekd.nn.build import module_from_bundle
from edgekd.nn.save import bundle_from_module
from edgekd.tasks.classification import calibration_error, negative_log_likelihood
from edgekd.testing.harness import make_context, make_inputs, run_stage
from edgekd.testing.toy_data import toy_dataset
from edgekd.testing.toy_graphs import toy_onnx_bundle
from edgekd.testing.toys import toy_bundle
from edgekd.train.config import TrainConfig
from edgekd.train.evaluate_torch import module_accuracy, module_logits

DATA = toy_dataset(n=160)


def context(folder: Path, data: Dataset = DATA) -> Context:
    return make_context(folder, resources={"data": data})


def bundle(ctx: Context, seed: int, **options: int) -> ModelBundle:
    return toy_bundle(ctx.blobs, ctx.scratch, seed=seed, **options)


def stage(**options: object) -> DistillStage:
    return DistillStage(TrainConfig.parse({"epochs": 8, "batch_size": 32, "lr": 0.05, **options}, "test"))


def test_what_was_held_out_and_what_learning_on_it_cost_is_reported(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    inputs = make_inputs(student=bundle(ctx, 1), teacher=bundle(ctx, 2))
    result = run_stage(stage(objective="tgeo", epochs=1), inputs, ctx)
    assert 0 < float(str(result.metrics["outer_seconds"])) < float(str(result.metrics["seconds"]))
    assert any("tgeo held out 13 of 128 training images" in said for said in result.decisions)
    plain = run_stage(stage(epochs=1), inputs, ctx)
    assert "outer_seconds" not in plain.metrics


def test_a_student_is_trained_from_a_trained_teacher_and_measured(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    teacher = run_stage(stage(), make_inputs(student=bundle(ctx, 1)), ctx).bundle
    student = bundle(ctx, 2)
    ctx = context(tmp_path / "second")
    ctx = Context(**{**vars(ctx), "blobs": context(tmp_path).blobs})
    result = run_stage(stage(teacher_views=2), make_inputs(student=student, teacher=teacher), ctx)
    assert result.bundle.kind is BundleKind.TORCH
    assert result.bundle.recipe == student.recipe
    p = student.model.preprocessing
    accuracy = module_accuracy(module_from_bundle(result.bundle, ctx.blobs), DATA.select, p)
    assert result.metrics["accuracy_select"] == accuracy >= 0.75
    assert {"params_m", "macs_m", "size_mib", "seconds", "train_loss", "agreement_select"} <= set(result.metrics)
    assert result.decisions[0] == "Distilled with 0.1 * cross-entropy + 0.9 * kd."


def test_a_rerun_gives_the_same_content(tmp_path: Path) -> None:
    contents = set()
    for folder in ("a", "b"):
        ctx = context(tmp_path / folder)
        inputs = make_inputs(student=bundle(ctx, 1), teacher=bundle(ctx, 2))
        contents.add(run_stage(stage(epochs=2), inputs, ctx).bundle.content)
    assert len(contents) == 1


def test_without_labels_there_is_an_agreement_and_no_accuracy(tmp_path: Path) -> None:
    ctx = context(tmp_path, toy_dataset(n=160, labelled=False))
    result = run_stage(stage(epochs=2), make_inputs(student=bundle(ctx, 1), teacher=bundle(ctx, 2)), ctx)
    assert "accuracy_select" not in result.metrics
    assert 0 <= float(str(result.metrics["agreement_select"])) <= 1


def test_an_objective_that_needs_labels_is_refused_before_any_work(tmp_path: Path) -> None:
    ctx = context(tmp_path, toy_dataset(n=160, labelled=False))
    inputs = make_inputs(student=bundle(ctx, 1), teacher=bundle(ctx, 2))
    with pytest.raises(UserError, match="'kdpp' needs labels"):
        stage(objective="kdpp").requires(inputs, ctx)


def test_two_preprocessings_are_refused(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    inputs = make_inputs(student=bundle(ctx, 1), teacher=bundle(ctx, 2, size=16))
    with pytest.raises(
        UserError, match="must see the same pixels, but the student takes 3x8x8 and the teacher 3x16x16"
    ):
        stage().requires(inputs, ctx)


def renamed(model: ModelBundle, labels: tuple[str, ...]) -> ModelBundle:
    return model.model_copy(update={"recipe": model.model.model_copy(update={"labels": labels})})


def test_other_classes_are_refused_before_any_work(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    student, teacher = renamed(bundle(ctx, 1), ("a", "b", "c", "d")), renamed(bundle(ctx, 2), ("a", "b", "c", "e"))
    with pytest.raises(UserError, match="1 of the student's 4 are none of the teacher's 4, such as 'd'"):
        stage().requires(make_inputs(student=student, teacher=teacher), ctx)
    with pytest.raises(UserError, match="The student has 4 classes and the teacher 6"):
        stage().requires(make_inputs(student=student, teacher=bundle(ctx, 2, classes=6)), ctx)


def test_stored_answers_in_another_order_are_refused(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    student, teacher = renamed(bundle(ctx, 1), ("a", "b", "c", "d")), renamed(bundle(ctx, 2), ("d", "c", "b", "a"))
    answers = ModelBundle(kind=BundleKind.DATA, files={})
    with pytest.raises(UserError, match="stored answers are in the teacher's order"):
        stage().requires(make_inputs(student=student, teacher=teacher, answers=answers), ctx)


def test_a_teacher_that_lists_the_classes_in_another_order_teaches_the_same(tmp_path: Path) -> None:
    """The same teacher twice, once with its classifier's rows and names turned: the same student comes out."""
    ctx = context(tmp_path)
    teacher = run_stage(stage(), make_inputs(student=bundle(ctx, 1)), ctx).bundle
    order = [2, 0, 3, 1]
    module = module_from_bundle(teacher, ctx.blobs)
    (head,) = (part for part in module.modules() if isinstance(part, torch.nn.Linear))
    with torch.no_grad():
        head.weight.copy_(head.weight[order])
        head.bias.copy_(head.bias[order])
    names = ("a", "b", "c", "d")
    turned = bundle_from_module(
        module, recipe=teacher.model.model_copy(update={"labels": tuple(names[i] for i in order)}), blobs=ctx.blobs,
        scratch=tmp_path,
    )  # fmt: skip
    made = []
    for number, taught in enumerate((renamed(teacher, names), turned)):
        own = make_context(tmp_path / str(number), resources={"data": DATA})
        inputs = make_inputs(student=renamed(bundle(ctx, 2), names), teacher=taught)
        made.append(run_stage(stage(epochs=2), inputs, Context(**{**vars(own), "blobs": ctx.blobs})))
    plain, other = (module_from_bundle(result.bundle, ctx.blobs).state_dict() for result in made)
    for name, value in plain.items():
        torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-5)
    assert any("classes in another order" in said for said in made[1].decisions)
    assert made[1].metrics["agreement_select"] == made[0].metrics["agreement_select"]


def test_a_frozen_program_is_refused(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    whole = bundle(ctx, 1)
    recipe = whole.model.model_copy(update={"builder": "program", "kwargs": {"form": "frozen"}})
    with pytest.raises(UserError, match="frozen"):
        stage().requires(make_inputs(student=whole.model_copy(update={"recipe": recipe})), ctx)


def test_a_training_that_changes_nothing_is_a_failure(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    student = bundle(ctx, 1)
    result = run_stage(stage(epochs=1), make_inputs(student=student), ctx)
    unchanged = type(result)(bundle=student)
    with pytest.raises(BuildFailed, match="changed no weight"):
        stage().ensures(make_inputs(student=student), unchanged, ctx)


def test_a_teacher_is_trained_along_and_its_bundle_stays_as_it_was(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    teacher = run_stage(stage(), make_inputs(student=bundle(ctx, 1)), ctx).bundle
    before = module_from_bundle(teacher, ctx.blobs).state_dict()
    own = make_context(tmp_path / "own", resources={"data": DATA})
    ctx = Context(**{**vars(own), "blobs": ctx.blobs})
    inputs = make_inputs(student=bundle(ctx, 2), teacher=teacher)
    result = run_stage(stage(objective="bdkd-online", epochs=2), inputs, ctx)
    after = module_from_bundle(teacher, ctx.blobs).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    p = teacher.model.preprocessing
    known = module_accuracy(module_from_bundle(teacher, ctx.blobs), DATA.select, p)
    assert result.metrics["teacher_accuracy_select_before"] == known
    assert {"teacher_accuracy_select", "train_teacher_loss"} <= set(result.metrics)
    again = Context(**{**vars(make_context(tmp_path / "again", resources={"data": DATA})), "blobs": ctx.blobs})
    assert run_stage(stage(objective="bdkd-online", epochs=2), inputs, again).bundle.content == result.bundle.content


def test_the_students_probabilities_are_judged_on_the_select_split(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    result = run_stage(stage(epochs=2), make_inputs(student=bundle(ctx, 1)), ctx)
    network, p = module_from_bundle(result.bundle, ctx.blobs), result.bundle.model.preprocessing
    labels = DATA.select.labels
    assert labels is not None
    logits = module_logits(network, DATA.select, p)
    assert result.metrics["ece_select"] == calibration_error(logits, labels, bins=15)
    assert result.metrics["nll_select"] == negative_log_likelihood(logits, labels)


def test_a_teacher_without_weights_or_with_stored_answers_is_not_trained_along(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    student, teacher = bundle(ctx, 1), bundle(ctx, 2)
    frozen = teacher.model.model_copy(update={"builder": "program", "kwargs": {"form": "frozen"}})
    graph, still = toy_onnx_bundle(ctx.blobs, ctx.scratch), teacher.model_copy(update={"recipe": frozen})
    answers = ModelBundle(kind=BundleKind.DATA, files={}, tags={})
    online = stage(objective="bdkd-online")
    refused = (
        (make_inputs(student=student, teacher=graph), "but the teacher is an ONNX graph"),
        (make_inputs(student=student, teacher=still), "but the teacher is a frozen program"),
        (make_inputs(student=student, teacher=teacher, answers=answers), "but there are stored answers"),
        (make_inputs(student=student, answers=answers), "but there are stored answers"),
        (make_inputs(student=student, teacher=teacher, teachers=[("more", teacher)]), "and there are 2 teachers"),
    )
    for inputs, message in refused:
        with pytest.raises(UserError, match=f"'bdkd-online' trains the teacher along,? {message}") as caught:
            online.requires(inputs, ctx)
        assert "bdkd" in str(caught.value.hint)
