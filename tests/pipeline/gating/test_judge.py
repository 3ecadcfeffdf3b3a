"""Gates on bundles, from a request to a report, with engines whose speed is known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgekd.core.events import RecordingReporter
from edgekd.core.report import Budget, PredictedLatency
from edgekd.errors import UserError
from edgekd.export.archive import pack
from edgekd.export.package import verified_package
from edgekd.gate.artifacts import read_baseline
from edgekd.gate.baseline import Baseline, baseline_from_results
from edgekd.pipeline.gating.accept import accepted_bundle, successor
from edgekd.pipeline.gating.device import host_fingerprint, target_of
from edgekd.pipeline.gating.files import write_baseline
from edgekd.pipeline.gating.request import GateRequest
from edgekd.pipeline.single import workbench
from tests.gate.results import accuracy, latency
from tests.pipeline.gating.bench import Bench, bench

__all__ = ["bench"]


def here(path: Path) -> str:
    with workbench([("x", path)]) as opened:
        return host_fingerprint(target_of(opened.cards["x"]))


def numbers(path: Path, p50: float, device: str | None = None) -> Baseline:
    return baseline_from_results(device or here(path), latency(p50), None, 1.0)


@pytest.mark.parametrize(("cost_ms", "status"), [(1.0, "PASS"), (1.05, "FAIL"), (1.2, "FAIL"), (0.5, "PASS")])
def test_a_bundle_is_judged_by_its_ratio_to_the_accepted_one(bench: Bench, cost_ms: float, status: str) -> None:
    request = GateRequest(
        target=bench.graph("new", cost_ms, seed=1),
        baseline_bundle=bench.graph("old", 1.0, seed=2),
        max_regression=0.02,
    )
    report = bench.gate(request)
    assert report.status == status
    assert [check.name for check in report.checks] == ["latency against the baseline"]
    assert report.checks[0].value == pytest.approx(cost_ms, rel=0.005)
    assert report.latency is not None
    assert report.baseline_latency is not None
    assert report.latency.p50_ms == pytest.approx(cost_ms * 1.005, rel=0.005)
    assert report.seconds < 10, "clear answers stop early"


def test_a_ratio_at_the_limit_takes_all_the_time_and_stays_open(bench: Bench) -> None:
    request = GateRequest(
        target=bench.graph("new", 1.02, seed=1),
        baseline_bundle=bench.graph("old", 1.0, seed=2),
        max_regression=0.02,
        time_limit_s=6,
    )
    report = bench.gate(request)
    assert report.status == "INCONCLUSIVE"
    assert 5.5 < report.seconds <= 6.5


def test_fast_engines_are_opened_anew_in_every_unit_and_slow_ones_less_often(bench: Bench) -> None:
    request = GateRequest(target=bench.graph("new", 1.0, seed=1), time_limit_s=4, budget=Budget(max_latency_ms=1.005))
    report = bench.gate(request)
    assert report.latency is not None
    assert report.latency.environment["units"] == bench.opened
    bench.opened, bench.opening_ms = 0, 1000.0
    slow = bench.gate(request).latency
    assert slow is not None
    assert bench.opened * 4 < int(str(slow.environment["units"]))


@pytest.mark.parametrize(("limit", "percentile", "status"), [(2.0, 50, "PASS"), (0.9, 50, "FAIL"), (2.0, 99, "PASS")])
def test_a_limit_in_milliseconds_is_judged_for_its_percentile(
    bench: Bench, limit: float, percentile: int, status: str
) -> None:
    budget = Budget.parse({"max_latency_ms": limit, "percentile": percentile}, "test")
    report = bench.gate(GateRequest(target=bench.graph("new", 1.0, seed=1), budget=budget))
    assert report.status == status
    assert report.seconds >= 5, "noise comes in bursts of a second: a limit in ms is not judged in less than a few"


def test_numbers_of_this_device_are_compared_with(bench: Bench) -> None:
    path = bench.graph("new", 1.0, seed=1)
    for p50, status in ((1.0, "PASS"), (0.8, "FAIL")):
        report = bench.gate(GateRequest(target=path, baseline=numbers(path, p50), baseline_path=path))
        assert report.checks[0].name == "latency against the baseline"
        assert report.checks[0].status == status


def test_numbers_of_another_device_are_inconclusive(bench: Bench) -> None:
    path = bench.graph("new", 1.0, seed=1)
    report = bench.gate(GateRequest(target=path, baseline=numbers(path, 1.0, "another desk"), baseline_path=path))
    assert report.status == "INCONCLUSIVE"
    assert "another device" in report.reason


def test_the_bundle_that_the_baseline_notes_is_measured_in_its_place(bench: Bench) -> None:
    old, file = bench.package("old", 1.0, seed=2), bench.folder / "ci" / "main.json"
    baseline = accepted(bench, old, file)
    write_baseline(baseline, file)
    assert json.loads(file.read_text())["bundle"] == "../old"
    new = bench.package("new", 1.2, seed=1)
    request = GateRequest(target=new, baseline=read_baseline(file), baseline_path=file)
    report = bench.gate(request)
    assert report.baseline_latency is not None
    assert report.ratio() is not None
    assert report.status == "FAIL"
    changed = baseline.model_copy(update={"content": "0" * 64})
    report = bench.gate(GateRequest(target=new, baseline=changed, baseline_path=file))
    assert report.baseline_latency is None
    assert "is not the bundle that the baseline was set with" in report.notes[0]
    gone = baseline.model_copy(update={"bundle": "../gone"})
    report = bench.gate(GateRequest(target=new, baseline=gone, baseline_path=file))
    assert "is not here" in report.notes[0]


def accepted(bench: Bench, bundle: Path, file: Path) -> Baseline:
    return accepted_bundle(
        GateRequest(target=bundle),
        file,
        RecordingReporter(),
        opener=bench,
        clock_s=lambda: bench.clock.now_ns / 1e9,
    )


def test_a_result_that_differs_by_noise_alone_leaves_the_baseline_as_it_is(bench: Bench) -> None:
    path, file = bench.package("old", 1.0, seed=2), bench.folder / "main.json"
    first = accepted(bench, path, file)
    assert successor(None, first, {}, "first") is not None
    write_baseline(first, file)
    old = read_baseline(file)
    assert successor(old, accepted(bench, path, file), {}, None) is None
    kept = successor(old, accepted(bench, path, file), {"latency_tolerance": 0.02}, None)
    assert kept == old.model_copy(update={"latency_tolerance": 0.02})
    slower = successor(kept, accepted(bench, bench.package("new", 1.1, seed=1), file), {}, "better")
    assert slower is not None
    assert (slower.latency_tolerance, slower.reason) == (0.02, "better")
    assert slower.p50_ms > 1.08


def test_a_bundle_for_another_device_is_not_measured_here(bench: Bench) -> None:
    path = bench.package("board", 1.0, seed=1, target="jetson-orin-nano")
    report = bench.gate(GateRequest(target=path, budget=Budget(max_latency_ms=5)))
    assert report.status == "INCONCLUSIVE"
    assert "not measured on jetson-orin-nano" in report.reason
    assert bench.opened == 0


def test_a_prediction_passes_only_where_it_is_allowed_and_is_called_one(bench: Bench) -> None:
    path = bench.package("board", 1.0, seed=1, target="jetson-orin-nano")
    report = bench.gate(GateRequest(target=path, budget=Budget(max_latency_ms=5), allow_predicted=True))
    assert report.status == "PASS"
    assert report.checks[0].origin == "predicted"
    assert isinstance(report.latency, PredictedLatency)
    assert bench.opened == 0


def test_a_drop_with_data_but_nothing_to_count_from_is_refused_before_measuring(bench: Bench) -> None:
    request = GateRequest(target=bench.graph("new", 1.0, seed=1), budget=Budget(max_drop=0.01), data="photos")
    with pytest.raises(UserError, match="counts from an accepted accuracy"):
        bench.gate(request)
    assert bench.opened == 0


def test_a_drop_without_data_is_inconclusive_and_says_what_to_add(bench: Bench) -> None:
    report = bench.gate(GateRequest(target=bench.graph("new", 1.0, seed=1), budget=Budget(max_drop=0.01)))
    assert report.status == "INCONCLUSIVE"
    assert "add --data" in report.reason


def test_accuracy_is_counted_from_the_accepted_bundle_and_from_the_baselines_number(bench: Bench) -> None:
    new, old = bench.package("new", 1.0, seed=1), bench.package("old", 1.0, seed=2)
    images = np.random.default_rng(0).integers(0, 256, (80, 8, 8, 3), dtype=np.uint8)
    data = bench.folder / "data.npz"
    np.savez(data, images=images, labels=np.arange(80) % 4, classes=np.array([f"class{i}" for i in range(4)]))
    request = GateRequest(target=new, baseline_bundle=old, budget=Budget(max_drop=1.0), data=str(data), seed=0)
    report = bench.gate(request)
    assert [check.name for check in report.checks] == ["latency against the baseline", "drop in top-1 accuracy"]
    assert report.accuracy is not None
    perfect = baseline_from_results(here(new), latency(1.0), accuracy("x", 1.0, split="test"), 1.0)
    request = GateRequest(target=new, baseline=perfect, baseline_path=data, budget=Budget(max_drop=0.1), data=str(data))
    checks = {check.name: check for check in bench.gate(request).checks}
    assert checks["top-1 accuracy against the baseline"].status == "FAIL"
    assert checks["top-1 accuracy against the baseline"].limit == pytest.approx(0.9)


def test_size_is_judged_too(bench: Bench) -> None:
    report = bench.gate(GateRequest(target=bench.graph("new", 1.0, seed=1), budget=Budget(max_size_mib=1e-6)))
    assert report.status == "FAIL"
    assert "misses the limit" in report.reason


def test_a_package_in_one_file_is_judged_with_the_card_and_the_baseline_that_its_folder_has(bench: Bench) -> None:
    folder = bench.package("new", 1.0, seed=1)
    pack(verified_package(folder), bench.folder / "new.edgekd")
    pack(verified_package(bench.package("old", 1.0, seed=2)), bench.folder / "old.edgekd")
    request = GateRequest(
        target=bench.folder / "new.edgekd", baseline_bundle=bench.folder / "old.edgekd", max_regression=0.1
    )
    report = bench.gate(request)
    assert report.status == "PASS"
    assert report.device == here(folder)
