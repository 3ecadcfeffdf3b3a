"""Teachers that are only a file, and several teachers, through the stages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from edgekd.core.bundle import ModelBundle
from edgekd.core.events import RecordingReporter
from edgekd.core.graph import Graph
from edgekd.core.runner import Runner, RunSettings
from edgekd.core.stage import Context
from edgekd.core.store import LocalStore
from edgekd.data.augment import Augment, augmented
from edgekd.data.dataset import Dataset
from edgekd.distill.stage import DistillStage
from edgekd.distill.teacher_file_stage import OnnxTeacherConfig, OnnxTeacherStage, StoredLogitsConfig, StoredLogitsStage
from edgekd.errors import UserError
from edgekd.nn.build import module_from_bundle
from edgekd.nn.onnx import onnx_from_module
from edgekd.pipeline.stages import STAGES
from edgekd.runtimes.session import open_bundle
from edgekd.testing.harness import make_context, make_inputs, run_stage
from edgekd.testing.toy_data import toy_dataset
from edgekd.testing.toys import toy_bundle, toy_cnn, toy_recipe
from edgekd.train.answers import pixels_digest
from edgekd.train.config import TrainConfig
from edgekd.train.evaluate_torch import module_logits

P = toy_recipe().preprocessing
DATA = toy_dataset(n=80)
PLAIN = {"epochs": 2, "batch_size": 16, "lr": 0.05, "teacher_views": 1}


def context(folder: Path, data: Dataset = DATA) -> Context:
    return make_context(folder, resources={"data": data})


def trained(ctx: Context, folder: Path, options: dict[str, object] | None = None, **ports: ModelBundle) -> torch.Tensor:
    """The classifier's weight of a student after a training in a scratch folder of its own."""
    folder.mkdir()
    own = Context(**{**vars(ctx), "scratch": folder})
    stage = DistillStage(TrainConfig.parse({**PLAIN, **(options or {})}, "test"))
    inputs = make_inputs(student=toy_bundle(ctx.blobs, ctx.scratch, seed=2), **ports)
    result = run_stage(stage, inputs, own)
    return module_from_bundle(result.bundle, ctx.blobs).state_dict()["classifier.weight"]


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The teacher of seed 1 as an ONNX file."""
    path = tmp_path_factory.mktemp("graph") / "teacher.onnx"
    onnx_from_module(toy_cnn(seed=1), P.input_shape, path)
    return path


def stored(ctx: Context, path: Path, **options: object) -> ModelBundle:
    config = StoredLogitsConfig(path=str(path), preprocessing=P, **options)
    return run_stage(StoredLogitsStage(config), make_inputs(), ctx).bundle


def test_a_student_learns_the_same_from_a_network_its_graph_and_its_stored_logits(tmp_path: Path, graph: Path) -> None:
    ctx = context(tmp_path)
    network = toy_bundle(ctx.blobs, ctx.scratch, seed=1)
    expected = trained(ctx, tmp_path / "network", teacher=network)
    exported = run_stage(
        OnnxTeacherStage(OnnxTeacherConfig(path=str(graph), preprocessing=P)), make_inputs(), ctx
    ).bundle
    torch.testing.assert_close(trained(ctx, tmp_path / "onnx", teacher=exported), expected, rtol=1e-3, atol=1e-4)
    path = tmp_path / "logits.npz"
    np.savez(path, logits=module_logits(toy_cnn(seed=1), DATA.train, P), data=DATA.digest)
    answers = stored(ctx, path)
    torch.testing.assert_close(trained(ctx, tmp_path / "stored", answers=answers), expected, rtol=1e-3, atol=1e-4)


def test_further_teachers_change_what_is_learnt_and_are_said(tmp_path: Path, graph: Path) -> None:
    ctx = context(tmp_path)
    first, second = (toy_bundle(ctx.blobs, ctx.scratch, seed=seed) for seed in (1, 3))
    alone = trained(ctx, tmp_path / "alone", teacher=first)
    assert not torch.equal(trained(ctx, tmp_path / "both", teacher=first, teachers=second), alone)
    inputs = make_inputs(student=toy_bundle(ctx.blobs, ctx.scratch, seed=2), teacher=first, teachers=second)
    result = run_stage(DistillStage(TrainConfig.parse({**PLAIN, "epochs": 1}, "test")), inputs, ctx)
    assert result.decisions[-1] == "The student learns from 2 teachers: the mean of their probabilities."


def test_a_graph_or_stored_logits_are_refused_to_objectives_that_look_inside(tmp_path: Path, graph: Path) -> None:
    ctx = context(tmp_path)
    exported = run_stage(
        OnnxTeacherStage(OnnxTeacherConfig(path=str(graph), preprocessing=P)), make_inputs(), ctx
    ).bundle
    with pytest.raises(UserError, match="'at' reads the teacher's feature_map, but the teacher is an ONNX graph"):
        trained(ctx, tmp_path / "onnx", {"objective": "at"}, teacher=exported)
    path = tmp_path / "logits.npy"
    np.save(path, np.zeros((64, 4), dtype=np.float32))
    answers = stored(ctx, path, data=DATA.digest)
    with pytest.raises(UserError, match="but there are only stored answers"):
        trained(ctx, tmp_path / "stored", {"objective": "at"}, answers=answers)


def test_stored_logits_of_plain_images_are_refused_to_augmented_ones(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    path = tmp_path / "logits.npy"
    np.save(path, np.zeros((64, 4), dtype=np.float32))
    answers = stored(ctx, path, data=DATA.digest)
    with pytest.raises(UserError, match="augment differ"):
        trained(ctx, tmp_path / "a", {"augment": {"flip": True}}, answers=answers)
    with pytest.raises(UserError, match="teacher_views is 0"):
        trained(ctx, tmp_path / "b", {"augment": {"flip": True}, "teacher_views": 0}, answers=answers)
    np.save(path, np.zeros((64, 3), dtype=np.float32))
    fewer = stored(ctx, path, data=DATA.digest)
    with pytest.raises(UserError, match="4 classes and the teacher 3"):
        trained(ctx, tmp_path / "c", answers=fewer)


@pytest.mark.parametrize(
    ("array", "options", "message"),
    [
        (
            np.zeros((64, 4), np.float32),
            {},
            r"does not say which data(.|\n)*numpy.savez\(path, logits=..., data='[0-9a-f]{64}",
        ),
        (np.zeros((64, 4), np.float32), {"data": "sha256:0"}, r"belong to other data \(sha256:0\)"),
        (np.zeros((63, 4), np.float32), {"data": DATA.digest}, "logits of 63 images, but the training split .* has 64"),
        (np.zeros((2, 64, 4), np.float32), {"data": DATA.digest}, "has 2 views, but augment says"),
        (np.zeros((64, 4), np.int64), {"data": DATA.digest}, "expected floating-point logits"),
        (np.full((64, 4), np.nan), {"data": DATA.digest}, "values that are not finite"),
    ],
)
def test_logits_that_do_not_belong_to_the_data_are_refused(
    tmp_path: Path, array: np.ndarray, options: dict[str, str], message: str
) -> None:
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(UserError, match=message):
        stored(context(tmp_path), tmp_path / "x.npy", **options)


VIEWS: dict[str, object] = {
    "logits": np.zeros((2, 64, 4), np.float32),
    "data": DATA.digest,
    "preprocessing": pixels_digest(P),
    "augment": Augment(flip=True).model_dump_json(),
    "seed": 0,
}


def test_several_views_teach_where_the_file_says_that_they_are_of_the_pixels_that_the_training_shows(
    tmp_path: Path,
) -> None:
    ctx, augment, network = context(tmp_path), Augment(flip=True), toy_cnn(seed=1)
    ids = np.arange(len(DATA.train))
    canvases = DATA.train.images(ids, P)
    with torch.no_grad():
        views = [torch.from_numpy(augmented(canvases, ids, view, P, augment, 0)) for view in range(2)]
        logits = np.stack([network(images).numpy() for images in views])
    np.savez(tmp_path / "views.npz", **VIEWS | {"logits": logits})
    options = {"augment": augment.plain(), "teacher_views": 2}
    expected = trained(ctx, tmp_path / "live", options, teacher=toy_bundle(ctx.blobs, ctx.scratch, seed=1))
    answers = stored(ctx, tmp_path / "views.npz", augment=augment)
    torch.testing.assert_close(trained(ctx, tmp_path / "a", options, answers=answers), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": None}, r"has 2 views and does not say of which pixels: it lacks seed\."),
        ({"augment": None, "preprocessing": None}, r"it lacks preprocessing, augment\."),
        ({"seed": 1}, r"of other pixels than this run shows: seed 1\.(.|\n)*numpy\.savez(.|\n)*seed='0'"),
        ({"augment": Augment(pad_px=1).model_dump_json()}, r"than this run shows: augment .*pad_px"),
        ({"preprocessing": pixels_digest(P.model_copy(update={"size": (9, 9)}))}, "this run shows: preprocessing "),
        ({"augment": "flip"}, "augment is no JSON: 'flip'"),
        ({"augment": '{"flp": true}'}, "Did you mean 'flip'"),
    ],
)
def test_several_views_that_are_not_known_to_be_of_the_pixels_of_the_run_are_refused(
    tmp_path: Path, changed: dict[str, object], message: str
) -> None:
    fields = {name: value for name, value in (VIEWS | changed).items() if value is not None}
    np.savez(tmp_path / "views.npz", **fields)
    with pytest.raises(UserError, match=message):
        stored(context(tmp_path), tmp_path / "views.npz", augment=Augment(flip=True))


@pytest.mark.parametrize(("augment", "fits"), [(Augment(), True), (Augment(flip=True), False)])
def test_what_a_file_says_of_a_single_view_must_hold_too(tmp_path: Path, augment: Augment, fits: bool) -> None:
    told = VIEWS | {"logits": VIEWS["logits"][:1], "augment": augment.model_dump_json(), "seed": 7}
    np.savez(tmp_path / "view.npz", **told)
    if fits:
        stored(context(tmp_path), tmp_path / "view.npz")
        return
    with pytest.raises(UserError, match="of other pixels than this run shows: augment"):
        stored(context(tmp_path), tmp_path / "view.npz")


def test_several_views_without_any_word_on_their_pixels_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "views.npy", VIEWS["logits"])
    with pytest.raises(UserError, match="it lacks preprocessing, augment, seed"):
        stored(context(tmp_path), tmp_path / "views.npy", augment=Augment(flip=True), data=DATA.digest)


def test_a_file_without_logits_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", probabilities=np.zeros(3))
    with pytest.raises(UserError, match="has no array 'logits'"):
        stored(context(tmp_path), tmp_path / "x.npz")
    (tmp_path / "y.npy").write_text("text")
    with pytest.raises(UserError, match="cannot be read as NumPy arrays"):
        stored(context(tmp_path), tmp_path / "y.npy")
    with pytest.raises(UserError, match="No such file"):
        stored(context(tmp_path), tmp_path / "z.npy")


@pytest.mark.parametrize("name", ["empty.npy", "cut.npz"])
def test_a_damaged_file_is_refused(tmp_path: Path, name: str) -> None:
    np.savez(tmp_path / "whole.npz", logits=np.zeros((64, 4), np.float32), data=DATA.digest)
    content = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / name).write_bytes(b"" if name == "empty.npy" else content[: len(content) // 2])
    with pytest.raises(UserError, match=f"{name} cannot be read as NumPy arrays"):
        stored(context(tmp_path), tmp_path / name)


def test_a_graph_with_its_weights_in_a_second_file_is_kept_whole(tmp_path: Path, graph: Path) -> None:
    ctx, path = context(tmp_path), tmp_path / "split.onnx"
    onnx.save(onnx.load(graph), path, save_as_external_data=True, location="split.data", size_threshold=0)
    stage = OnnxTeacherStage(OnnxTeacherConfig(path=str(path), preprocessing=P))
    bundle = run_stage(stage, make_inputs(), ctx).bundle
    (tmp_path / "split.data").rename(tmp_path / "gone.data")
    images = np.zeros((2, *P.input_shape), np.float32)
    with open_bundle(bundle, ctx.blobs, "onnxruntime") as session:
        (logits,) = session.infer({session.input_names[0]: images}).values()
    with torch.no_grad():
        expected = toy_cnn(seed=1).eval()(torch.from_numpy(images))
    torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=1e-3, atol=1e-4)
    with pytest.raises(UserError, match=r"split\.onnx is not a readable ONNX file(.|\n)*split\.data"):
        run_stage(stage, make_inputs(), ctx)


def test_a_graph_of_another_input_is_refused(tmp_path: Path, graph: Path) -> None:
    other = P.model_copy(update={"size": (9, 9)})
    stage = OnnxTeacherStage(OnnxTeacherConfig(path=str(graph), preprocessing=other))
    with pytest.raises(UserError, match=r"expected one input of images \(N, 3, 9, 9\) with an open batch"):
        run_stage(stage, make_inputs(), context(tmp_path))


def test_a_recipe_distils_from_files_and_trains_again_only_when_a_file_changed(tmp_path: Path, graph: Path) -> None:
    store = LocalStore(tmp_path / "store")
    student = toy_bundle(store.blobs, tmp_path, seed=2)
    path = tmp_path / "logits.npy"
    np.save(path, module_logits(toy_cnn(seed=3), DATA.train, P))
    exported = {"path": str(graph), "preprocessing": P.plain()}
    logits = {"path": str(path), "preprocessing": P.plain(), "data": DATA.digest}
    terms = [{"name": "kd", "weight": 1}, {"name": "dist", "weight": 1, "until_epoch": 1}]
    recipe = Graph.parse(
        {
            "inputs": {"start": "torch"},
            "nodes": [
                {"name": "graph", "stage": "onnx-teacher", "config": exported},
                {"name": "logits", "stage": "stored-logits", "config": logits},
                {"name": "a", "stage": "distill", "config": {**PLAIN, "objectives": terms},
                 "inputs": {"student": "@start", "teacher": "graph"}},
                {"name": "b", "stage": "distill", "config": PLAIN,
                 "inputs": {"student": "@start", "answers": "logits"}},
            ],
        },
        "test",
    )  # fmt: skip

    def run() -> dict[str, object]:
        settings = RunSettings(resources={"data": DATA}, reporter=RecordingReporter())
        report = Runner(STAGES, store).run(recipe, {"start": student}, settings)
        return {name: report.bundle(name).content for name in ("a", "b")}

    first = run()
    assert len({student.content, *first.values()}) == 3
    assert run() == first
    np.save(path, module_logits(toy_cnn(seed=4), DATA.train, P))
    again = run()
    assert again["a"] == first["a"]
    assert again["b"] != first["b"]
