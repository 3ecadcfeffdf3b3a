from __future__ import annotations

from pathlib import Path

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
from edgekd.train.answers import answers_from_bundle, answers_spec
from edgekd.train.config import TrainConfig

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
    stored = answers_from_bundle(answers, answers_spec(CONFIG, p, dataset, ctx.seed), ctx.blobs).read(1, ids)
    images = augmented(dataset.train.images(ids, p), ids, 1, p, AUGMENT, ctx.seed)
    with torch.inference_mode():
        expected = module_from_bundle(teacher, ctx.blobs)(torch.from_numpy(images))
    assert torch.allclose(next(iter(stored.values())), expected, atol=1e-5)


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


def test_an_interrupted_teach_stage_goes_on_where_it_stopped(
    taught: tuple[Context, Dataset, ModelBundle, ModelBundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, dataset, _, answers = taught
    own = make_context(tmp_path, resources={"data": dataset})
    copy = toy_bundle(own.blobs, own.scratch, seed=1)
    engine = run_stage(ExportStage(ExportConfig()), make_inputs(model=copy), own).bundle
    stage = TeachStage(TeachConfig(views=2, augment=AUGMENT, batch=16))
    asked: list[int] = []
    answer = TeachStage._answer

    def failing(self: TeachStage, session, model, data, rows, view, seed):  # type: ignore[no-untyped-def]
        asked.append(view)
        if len(asked) == 6:
            raise KeyboardInterrupt
        return answer(self, session, model, data, rows, view, seed)

    monkeypatch.setattr(TeachStage, "_answer", failing)
    with pytest.raises(KeyboardInterrupt):
        stage.run(make_inputs(teacher=engine), own)
    result = stage.run(make_inputs(teacher=engine), own)
    assert result.bundle.files == answers.files
