"""`edgekd distill`, `prune`, `quantize` and `export`: each takes what the one before wrote."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edgekd.cli.app import exit_code_of
from edgekd.cli.verb import nested
from edgekd.core.bundle import BundleKind
from edgekd.core.events import SilentReporter
from edgekd.core.recipe import ModelRecipe
from edgekd.core.store import LocalStore
from edgekd.data.sources import load_dataset
from edgekd.export.convert import CONVERTERS
from edgekd.export.package import read_package
from edgekd.nn.build import module_from_bundle, module_from_recipe
from edgekd.nn.count import count_macs
from edgekd.pipeline.prepare import prepare
from edgekd.pipeline.request import ModelSource, Request
from edgekd.quant.limit import Limit
from edgekd.runtimes.session import Availability
from edgekd.testing.conformance_session import need_runtime
from edgekd.testing.toy_data import toy_dataset
from edgekd.testing.toys import toy_recipe

SIZE = 8
KWARGS = {"depths": [1, 1], "widths": [16, 16, 32], "classes": 4, "in_channels": 3}
ARCH = [
    "--arch", "edgekd:residual", "--arch-arg", "depths=[1, 1]", "--arch-arg", "widths=[16, 16, 32]",
    "--arch-arg", "classes=4", "--arch-arg", "in_channels=3", "--input-shape", f"3x{SIZE}x{SIZE}",
    "--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5",
]  # fmt: skip
TEACHER = [
    "--teacher", "model.pt", "--teacher-arch", "edgekd:residual", "--teacher-arch-arg", "depths=[1, 1]",
    "--teacher-arch-arg", "widths=[16, 16, 32]", "--teacher-arch-arg", "classes=4", "--teacher-arch-arg",
    "in_channels=3",
]  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher's state dict, an architecture of a search, labelled images, and a pruned package."""
    folder = tmp_path_factory.mktemp("verbs")
    recipe = toy_recipe(size=SIZE).model_copy(update={"kwargs": KWARGS})
    torch.save(module_from_recipe(recipe).state_dict(), folder / "model.pt")
    small = recipe.model_copy(update={"kwargs": KWARGS | {"widths": [8, 8, 16]}})
    (folder / "student-1.json").write_text(json.dumps(small.plain()))
    data, p = toy_dataset(n=240, size=SIZE), recipe.preprocessing
    rows = np.arange(len(data.train))
    assert data.train.labels is not None
    np.savez(folder / "data.npz", images=data.train.images(rows, p), labels=data.train.labels)
    more = toy_dataset(n=50, size=SIZE, seed=3).train
    np.savez(folder / "more.npz", images=more.images(np.arange(len(more)), p))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert exit_code_of(["prune", "model.pt", *ARCH, "--keep", "0.6", "channel_multiple=4", "-q"]) == 0
    return folder


