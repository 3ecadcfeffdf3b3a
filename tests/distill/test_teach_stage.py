from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgekd.core.bundle import ModelBundle
from edgekd.core.stage import Context
from edgekd.data.augment import Augment, augmented
from edgekd.data.dataset import Dataset
from edgekd.distill.stage import DistillStage
from edgekd.distill.teach_stage import TeachConfig, TeachStage
from edgekd.errors import UserError
from edgekd.export.stage import ExportConfig, ExportStage
from edgekd.nn.build import module_from_bundle
from edgekd.testing.harness import make_context, make_inputs, run_stage
from edgekd.testing.toy_data import toy_dataset
from edgekd.testing.toys import toy_bundle
from edgekd.train.answers import answers_from_bundle, answers_spec, teacher_digest
from edgekd.train.config import TrainConfig
from edgekd.train.signal import Signal

AUGMENT = Augment(pad_px=1, flip=True)
CONFIG = TrainConfig(epochs=3, batch_size=16, lr=0.05, objective="kd", teacher_views=2, augment=AUGMENT)


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> tuple[Context, Dataset, ModelBundle, ModelBundle]:
    """Context, data, the teacher and its answers on two views."""
    dataset = toy_dataset()
    ctx = make_context(tmp_path_factory.mktemp("teach"), resources={"data": dataset})
    teacher = toy_bundle(ctx.blobs, ctx.scratch, seed=1)
    engine = run_stage(ExportStage(ExportConfig()), make_inputs(model=teacher), ctx).bundle
    stage = TeachStage(TeachConfig(views=2, augment=AUGMENT, batch=16))
    return ctx, dataset, teacher, run_stage(stage, make_inputs(teacher=engine), ctx).bundle


def test_the_answers_are_the_teachers_logits_on_the_very_pixels_of_a_view(
    taught: tuple[Context, Dataset, ModelBundle, ModelBundle],
) -> None:
    ctx, dataset, teacher, answers = taught
    p = teacher.model.preprocessing
    ids = np.array([5, 0, 17])
    stored = answers_from_bundle(answers, answers_spec(CONFIG, p, dataset, ctx.seed, teacher), ctx.blobs).read(1, ids)
    images = augmented(dataset.train.images(ids, p), ids, 1, p, AUGMENT, ctx.seed)
    with torch.inference_mode():
        expected = module_from_bundle(teacher, ctx.blobs)(torch.from_numpy(images))
    assert torch.allclose(next(iter(stored.values())), expected, atol=1e-5)


def test_what_is_inside_of_a_network_is_stored_as_it_is_tapped_and_trains_like_a_live_teacher(
    taught: tuple[Context, Dataset, ModelBundle, ModelBundle], tmp_path: Path
) -> None:
    ctx, dataset, teacher, _ = taught
    config = TeachConfig(views=2, augment=AUGMENT, batch=16, signals=(Signal.STAGES, Signal.FEATURE_MAP))
    result = run_stage(TeachStage(config), make_inputs(teacher=teacher), Context(**{**vars(ctx), "scratch": tmp_path}))
    assert sorted(result.bundle.files) == ["feature_map.npy", "logits.npy", "stages.0.npy", "stages.1.npy"]
    answers = answers_from_bundle(
        result.bundle, answers_spec(CONFIG, teacher.model.preprocessing, dataset, 0, teacher), ctx.blobs
    )
    assert not answers.lacks(frozenset({Signal.LOGITS, Signal.STAGES, Signal.CLASSIFIER}))
    assert answers.lacks(frozenset({Signal.EMBEDDING})) == ("embedding",)
    asked = CONFIG.model_copy(update={"objective": "at"})
    trained = []
    for name, extra in (("live", {}), ("stored", {"answers": result.bundle})):
        folder = tmp_path / name
        folder.mkdir()
        own = Context(**{**vars(ctx), "scratch": folder})
        inputs = make_inputs(student=toy_bundle(ctx.blobs, ctx.scratch, seed=2), teacher=teacher, **extra)
        made = run_stage(DistillStage(asked), inputs, own)
        trained.append(module_from_bundle(made.bundle, ctx.blobs).state_dict())
        assert bool(list(folder.glob("teacher-*"))) == (name == "live")
    assert all(torch.allclose(trained[0][name], trained[1][name], atol=1e-3) for name in trained[0])


