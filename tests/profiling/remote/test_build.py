"""Engines built on a board over a real ssh connection; its TensorRT is made from recorded names."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from edgekd.cli.app import exit_code_of
from edgekd.core.blobs import FolderBlobs
from edgekd.core.digest import file_digest
from edgekd.export.package import verified_package, write_package
from edgekd.targets.load import load_target
from edgekd.targets.schema import Presence
from edgekd.testing.toy_graphs import toy_onnx_bundle
from tests.profiling.remote.loopback import LoopbackBoard
from tests.runtimes.engines.boards import FakeBoard

pytestmark = pytest.mark.needs("sshd")


@pytest.fixture
def jetson(board: LoopbackBoard, fake_board: FakeBoard, monkeypatch: pytest.MonkeyPatch) -> FakeBoard:
    """The board has the GPU and the TensorRT, and this machine has neither."""
    given = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "PYTHONPATH", "FAKE_TENSORRT")}
    board.set_python(" ".join([*(f"{name}={value}" for name, value in given.items()), f'exec {sys.executable} "$@"']))
    for name in given:
        monkeypatch.delenv(name)
    return fake_board


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A toy graph for a card that does not say how its device is recognised."""
    blobs = FolderBlobs(tmp_path / "blobs")
    (tmp_path / "scratch").mkdir()
    bundle = toy_onnx_bundle(blobs, tmp_path / "scratch")
    card = load_target("jetson").model_copy(update={"presence": Presence()})
    write_package(bundle, blobs, tmp_path / "package", target=card, versions={}, extra={})
    return tmp_path / "package"


ARGUMENTS = ["--device", "ssh://board", "--probes", "1", "--duration", "0"]


@pytest.mark.slow
def test_an_engine_is_built_on_the_board_and_comes_home_with_its_fingerprint(
    board: LoopbackBoard, jetson: FakeBoard, package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code_of(["build", str(package), *ARGUMENTS, "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)["engines"]["model-trt"]
    assert found["fingerprint"]["gpu"] == "Orin"
    engine = package / "engines" / "model-trt" / "model.engine"
    assert file_digest(engine) == found["fingerprint"]["engine_sha256"]
    assert verified_package(package).deployment is not None
    assert len(jetson.calls) == 1
    assert list(board.cache.glob("jobs/*")) == []
    assert found["fingerprint"]["engine_sha256"] not in [path.name for path in board.cache.glob("files/*")]


@pytest.mark.slow
def test_a_board_that_cannot_build_says_why_and_the_package_stays_as_it_was(
    board: LoopbackBoard, jetson: FakeBoard, package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = verified_package(package).digest
    jetson.set(version="10.3.0", builds=[{"fail": "crash"}])
    assert exit_code_of(["build", str(package), *ARGUMENTS]) == 4
    assert "ssh://board: the builder crashed with SIGSEGV" in capsys.readouterr().err
    board.set_python(f'CUDA_VISIBLE_DEVICES= exec {sys.executable} "$@"')
    assert exit_code_of(["build", str(package), *ARGUMENTS]) == 3
    said = capsys.readouterr().err
    assert "ssh://board: Python has no TensorRT" in said
    assert "by hand, on the device, in the folder of model.onnx: trtexec" in said
    assert verified_package(package).digest == before


@pytest.mark.slow
def test_a_board_that_is_another_device_builds_nothing(
    board: LoopbackBoard, jetson: FakeBoard, tmp_path: Path, package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blobs = FolderBlobs(tmp_path / "blobs")
    bundle = toy_onnx_bundle(blobs, tmp_path / "scratch")
    write_package(bundle, blobs, tmp_path / "nano", target=load_target("jetson"), versions={}, extra={})
    assert exit_code_of(["build", str(tmp_path / "nano"), *ARGUMENTS]) == 3
    assert "is not a jetson-orin-nano" in capsys.readouterr().err
    assert jetson.calls == []