@pytest.fixture
def here(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the world to work in."""
    shutil.copytree(world, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def macs_of(package: Path) -> int:
    bundle, files = read_package(package)
    return count_macs(module_from_bundle(bundle, files), bundle.model.preprocessing.input_shape)


def test_a_pruned_package_rebuilds_and_is_smaller_than_the_model(world: Path) -> None:
    whole = module_from_recipe(toy_recipe(size=SIZE).model_copy(update={"kwargs": KWARGS}))
    assert macs_of(world / "pruned") <= 0.6 * count_macs(whole, (3, SIZE, SIZE))


def test_a_package_keeps_the_metrics_and_the_request_of_its_verb(world: Path) -> None:
    found = json.loads((world / "pruned" / "metrics.json").read_text())
    assert found["stages"]["prune"]["macs_kept"] <= 0.6
    assert found["request"]["verb"] == "prune"
    assert "metrics.json" in json.loads((world / "pruned" / "manifest.json").read_text())["files"]


def test_a_pruned_package_recovers_with_its_shape(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = exit_code_of(
        ["distill", "pruned", *TEACHER, "--data", "data.npz", "--epochs", "1", "--batch-size", "32", "-o", "recovered"]
    )
    assert code == 0
    assert macs_of(here / "recovered") == macs_of(here / "pruned")
    assert "accuracy_select" in capsys.readouterr().out
    before, after = (read_package(here / name)[0].file("weights.safetensors") for name in ("pruned", "recovered"))
    assert before != after


def test_a_searched_architecture_is_trained_from_random_weights(here: Path) -> None:
    fields = ["augment.flip=false", "teacher_views=1", "--epochs", "1", "--batch-size", "32"]
    assert exit_code_of(["distill", "student-1.json", *TEACHER, "--data", "data.npz", *fields, "-q"]) == 0
    request = json.loads((here / "distilled" / "metrics.json").read_text())["request"]
    assert request["config"] == {"augment": {"flip": False}, "teacher_views": 1}
    recipe = ModelRecipe.parse(json.loads((here / "student-1.json").read_text()), "student")
    assert read_package(here / "distilled")[0].model.kwargs == recipe.kwargs


def test_the_order_of_a_package_s_classes_is_the_one_that_counts(here: Path) -> None:
    arrays = dict(np.load(here / "data.npz"))
    names = np.array(["a", "b", "c", "d"])
    np.savez(here / "named.npz", **arrays, classes=names)
    (here / "order.txt").write_text("d\nc\nb\na\n")
    assert (
        exit_code_of(["prune", "model.pt", *ARCH, "--labels", "order.txt", "--keep", "0.6", "-q", "-o", "turned"]) == 0
    )
    request = Request(model=ModelSource(path=str(here / "turned")), target="host", data=str(here / "named.npz"))
    situation = prepare(request, LocalStore(here / "store"), SilentReporter())
    assert situation.dataset is not None
    assert situation.dataset.classes == situation.teacher.model.labels == ("d", "c", "b", "a")


def test_models_without_names_take_those_of_the_data(here: Path) -> None:
    np.savez(here / "named.npz", **dict(np.load(here / "data.npz")), classes=np.array(["a", "b", "c", "d"]))
    quantize = ["quantize", "pruned", "--data", "named.npz", "--scheme", "ort-u8s8", "--calib-samples", "8", "-q"]
    assert exit_code_of(quantize) == 0
    assert (here / "quantized" / "labels.txt").read_text().split() == ["a", "b", "c", "d"]


def test_a_graph_and_a_network_teach_together_with_two_objectives(here: Path) -> None:
    assert exit_code_of(["export", "pruned", "-q"]) == 0
    fields = ["objectives=[{name: kd}, {name: dist, weight: 0.5}]", "mixup=0.2", "--epochs", "1", "--batch-size", "32"]
    teachers = [*TEACHER, "--also-teacher", "exported"]
    assert exit_code_of(["distill", "student-1.json", *teachers, "--data", "data.npz", *fields, "-q"]) == 0
    metrics = json.loads((here / "distilled" / "metrics.json").read_text())
    assert any("2 teachers" in sentence for sentence in metrics["decisions"]), metrics["decisions"]


def test_a_teacher_that_learns_along_is_one_command_by_flag_or_by_field(here: Path) -> None:
    command = ["distill", "student-1.json", *TEACHER, "--data", "data.npz", "--epochs", "2", "--batch-size", "32", "-q"]
    weights = []
    for chosen in (["--objective", "bdkd-online"], ["objective=bdkd-online"], ["objectives=[{name: bdkd-online}]"]):
        assert exit_code_of([*command, *chosen]) == 0
        metrics = json.loads((here / "distilled" / "metrics.json").read_text())
        assert "teacher_accuracy_select" in metrics["stages"]["distill"]
        assert any(line.startswith("The teacher was trained along") for line in metrics["decisions"])
        weights.append(read_package(here / "distilled")[0].file("weights.safetensors"))
    assert len(set(weights)) == 1


def test_images_without_labels_are_gathered_and_all_are_varied_where_it_is_hard(here: Path) -> None:
    command = ["distill", "student-1.json", *TEACHER, "--data", "data.npz", "--unlabelled", "more.npz"]
    assert exit_code_of([*command, "--epochs", "1", "--batch-size", "32", "--hard-augment", "0.4", "-q"]) == 0
    metrics = json.loads((here / "distilled" / "metrics.json").read_text())
    gathered = metrics["stages"]["gathered"]
    assert gathered["pool"] == 42
    assert 0 < gathered["gathered"] <= 42
    assert any(line.startswith("Images were varied as far as") for line in metrics["decisions"])
    assert metrics["request"]["unlabelled"] == "more.npz", "a package holds no paths of the machine that made it"
    assert any(line.startswith("Of 42 images without labels,") for line in metrics["decisions"])


def test_a_student_keeps_its_order_of_the_classes_whatever_the_teachers_is(here: Path) -> None:
    for name, classes in (("ours", "dcba"), ("its", "cabd")):
        (here / f"{name}.txt").write_text("\n".join(classes))
    folders = here / "photos"
    data = load_dataset("data.npz").train
    for number, label in enumerate(np.asarray(data.labels)[:120]):
        place = folders / "abcd"[label]
        place.mkdir(parents=True, exist_ok=True)
        pixels = data.images(np.array([number]), toy_recipe(size=SIZE).preprocessing)[0]
        Image.fromarray(pixels).save(place / f"{number}.png")
    for name in ("ours", "its"):
        prune = ["prune", "model.pt", *ARCH, "--labels", f"{name}.txt", "--keep", "0.6", "channel_multiple=4"]
        assert exit_code_of([*prune, "-o", name, "-q"]) == 0
    command = ["distill", "ours", "--teacher", "its", "--data", "photos", "--batch-size", "32"]
    assert exit_code_of([*command, "--epochs", "1", "-q"]) == 0
    bundle, _ = read_package(here / "distilled")
    assert bundle.model.labels == tuple("dcba")
    metrics = json.loads((here / "distilled" / "metrics.json").read_text())
    assert any("lists its classes in another order" in line for line in metrics["decisions"])
    gathered = [*command, "--unlabelled", "more.npz", "-o", "gathered", "--epochs", "1", "-q"]
    assert exit_code_of(gathered) == 0, "the teacher's labels of gathered images are in the data's order"


def test_few_labels_and_many_images_are_one_command_that_leaves_the_images_without_labels(here: Path) -> None:
    command = ["distill", "student-1.json", *TEACHER, "--data", "data.npz", "--unlabelled", "more.npz"]
    assert exit_code_of([*command, "--objective", "dho", "--epochs", "1", "--batch-size", "32", "-q"]) == 0
    metrics = json.loads((here / "distilled" / "metrics.json").read_text())
    gathered, trained = metrics["stages"]["gathered"], metrics["stages"]["distill"]
    assert any(line.startswith("They stay without a label") for line in metrics["decisions"])
    assert gathered["gathered"] == gathered["sure"], "no class is cut off"
    assert trained["concluded_dho"]["fold_images"] == len(load_dataset("data.npz").train) + gathered["gathered"]
    assert any("was chosen on these images" in line for line in metrics["decisions"])


def test_stored_logits_teach_where_no_teacher_can_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = len(load_dataset("data.npz").train)
    logits = np.random.default_rng(0).normal(size=(images, 4)).astype(np.float32)
    np.savez(here / "logits.npz", logits=logits)
    command = ["distill", "student-1.json", "--data", "data.npz", "--teacher-logits", "logits.npz", "-q"]
    command += ["--epochs", "2", "--batch-size", "32", "--objective", "kd:0.5+dist:1"]
    assert exit_code_of(command) == 2
    digest = re.search(r"data='([0-9a-f]{64})'", capsys.readouterr().err)
    assert digest is not None, "the message says what is missing"
    np.savez(here / "logits.npz", logits=logits, data=digest[1])
    assert exit_code_of(command) == 0
    metrics = json.loads((here / "distilled" / "metrics.json").read_text())
    assert set(metrics["stages"]["distill"]["train_distill_losses"]) == {"kd", "dist"}
    assert metrics["decisions"][0].startswith("Distilled with 0.1 * cross-entropy + 0.5 * kd + 1 * dist")
    assert exit_code_of([*command, *TEACHER]) == 2
    assert "from the one or the other" in capsys.readouterr().err


def test_a_package_is_quantized_for_this_machine(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quantize = ["quantize", "pruned", "--data", "data.npz", "--calib-samples", "16", "--scheme", "ort-u8s8"]
    assert exit_code_of(quantize) == 0
    bundle, _ = read_package(here / "quantized")
    assert (bundle.kind, bundle.tags["precision"]) == (BundleKind.ONNX, "int8")
    printed = capsys.readouterr().out
    assert "sqnr_db" in printed
    assert "edgekd profile quantized" in printed


def test_a_limit_that_is_not_kept_is_exit_code_1(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An untrained network: whatever INT8 changes of its answers is a loss or a gain, and a limit of 1 always holds."""
    command = ["quantize", "pruned", "--data", "data.npz", "--scheme", "ort-u8s8", "--rebuild", "quantize"]
    assert exit_code_of([*command, "--max-drop", "1"]) == 0
    said = capsys.readouterr().out
    assert "images of the select split" in said
    assert re.search(r"limit_held\s+True", said)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Limit, "keeps", lambda *_: False)
        assert exit_code_of([*command, "--max-drop", "0.01"]) == 1
    assert re.search(r"limit_held\s+False", capsys.readouterr().out)


