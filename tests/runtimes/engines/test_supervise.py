"""Builds in processes of their own: what comes back, what is tried again, and what is left of one that dies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekd.core.blobs import FolderBlobs
from edgekd.runtimes.engines.settings import BuildSettings, InputShapes
from edgekd.runtimes.engines.supervise import BuildError, Order, Supervisor
from edgekd.testing.toy_graphs import toy_onnx_bundle
from tests.runtimes.engines.conftest import WORKER, FakeBoard
from tests.runtimes.engines.fake_tensorrt import CACHE

SHAPE = (1, 3, 8, 8)


@pytest.fixture
def order(tmp_path: Path) -> Order:
    """A toy graph and one image."""
    (tmp_path / "scratch").mkdir()
    blobs = FolderBlobs(tmp_path / "blobs")
    bundle = toy_onnx_bundle(blobs, tmp_path / "scratch")
    image = tmp_path / "image.bin"
    image.write_bytes(np.random.default_rng(0).standard_normal(SHAPE, dtype=np.float32).tobytes())
    return Order(
        onnx=blobs.path(bundle.file("model.onnx")),
        settings=BuildSettings(inputs=(InputShapes("images", SHAPE, SHAPE, (4, 3, 8, 8)),), workspace_mib=1024),
        shapes={"images": SHAPE},
        probes=[{"images": image}],
        run_s=0.0,
        limit_s=60.0,
    )


def carried_out(order: Order, tmp_path: Path, told: list[Any] | None = None) -> dict[str, Any]:
    folder = tmp_path / "work"
    folder.mkdir(exist_ok=True)
    heard = [] if told is None else told
    return Supervisor(order, folder, WORKER, tell=lambda *event: heard.append(event)).result()


def test_an_engine_comes_back_with_its_outputs_its_time_its_layers_and_its_timing_cache(
    fake_board: FakeBoard, order: Order, tmp_path: Path
) -> None:
    told: list[Any] = []
    found = carried_out(order, tmp_path, told)
    (build,) = found["builds"]
    assert found["builder"] == "python"
    assert found["device"]["compute_capability"] == "8.7"
    assert found["device"]["tensorrt"] == "10.3.0"
    assert (tmp_path / "work" / build["timing_cache"]).read_bytes() == CACHE
    assert "CaskConvolution" in (tmp_path / "work" / build["layers"]).read_text()
    assert len(build["outputs"][0]["logits"]) == 4
    assert build["median_ms"] > 0
    assert ("Building Engine", 2, 2) in told
    (call,) = fake_board.calls
    assert (call["strong"], call["flags"], call["verbosity"]) == (True, [], "DETAILED")
    assert call["pools"] == {"WORKSPACE": 1024 << 20}
    assert call["shapes"] == [["images", [1, 3, 8, 8], [1, 3, 8, 8], [4, 3, 8, 8]]]
