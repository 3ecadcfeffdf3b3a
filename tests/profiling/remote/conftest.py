"""Boards for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekd.core.blobs import FolderBlobs
from edgekd.core.bundle import ModelBundle
from edgekd.profiling.remote.request import Candidate
from edgekd.testing.toy_graphs import toy_onnx_bundle
from tests.profiling.remote.loopback import LoopbackBoard, start_board


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackBoard]:
    """A real OpenSSH server on the loopback interface; `ssh board` reaches it."""
    started = start_board(tmp_path / "board")
    monkeypatch.setenv("PATH", started.client_path)
    try:
        yield started
    finally:
        started.stop()


@pytest.fixture
def candidates(tmp_path: Path) -> list[Candidate]:
    """Two toy graphs."""
    return [candidate(tmp_path, name, seed) for seed, name in enumerate(("small", "other"))]


def candidate(folder: Path, name: str, seed: int = 0, *, content: bytes | None = None) -> Candidate:
    """A toy graph, or a file of other bytes in its place."""
    blobs = FolderBlobs(folder / "blobs")
    (folder / "scratch").mkdir(exist_ok=True)
    bundle: ModelBundle = toy_onnx_bundle(blobs, folder / "scratch", seed=seed)
    if content is not None:
        path = folder / "scratch" / "damaged.onnx"
        path.write_bytes(content)
        bundle = bundle.model_copy(update={"files": {"model.onnx": blobs.add(path)}})
    return Candidate(name=name, bundle=bundle, path=blobs.path(bundle.file("model.onnx")))