def test_views_beyond_the_capacity_are_left_to_a_live_teacher_and_that_is_said(
    taught: tuple[Context, Dataset, ModelBundle, ModelBundle], tmp_path: Path
) -> None:
    ctx, dataset, teacher, _ = taught
    one_view_mib = len(dataset.train) * 4 * 4 / 2**20
    for capacity, views in ((1.5 * one_view_mib, 1), (0.5 * one_view_mib, 0)):
        config = TeachConfig(views=2, augment=AUGMENT, batch=16, capacity_mib=capacity)
        own = Context(**{**vars(ctx), "scratch": tmp_path / str(views)})
        own.scratch.mkdir()
        result = run_stage(TeachStage(config), make_inputs(teacher=teacher), own)
        assert result.metrics["views"] == views
        assert result.decisions[0].startswith(f"Of 2 views, {views} fit into")
        student = toy_bundle(ctx.blobs, ctx.scratch, seed=2)
        inputs = make_inputs(student=student, teacher=teacher, answers=result.bundle)
        trained = run_stage(DistillStage(CONFIG), inputs, own)
        assert trained.bundle.content != student.content
        said = "Of 2 views, 1 are stored" if views else "None of the teacher's answers is stored"
        assert trained.decisions[1].startswith(said)
        assert not list(own.scratch.glob("teacher-*")), "what did not fit there does not fit here either"
        with pytest.raises(UserError, match=f"asks the teacher about 2 views, of which {views} are stored"):
            run_stage(DistillStage(CONFIG), make_inputs(student=student, answers=result.bundle), own)


def test_stored_answers_that_lack_what_an_objective_reads_are_not_used_and_that_is_said(
    taught: tuple[Context, Dataset, ModelBundle, ModelBundle], tmp_path: Path
) -> None:
    ctx, _, teacher, answers = taught
    own = Context(**{**vars(ctx), "scratch": tmp_path})
    asked = CONFIG.model_copy(update={"objective": "at", "epochs": 1})
    inputs = make_inputs(student=toy_bundle(ctx.blobs, ctx.scratch, seed=2), teacher=teacher, answers=answers)
    said = run_stage(DistillStage(asked), inputs, own).decisions
    assert said[1] == (
        "The teacher's stored answers are not used, for they lack what the objectives read, its feature_map: it is "
        "asked in the training."
    )


def test_inner_signals_that_are_stored_are_refused_without_the_teacher_for_what_they_are(
    taught: tuple[Context, Dataset, ModelBundle, ModelBundle], tmp_path: Path
) -> None:
    ctx, _, teacher, _ = taught
    config = TeachConfig(views=2, augment=AUGMENT, batch=16, signals=(Signal.EMBEDDING,))
    own = Context(**{**vars(ctx), "scratch": tmp_path})
    kept = run_stage(TeachStage(config), make_inputs(teacher=teacher), own).bundle
    inputs = make_inputs(student=toy_bundle(ctx.blobs, ctx.scratch, seed=2), answers=kept)
    with pytest.raises(UserError, match=r"only stored answers: inner signals(.|\n)*connect the teacher too"):
        run_stage(DistillStage(CONFIG.model_copy(update={"objective": "crd"})), inputs, own)


def test_answers_that_are_guesses_are_said_where_they_are_stored(
    taught: tuple[Context, Dataset, ModelBundle, ModelBundle], tmp_path: Path
) -> None:
    ctx, dataset, teacher, _ = taught
    config = TeachConfig(views=1, batch=16)
    own, bare = (Context(**{**vars(ctx), "scratch": tmp_path / name}) for name in ("labels", "none"))
    own.scratch.mkdir()
    bare.scratch.mkdir()
    result = run_stage(TeachStage(config), make_inputs(teacher=teacher), own)
    assert "of 48 images, and chance is 25 %" in result.decisions[-1]  # the teacher was never trained
    assert len(dataset.train) == 48
    unlabelled = Context(**{**vars(bare), "resources": {"data": toy_dataset(labelled=False)}})
    assert run_stage(TeachStage(config), make_inputs(teacher=teacher), unlabelled).decisions == ()


