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
from tests.runtimes.engines.boards import WORKER, FakeBoard
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


def test_short_of_memory_a_build_is_tried_again_with_half_the_scratch_memory(
    fake_board: FakeBoard, order: Order, tmp_path: Path
) -> None:
    fake_board.set(version="10.3.0", builds=[{"fail": "memory", "until_mib": 300}])
    found = carried_out(order, tmp_path)
    assert [call["pools"]["WORKSPACE"] >> 20 for call in fake_board.calls] == [1024, 512, 256]
    assert found["builds"][0]["workspace_mib"] == 256
    assert ["tried again with 512 MiB" in note for note in found["notes"]] == [True, False]


def test_several_builds_come_back_with_their_times_and_only_the_first_is_told_timings(
    fake_trtexec: FakeBoard, order: Order, tmp_path: Path
) -> None:
    cache = tmp_path / "given.cache"
    cache.write_text("FAKE-CACHE Orin")
    fake_trtexec.set(version="10.3.0", builds=[{"ms": 3.0}, {"fail": "crash"}, {"ms": 2.0}])
    origin = {"gpu": "Orin", "compute_capability": "8.7", "tensorrt": "10.3.0"}
    found = carried_out(replace(order, builds=3, timing_cache=cache, timing_cache_from=origin), tmp_path)
    assert found["builder"] == "trtexec"
    assert [build.get("median_ms") for build in found["builds"]] == [3.0, None, 2.0]
    assert "crashed with SIGSEGV" in found["builds"][1]["failure"]
    assert [call["cache"] for call in fake_trtexec.calls] == ["FAKE-CACHE Orin", "", ""]
    assert found["builds"][0]["build_s"] == 12.5
    assert "--stronglyTyped" in found["builds"][0]["flags"]
    assert cache.read_text() == "FAKE-CACHE Orin"
    assert not (tmp_path / "work" / "build-1").exists()


@pytest.mark.slow
def test_a_damaged_timing_cache_and_one_of_another_device_are_ignored_and_said(
    fake_trtexec: FakeBoard, order: Order, tmp_path: Path
) -> None:
    cache = tmp_path / "given.cache"
    cache.write_text("damaged")
    here = {"gpu": "Orin", "compute_capability": "8.7", "tensorrt": "10.3.0.26"}  # as the Python bindings say it
    quick = replace(order, probes=(), timing_cache=cache)
    notes = []
    for origin in (here, {**here, "gpu": "Thor"}, None):
        found = carried_out(replace(quick, timing_cache_from=origin), tmp_path)
        notes += found["notes"]
        assert found["builds"][0]["engine"] is not None
    assert [word in note for word, note in zip(("damaged", "(Thor with", "trtexec does not ask"), notes, strict=True)]


@pytest.mark.parametrize(
    ("control", "code", "message"),
    [
        ({"builds": [{"fail": "crash"}]}, "build-failed", "the builder crashed with SIGSEGV"),
        ({"builds": [{"fail": "no kernel"}]}, "build-failed", "TensorRT 10.3.0: .*Could not find any implementation"),
        ({"builds": [{"fail": "hang"}]}, "time-limit", "the builder was ended: 1 s were not enough"),
    ],
    ids=["crash", "no-kernel", "hang"],
)
def test_a_builder_that_dies_leaves_a_reason_and_no_engine(
    fake_board: FakeBoard, order: Order, tmp_path: Path, control: dict[str, Any], code: str, message: str
) -> None:
    fake_board.set(version="10.3.0", **control)
    with pytest.raises(BuildError, match=message) as caught:
        carried_out(replace(order, limit_s=1.0 if code == "time-limit" else 60.0), tmp_path)
    assert caught.value.code == code
    assert not (tmp_path / "work" / "build-0").exists()


def test_without_a_gpu_nothing_is_built_and_the_reason_is_told(
    order: Order, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(BuildError, match="no GPU that CUDA can use") as caught:
        carried_out(order, tmp_path)
    assert caught.value.code == "no-device"


def test_without_a_builder_every_reason_is_told(fake_board: FakeBoard, order: Order, tmp_path: Path) -> None:
    (fake_board.folder / "tensorrt.py").write_text("raise ImportError('no bindings')\n")
    with pytest.raises(BuildError, match=r"Python has no TensorRT \(no bindings\); trtexec is neither on the PATH"):
        carried_out(order, tmp_path)


def test_a_job_that_is_cancelled_ends_at_once(fake_board: FakeBoard, order: Order, tmp_path: Path) -> None:
    fake_board.set(version="10.3.0", builds=[{"fail": "hang"}])
    folder = tmp_path / "work"
    folder.mkdir()
    with pytest.raises(BuildError, match="cancelled"):
        Supervisor(order, folder, WORKER, stop=lambda: True).result()
    assert not (folder / "build-0" / "model.engine").exists()
