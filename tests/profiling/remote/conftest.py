"""Boards for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekd.core.blobs import FolderBlobs
from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.digest import Digest
from edgekd.profiling.remote.request import Candidate, candidate_from_bundle
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


def engine(folder: Path, name: str, form: str, files: tuple[str, ...]) -> Candidate:
    """An engine of a format, its files of any bytes."""
    made, blobs, found = candidate(folder, name), FolderBlobs(folder / "blobs"), dict[str, Digest]()
    for file in files:
        path = folder / "scratch" / file
        path.write_text(f"{name}: {file}")
        found[file] = blobs.add(path)
    changed = {"kind": BundleKind.ENGINE, "files": found, "tags": {"format": form, "precision": "fp32"}}
    return candidate_from_bundle(name, made.bundle.model_copy(update=changed), blobs)


def candidate(folder: Path, name: str, seed: int = 0, *, content: bytes | None = None) -> Candidate:
    """A toy graph, or a file of other bytes in its place."""
    blobs = FolderBlobs(folder / "blobs")
    (folder / "scratch").mkdir(exist_ok=True)
    bundle: ModelBundle = toy_onnx_bundle(blobs, folder / "scratch", seed=seed)
    if content is not None:
        path = folder / "scratch" / "damaged.onnx"
        path.write_bytes(content)
        bundle = bundle.model_copy(update={"files": {"model.onnx": blobs.add(path)}})
    return candidate_from_bundle(name, bundle, blobs)
