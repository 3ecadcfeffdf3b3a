"""A board in a folder: a GPU that is memory, and a TensorRT made from recorded names, for other processes."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import edgekd
from tests.runtimes.engines.fake_cuda import make_cuda

ROOT = Path(edgekd.__file__).parent.parent


@dataclass(frozen=True)
class FakeBoard:
    """What the fakes read and write.

    Attributes:
        folder: Holds the control file and the module.
    """

    folder: Path

    def set(self, **control: Any) -> None:
        """Says how builds go; see `fake_tensorrt.CONTROL`."""
        (self.folder / "control.json").write_text(json.dumps(control))

    @property
    def calls(self) -> list[dict[str, Any]]:
        """What each build was asked for."""
        found: list[dict[str, Any]] = json.loads((self.folder / "control.json").read_text()).get("calls", [])
        return found


@pytest.fixture(scope="session")
def cuda_libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cuda(tmp_path_factory.mktemp("cuda"))


@pytest.fixture
def gpu(cuda_libraries: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that are started find the GPU."""
    monkeypatch.setenv("LD_LIBRARY_PATH", str(cuda_libraries))


@pytest.fixture
def fake_board(gpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeBoard:
    """TensorRT 10.3 for processes that are started."""
    folder = tmp_path / "fake"
    folder.mkdir()
    (folder / "tensorrt.py").write_text(
        "import json, os\n"
        "from tests.runtimes.engines.fake_tensorrt import CONTROL, make_module\n"
        "globals().update(vars(make_module(json.load(open(os.environ[CONTROL]))['version'])))\n"
    )
    monkeypatch.setenv("FAKE_TENSORRT", str(folder / "control.json"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), str(ROOT)]))
    board = FakeBoard(folder)
    board.set(version="10.3.0")
    return board


WORKER = (sys.executable, "-P", "-m", "edgekd.runtimes.engines.work")


@pytest.fixture
def fake_trtexec(fake_board: FakeBoard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeBoard:
    """`trtexec` 10.3 on the PATH and no TensorRT for Python."""
    place = tmp_path / "bin"
    place.mkdir()
    program = place / "trtexec"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -P -m tests.runtimes.engines.fake_trtexec "$@"\n')
    program.chmod(0o755)
    (fake_board.folder / "tensorrt.py").write_text("raise ImportError('no bindings')\n")
    monkeypatch.setenv("PATH", os.pathsep.join([str(place), os.environ["PATH"]]))
    return fake_board