def test_an_onnx_graph_is_not_asked_for_its_inside(
    taught: tuple[Context, Dataset, ModelBundle, ModelBundle],
) -> None:
    ctx, _, teacher, _ = taught
    engine = run_stage(ExportStage(ExportConfig()), make_inputs(model=teacher), ctx).bundle
    with pytest.raises(UserError, match="gives logits only, and stages shall be stored"):
        run_stage(TeachStage(TeachConfig(signals=(Signal.STAGES,))), make_inputs(teacher=engine), ctx)
    with pytest.raises(UserError, match="labels cannot be stored image by image"):
        TeachConfig.parse({"signals": ["labels"]}, "test")


def test_training_on_stored_answers_gives_what_a_live_teacher_gives(
    taught: tuple[Context, Dataset, ModelBundle, ModelBundle], tmp_path: Path
) -> None:
    ctx, _, teacher, answers = taught
    student = toy_bundle(ctx.blobs, ctx.scratch, seed=2)
    trained = []
    for name, extra in (("live", {}), ("stored", {"answers": answers})):
        folder = tmp_path / name
        folder.mkdir()
        own = Context(
            scratch=folder, seed=ctx.seed, reporter=ctx.reporter, blobs=ctx.blobs, resources=ctx.resources,
            execution=ctx.execution,
        )  # fmt: skip
        result = run_stage(DistillStage(CONFIG), make_inputs(student=student, teacher=teacher, **extra), own)
        trained.append(module_from_bundle(result.bundle, ctx.blobs).state_dict())
    assert all(torch.allclose(trained[0][name], trained[1][name], atol=1e-3) for name in trained[0])


def test_answers_on_other_pixels_are_refused(taught: tuple[Context, Dataset, ModelBundle, ModelBundle]) -> None:
    ctx, _, teacher, answers = taught
    student = toy_bundle(ctx.blobs, ctx.scratch, seed=2)
    other = CONFIG.model_copy(update={"augment": Augment(pad_px=2)})
    with pytest.raises(UserError, match="augment differ"):
        run_stage(DistillStage(other), make_inputs(student=student, teacher=teacher, answers=answers), ctx)


def test_answers_of_another_teacher_are_refused(taught: tuple[Context, Dataset, ModelBundle, ModelBundle]) -> None:
    ctx, _, teacher, answers = taught
    student, other = (toy_bundle(ctx.blobs, ctx.scratch, seed=seed) for seed in (2, 3))
    inputs = make_inputs(student=student, teacher=other, answers=answers)
    with pytest.raises(UserError, match=rf"another teacher \({teacher.content}\) than the connected"):
        run_stage(DistillStage(CONFIG), inputs, ctx)
    assert teacher_digest(teacher) == teacher.content


def test_an_interrupted_teach_stage_goes_on_where_it_stopped(
    taught: tuple[Context, Dataset, ModelBundle, ModelBundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, dataset, _, answers = taught
    own = make_context(tmp_path, resources={"data": dataset})
    copy = toy_bundle(own.blobs, own.scratch, seed=1)
    engine = run_stage(ExportStage(ExportConfig()), make_inputs(model=copy), own).bundle
    stage = TeachStage(TeachConfig(views=2, augment=AUGMENT, batch=16))
    asked: list[int] = []

    def failing(*args: Any) -> Any:
        asked.append(args[2])
        if len(asked) == 6:
            raise KeyboardInterrupt
        return augmented(*args)

    monkeypatch.setattr("edgekd.distill.teach_stage.augmented", failing)
    with pytest.raises(KeyboardInterrupt):
        stage.run(make_inputs(teacher=engine), own)
    result = stage.run(make_inputs(teacher=engine), own)
    assert result.bundle.files == answers.files
