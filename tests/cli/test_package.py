"""`edgekd package`, and verbs that take an `.edgekd` file where they take a folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from edgekd.cli.app import exit_code_of
from edgekd.core.blobs import FolderBlobs
from edgekd.core.digest import file_digest
from edgekd.core.store import MemoryStore
from edgekd.errors import UserError
from edgekd.export.archive import pack
from edgekd.export.package import read_package, verified_package, write_package
from edgekd.pipeline.request import ModelSource
from edgekd.pipeline.sources import describes_itself, opened
from edgekd.targets.load import load_target
from edgekd.testing.toy_graphs import toy_onnx_bundle
from edgekd.testing.toys import toy_bundle, toy_recipe

NAMES = tuple(f"class{number}" for number in range(4))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder `out` of a run with the package of a toy graph, and data; the working directory."""
    blobs = FolderBlobs(tmp_path / "blobs")
    (tmp_path / "scratch").mkdir()
    bundle = toy_onnx_bundle(blobs, tmp_path / "scratch")
    facts = {"seed": "5", "data": "0" * 64}
    place = tmp_path / "out" / "bundle"
    write_package(bundle, blobs, place, target=load_target("host"), versions={"edgekd": "0"}, extra=facts)
    images = np.random.default_rng(0).integers(0, 256, (80, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", images=images, labels=np.arange(80) % 4, classes=np.array(NAMES))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said(arguments: list[str], capsys: pytest.CaptureFixture[str], code: int = 0) -> str:
    assert exit_code_of(arguments) == code
    captured = capsys.readouterr()
    return captured.out if code == 0 else captured.err


def test_a_run_becomes_one_file_with_a_digest_that_is_checked(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digest = file_digest(here / "out" / "bundle" / "manifest.json")
    text = said(["package", "out"], capsys)
    assert "package  model.edgekd" in text
    assert f"digest   {digest}" in text
    assert "model (chosen)" in text
    verified = said(["package", "model.edgekd", "--verify", "--expect-digest", digest], capsys)
    assert "every byte of model.edgekd is what its manifest says" in verified
    wrong = said(["package", "model.edgekd", "--verify", "--expect-digest", "1" * 64], capsys, code=2)
    assert "another package than expected" in wrong
    assert sorted(path.name for path in here.glob("*.edgekd")) == ["model.edgekd"]


def test_a_package_that_is_packed_again_is_the_same_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said(["package", "out/bundle", "-o", "one.edgekd"], capsys)
    found = json.loads(said(["package", "one.edgekd", "-o", "two.edgekd", "--format", "json"], capsys))
    assert (here / "one.edgekd").read_bytes() == (here / "two.edgekd").read_bytes()
    assert found["file"] == "two.edgekd"
    assert "onnxruntime" in found["engines"][0]["runtimes"]
    assert found["files"]["model.onnx"]["sha256"] == file_digest(here / "out" / "bundle" / "model.onnx")


def test_inspect_reads_a_package_in_either_form(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said(["package", "out"], capsys)
    shown = [said(["inspect", place, "--target", "jetson"], capsys) for place in ("model.edgekd", "out", "out/bundle")]
    assert shown[0] == shown[1] == shown[2]
    assert "jetson-orin-nano (tensorrt): cnn" in shown[0]


def test_a_damaged_file_is_refused_with_the_code_of_a_wrong_input(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said(["package", "out"], capsys)
    data = bytearray((here / "model.edgekd").read_bytes())
    data[len(data) // 2] ^= 1
    (here / "model.edgekd").write_bytes(bytes(data))
    for verb in (
        ["package", "model.edgekd", "--verify"],
        ["profile", "model.edgekd"],
        ["gate", "model.edgekd", "--max-size-mib", "9"],
    ):
        assert "model.edgekd" in said(verb, capsys, code=2)
    (here / "model.edgekd").write_bytes(bytes(data)[: len(data) // 2])
    assert "is cut off" in said(["evaluate", "model.edgekd", "--data", "data.npz"], capsys, code=2)


def test_flags_that_contradict_each_other_are_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--verify writes nothing" in said(["package", "out", "--verify", "-o", "x.edgekd"], capsys, code=2)
    assert "ends in .edgekd" in said(["package", "out", "-o", "x.zip"], capsys, code=2)
    assert "is not a package" in said(["package", "scratch"], capsys, code=2)


def test_what_is_no_package_is_named_for_what_it_is(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "weights.pt").write_bytes(b"no package")
    for place, what in (("nowhere", "No such file or folder"), ("weights.pt", "is a file, and no .edgekd package")):
        text = said(["package", place], capsys, code=2)
        assert what in text
        assert "give the folder of a run" in text


def test_a_package_of_schema_1_is_verified_and_not_packed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = here / "out" / "bundle"
    manifest = json.loads((place / "manifest.json").read_text())
    old = {name: digest for name, digest in manifest["files"].items() if name != "deploy.json"}
    (place / "manifest.json").write_text(json.dumps({"schema_version": 1, "files": old}))
    assert "Nothing in it runs on a device yet" in said(["package", "out", "--verify"], capsys)
    assert "package of schema 1" in said(["package", "out"], capsys, code=2)


def test_verbs_take_one_file_where_they_take_a_folder(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said(["package", "out"], capsys)
    shutil.rmtree(here / "out")
    evaluated = said(["evaluate", "model.edgekd", "--data", "data.npz", "--format", "json"], capsys)
    assert json.loads(evaluated)[0]["n"] > 0
    short = ["--duration", "0.05", "--warmup", "0", "--runtime", "onnxruntime", "--format", "json"]
    exit_code_of(["profile", "model.edgekd", *short])
    entries = json.loads(capsys.readouterr().out)["entries"]
    assert [(entry["candidate"], entry["runtime"]) for entry in entries] == [("model-edgekd", "onnxruntime")]
    quantized = ["quantize", "model.edgekd", "--target", "host", "--data", "data.npz", "--calib-samples", "8"]
    said([*quantized, "-o", "quantized"], capsys)
    assert read_package(here / "quantized")[0].model.labels == NAMES


def test_weights_are_handed_on_as_one_file_too(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blobs = FolderBlobs(here / "blobs")
    write_package(toy_bundle(blobs, here / "scratch"), blobs, here / "weights", target=None, versions={}, extra={})
    assert "it has no deploy.json" in said(["package", "weights", "-o", "weights.edgekd"], capsys)
    store = MemoryStore(here / "store")
    loaded = opened(ModelSource(path="weights.edgekd"), store, seed=0)
    assert loaded.bundle == read_package(here / "weights")[0]
    assert loaded.trainable
    assert describes_itself(ModelSource(path="weights.edgekd"))
    assert store.blobs.path(loaded.bundle.file("weights.safetensors")).is_file()
    with pytest.raises(UserError, match="is a package, which holds its own architecture"):
        opened(ModelSource(path="weights.edgekd", arch="timm:resnet18"), store, seed=0)


@pytest.fixture
def loaded_with_code(here: Path) -> Path:
    """A package in one file whose recipe names a function that leaves a trace when it is called."""
    blobs = FolderBlobs(here / "blobs")
    bundle = toy_bundle(blobs, here / "scratch")
    recipe = bundle.model.model_copy(update={"builder": "module:os:mkdir", "kwargs": {"path": "trace"}})
    bundle = bundle.model_copy(update={"recipe": recipe})
    write_package(bundle, blobs, here / "weights", target=None, versions={}, extra={})
    pack(verified_package(here / "weights"), here / "weights.edgekd")
    return here / "weights.edgekd"


@pytest.mark.parametrize("packed", [True, False], ids=["file", "folder"])
@pytest.mark.parametrize(
    "verb",
    [["export"], ["prune"], ["compress", "--target", "host"], ["evaluate", "--data", "data.npz"], ["profile"],
     ["compare"]],
)  # fmt: skip
def test_a_package_that_names_code_runs_none(
    here: Path, loaded_with_code: Path, capsys: pytest.CaptureFixture[str], verb: list[str], packed: bool
) -> None:
    name, *flags = verb
    place = loaded_with_code if packed else loaded_with_code.with_suffix("")
    text = said([name, str(place), *flags], capsys, code=2)
    assert "names a function to build its network with, os:mkdir(path='trace')" in text
    assert "--arch os:mkdir" in text
    assert not (here / "trace").exists()


def test_a_file_that_names_code_can_be_verified_and_is_loaded_when_the_user_names_it_too(
    here: Path, loaded_with_code: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said(["package", str(loaded_with_code), "--verify"], capsys)
    assert not (here / "trace").exists()
    named = ModelSource(path=str(loaded_with_code), arch="os:mkdir")
    assert opened(named, MemoryStore(here / "store"), seed=0).bundle.model.builder == "module:os:mkdir"
    with pytest.raises(UserError, match="leave out --labels"):
        opened(named.model_copy(update={"labels": ("a",)}), MemoryStore(here / "store"), seed=0)


def test_an_architecture_in_a_file_that_names_code_runs_none(here: Path) -> None:
    recipe = toy_recipe().model_copy(update={"builder": "module:os:mkdir", "kwargs": {"path": "trace"}})
    (here / "student-1.json").write_text(json.dumps(recipe.plain()))
    source = ModelSource(path="student-1.json")
    with pytest.raises(UserError, match=r"names a function to build its network with, os:mkdir"):
        opened(source, MemoryStore(here / "store"), seed=0)
    assert not (here / "trace").exists()
    named = source.model_copy(update={"arch": "os:mkdir"})
    with pytest.raises(UserError, match=r"must return a torch.nn.Module, but returned NoneType"):
        opened(named, MemoryStore(here / "store"), seed=0)


def test_the_users_own_code_is_run_when_it_is_named(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "own_code_of_mine.py").write_text(
        "from edgekd.testing.toys import toy_cnn\ndef net():\n    return toy_cnn()\n"
    )
    blobs = FolderBlobs(here / "blobs")
    bundle = toy_bundle(blobs, here / "scratch")
    recipe = bundle.model.model_copy(update={"builder": "module:own_code_of_mine:net", "kwargs": {}})
    bundle = bundle.model_copy(update={"recipe": recipe})
    write_package(bundle, blobs, here / "weights", target=None, versions={}, extra={})
    pack(verified_package(here / "weights"), here / "weights.edgekd")
    for place in ("weights", "weights.edgekd"):
        command = ["evaluate", place, "--data", "data.npz", "--arch", "own_code_of_mine:net"]
        assert exit_code_of(command) == 0
        captured = capsys.readouterr()
        assert "top-1 accuracy" in captured.out
        assert "carries no preprocessing" not in captured.out + captured.err
