"""What a benchmark opens, writes and says with its exit code; the runs themselves are tested through the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgekd.core.benchmark import BenchmarkReport, BenchmarkRow, RowStatus
from edgekd.core.blobs import FolderBlobs
from edgekd.core.bundle import BundleKind
from edgekd.core.events import SilentReporter
from edgekd.core.report import ProfileReport
from edgekd.errors import UserError
from edgekd.export.archive import open_package
from edgekd.export.deployment import EngineNote, Shipped
from edgekd.export.package import write_package
from edgekd.pipeline.benchmark.files import check_benchmark_output, exit_code_of, write_json
from edgekd.pipeline.benchmark.request import BenchmarkRequest
from edgekd.pipeline.benchmark.run import BenchmarkRun, engines_of
from edgekd.pipeline.execute import Workspace
from edgekd.pipeline.request import ModelSource
from edgekd.targets.load import load_target
from edgekd.testing.toy_graphs import toy_onnx_bundle
from tests.gate.results import entry, profile


def report(*statuses: RowStatus, restless: bool = False, measured: ProfileReport | None = None) -> BenchmarkReport:
    rows = [
        BenchmarkRow(
            engine=f"e{number}", runtime="onnxruntime", status=status, inconclusive="too wide" if restless else "",
            p50_ms=None if status in ("failed", "not installed") else 1.0,
        )
        for number, status in enumerate(statuses)
    ]  # fmt: skip
    return BenchmarkReport(
        model="m", target="t", device="d", data="noise", threads=(1,), max_drop=0.01, seed=0, rows=tuple(rows),
        profile=measured,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("found", "code"),
    [
        (report("chosen", "failed", "not installed"), 0),
        (report("chosen", restless=True), 5),
        (report("wrong", "failed"), 1),
        (report("failed", "not installed"), 3),
    ],
)
def test_the_exit_code_says_whether_something_right_was_measured_as_precisely_as_asked(
    found: BenchmarkReport, code: int
) -> None:
    assert exit_code_of(found) == code


def test_the_file_leaves_out_single_samples_and_is_recognised_as_ours(tmp_path: Path) -> None:
    timed = entry("fp32", 1.0)
    assert timed.latency is not None
    full = timed.model_copy(update={"latency": timed.latency.model_copy(update={"samples_ms": (1.0, 2.0)})})
    write_json(report("chosen", measured=profile(full)), tmp_path / "benchmark.json")
    written = json.loads((tmp_path / "benchmark.json").read_text())
    assert written["profile"]["entries"][0]["latency"]["samples_ms"] == []
    check_benchmark_output(tmp_path)
    (tmp_path / "benchmark.json").write_text("{}")
    with pytest.raises(UserError, match="was not written by a benchmark"):
        check_benchmark_output(tmp_path)
    with pytest.raises(UserError, match="is a file, and the results are a folder"):
        check_benchmark_output(tmp_path / "benchmark.json")


def test_a_write_that_is_cut_short_leaves_the_file_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "benchmark.json"
    write_json(report("chosen"), place)
    before, write = place.read_bytes(), Path.write_bytes

    def half(self: Path, data: bytes) -> int:
        write(self, data[: len(data) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(KeyboardInterrupt):
        write_json(report("wrong"), place)
    assert place.read_bytes() == before
    check_benchmark_output(tmp_path)


@pytest.mark.parametrize(("known", "warned"), [("0" * 64, True), (None, False)])
def test_data_that_a_package_was_not_made_with_may_flatter_it_and_the_report_says_so(
    tmp_path: Path, known: str | None, warned: bool
) -> None:
    blobs = FolderBlobs(tmp_path / "blobs")
    (tmp_path / "scratch").mkdir()
    facts = {"seed": "5"} | ({"data": known} if known else {})
    model = toy_onnx_bundle(blobs, tmp_path / "scratch")
    write_package(model, blobs, tmp_path / "bundle", target=load_target("host"), versions={}, extra=facts)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", images=pixels, labels=np.arange(40) % 4)
    request = BenchmarkRequest(
        model=ModelSource(path=str(tmp_path / "bundle")), target="host", data=str(tmp_path / "data.npz"),
        runtimes=("onnxruntime",),
    )  # fmt: skip
    workspace = Workspace(out=tmp_path / "out", store=tmp_path / "store", reporter=SilentReporter())
    run = BenchmarkRun(workspace, request)
    notes = [note for note in run.notes if "which flatters it" in note and "seed 0, there 5" in note]
    assert bool(notes) is warned
    assert [contestant.name for contestant in run.contest.contestants] == ["fp32", "fp16", "int8-ort"]


def test_the_engines_of_a_package_keep_their_precision_and_files(tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path / "blobs")
    (tmp_path / "scratch").mkdir()
    full = toy_onnx_bundle(blobs, tmp_path / "scratch")
    other = toy_onnx_bundle(blobs, tmp_path / "scratch", seed=1)
    int8 = other.model_copy(update={"tags": {"precision": "int8", "scheme": "ort-u8s8"}})
    write_package(
        int8, blobs, tmp_path / "bundle", target=load_target("host"), versions={}, extra={},
        chosen=Shipped(bundle=int8, note=EngineNote(name="int8", runtimes=("onnxruntime",))),
        twins=[Shipped(bundle=full, note=EngineNote(name="fp32", runtimes=("onnxruntime",)))],
    )  # fmt: skip
    with open_package(tmp_path / "bundle") as package:
        found = engines_of(package)
    assert {name: (b.kind, b.tags["precision"]) for name, b in found.items()} == {
        "int8": (BundleKind.ONNX, "int8"), "fp32": (BundleKind.ONNX, "fp32"),
    }  # fmt: skip
    assert found["fp32"].files == full.files
    assert found["int8"].files == other.files