def test_an_exported_package_can_be_quantized_too_but_not_twice(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(["export", "pruned", "-q"]) == 0
    quantize = ["quantize", "exported", "--data", "data.npz", "--calib-samples", "16", "--scheme", "ort-u8s8", "-q"]
    assert exit_code_of(quantize) == 0
    bare = ["quantize", "exported/model.onnx", "--scheme", "weight-only", "-q", "-o", "bare"]
    assert exit_code_of(bare) == 0
    assert read_package(here / "bare")[0].tags["scheme"] == "weight-only"
    again = ["quantize", "quantized/model.onnx", "--data", "data.npz", "--scheme", "ort-u8s8", "-q", "-o", "twice"]
    assert exit_code_of(again) == 2
    assert "int8" in capsys.readouterr().err


def test_an_export_in_half_precision_ends_with_the_half_precision_graph(here: Path) -> None:
    assert exit_code_of(["export", "pruned", "--precision", "fp16", "--target", "jetson", "-q"]) == 0
    assert read_package(here / "exported")[0].tags["precision"] == "fp16"


def test_one_request_writes_one_package_byte_for_byte_and_hands_the_licence_on(
    here: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    prune = ["prune", "model.pt", *ARCH, "--keep", "0.6", "channel_multiple=4", "--license", "CC BY 4.0", "-q"]
    there = tmp_path_factory.mktemp("there")
    shutil.copy(here / "model.pt", there)
    for place in (here, there):
        monkeypatch.chdir(place)
        assert exit_code_of([*prune, "-o", "again", "--store", str(place / "store")]) == 0
    names = sorted(path.name for path in (here / "again").iterdir())
    assert {"MODEL_CARD.md", "NOTICE.txt", "sbom.json", "metrics.json"} <= set(names)
    for name in names:
        assert (here / "again" / name).read_bytes() == (there / "again" / name).read_bytes(), name
    assert json.loads((here / "again" / "metrics.json").read_text())["request"]["model"]["path"] == "model.pt"
    monkeypatch.chdir(here)
    assert exit_code_of(["export", "again", "-q"]) == 0
    assert "as it was given: CC BY 4.0" in (here / "exported" / "NOTICE.txt").read_text()
    assert exit_code_of(["export", "again", "--license", "MIT", "-q"]) == 0
    assert "as it was given: MIT" in (here / "exported" / "NOTICE.txt").read_text()


def test_pruning_can_ask_what_hurts_the_match_with_the_whole_network(here: Path) -> None:
    command = ["prune", "model.pt", *ARCH, "--keep", "0.7", "--importance", "kd", "--data", "data.npz"]
    assert exit_code_of([*command, "channel_multiple=4", "importance_images=16", "-q", "-o", "kd"]) == 0
    assert json.loads((here / "kd" / "metrics.json").read_text())["stages"]["prune"]["macs_kept"] <= 0.7


def test_a_dry_run_writes_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(["export", "pruned", "--dry-run"]) == 0
    assert "export" in capsys.readouterr().out
    assert not (here / "exported").exists()


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["prune", "model.pt", *ARCH, "macs_kept=0.5"], "macs_keep"),
        (["prune", "model.pt", *ARCH, "--max-latency-ms", "1"], "give --target"),
        (["prune", "model.pt", *ARCH, "--follow", "measured"], "--follow measured goes by the latency of a device"),
        (["prune", "model.pt", *ARCH, "--importance", "kd"], "--data"),
        (["distill", "pruned", "--data", "nowhere.npz"], "nowhere.npz"),
        (["distill", "pruned", "--data", "data.npz", "--also-teacher", "pruned"], "--teacher"),
        (["distill", "pruned", "--data", "data.npz", "--unlabelled", "more.npz"], "chosen by a teacher"),
        (
            ["compress", "model.pt", *ARCH, "--target", "host", "--unlabelled", "more.npz"],
            "beside the data of the task",
        ),
        (["quantize", "pruned", "--scheme", "ort-u8s8"], "--data"),
        (["prune", "pruned", "--arch", "timm:resnet18"], "holds its own architecture"),
        (["compress", "exported", "--target", "host"], "exported"),
        (["distill", "student-1.json", "--teacher", "pruned", "--data", "data.npz", "-o", "."], "not a package"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_reason(
    here: Path, capsys: pytest.CaptureFixture[str], command: list[str], said: str
) -> None:
    assert exit_code_of([*command, "-q"]) == 2
    assert said in capsys.readouterr().err


def test_a_cut_along_measured_latencies_times_the_model_first(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prune = ["prune", "model.pt", *ARCH, "--follow", "measured", "--target"]
    assert exit_code_of([*prune, "host", "--dry-run"]) == 0
    assert "latency-table" in capsys.readouterr().out
    assert exit_code_of([*prune, "jetson-orin-nano", "-q"]) == 3
    assert "this machine is not jetson-orin-nano" in capsys.readouterr().err


def test_a_graph_is_no_model_to_prune(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(["export", "pruned", "-q"]) == 0
    assert exit_code_of(["prune", "exported", "-q"]) == 2
    assert "takes a PyTorch model" in capsys.readouterr().err
    assert exit_code_of(["compress", "exported", "--target", "host", "-q"]) == 2
    assert "starts from a PyTorch model" in capsys.readouterr().err


def test_dotted_keys_reach_inner_fields() -> None:
    assert nested({"augment.flip": False, "augment.pad_px": 2, "lr": 1}) == {
        "augment": {"flip": False, "pad_px": 2},
        "lr": 1,
    }


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--precision", "int8"], "An ONNX graph is quantized by a verb of its own"),
        (["--runtime", "ncnn", "--precision", "int8"], "does not write INT8; it writes fp32, fp16"),
        (["--runtime", "executorch", "--precision", "int8"], "INT8 needs calibration samples"),
        (["--runtime", "executorch", "--opset", "20"], "--opset is of ONNX graphs, and executorch reads none"),
    ],
)
def test_an_export_that_contradicts_itself_is_refused(
    here: Path, flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code_of(["export", "pruned", *flags, "-q"]) == 2
    assert said in capsys.readouterr().err
    assert not (here / "exported").exists()


def test_a_converter_that_is_not_installed_is_a_missing_device_with_the_command(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = Availability(ok=False, reason="it is not there", install="pip install it")
    monkeypatch.setattr(type(CONVERTERS.get("ncnn")), "availability", lambda self: missing)
    assert exit_code_of(["export", "pruned", "--target", "jetson", "--runtime", "ncnn", "-q"]) == 3
    said = capsys.readouterr().err
    assert "The card of jetson-orin-nano does not name ncnn; it runs tensorrt." in said
    assert "The converter 'ncnn' cannot work here: it is not there." in said
    assert "pip install it" in said
    assert not (here / "exported").exists()


@pytest.mark.needs("ncnn")
def test_an_exported_engine_is_a_package_that_evaluates_profiles_and_makes_nothing_else(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    need_runtime("ncnn")
    assert exit_code_of(["export", "pruned", "--runtime", "ncnn", "-o", "engine"]) == 0
    assert "edgekd inspect" not in capsys.readouterr().out  # it reads graphs
    assert read_package(here / "engine")[0].format == "ncnn"
    assert exit_code_of(["evaluate", "engine", "--data", "data.npz", "-q"]) == 0
    assert exit_code_of(["profile", "engine", "--warmup", "0", "--duration", "0.05", "-q"]) in (0, 5)
    assert "ncnn" in capsys.readouterr().out
    assert exit_code_of(["quantize", "engine", "--scheme", "weight-only", "-q"]) == 2
    assert "a finished ncnn engine, which nothing can be made from" in capsys.readouterr().err
