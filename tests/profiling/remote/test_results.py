"""What a board measured, read as a report: no ssh, no engine, only numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgekd.core.packing import packed
from edgekd.profiling.remote.request import BoardPlan, Trial, trials_for
from edgekd.profiling.remote.results import report_from_result
from tests.profiling.remote.conftest import candidate

MS = 1_000_000
ROUNDS = [[2 * MS, 2 * MS + index, 2 * MS - index] for index in range(20)]
CALM = {"busy_share": 0.0, "usable_cores": 4, "governor": "performance", "throttle_counts": {"cpu0/core": 1}}


def entry(**changes: Any) -> dict[str, Any]:
    return {
        "label": "x", "timings": packed(ROUNDS), "warmup_n": 3, "energy": None, "outputs": [],
        "facts": {"provider": "CPUExecutionProvider", "load_ms": 7.5}, **changes,
    }  # fmt: skip


def run(**changes: Any) -> dict[str, Any]:
    return {"before": CALM, "after": CALM, "took_s": 1.0, "precise": True, "floating": None, **changes}


def result(entries: list[dict[str, Any]], runs: list[dict[str, Any]], clocks: tuple[str, ...] = ()) -> dict[str, Any]:
    entries = [entry if "failure" in entry else {**entry, "run": index} for index, entry in enumerate(entries)]
    return {
        "groups": 2, "entries": entries, "runs": runs, "clocks": list(clocks), "finished_s": 0.0,
        "machine": {"cpu_model": "Cortex-A76", "cores": 4, "architecture": "aarch64"},
        "runtimes": {"onnxruntime": {"version": "1.20"}},
    }  # fmt: skip


@pytest.fixture
def trials(tmp_path: Path) -> list[Trial]:
    return trials_for([candidate(tmp_path, "x")], ["onnxruntime"], BoardPlan(threads=(1, 2)))


def test_timings_become_the_latencies_of_a_local_report(trials: list[Trial]) -> None:
    found = result([entry(), entry()], [run(), run()], ("clocks were fixed",))
    report, said = report_from_result(found, trials, board="pi", plan=BoardPlan(threads=(1, 2)))
    assert report.device == "Cortex-A76, 4 cores, aarch64; onnxruntime 1.20"
    first, second = (entry.latency for entry in report.entries)
    assert first is not None
    assert second is not None
    assert (first.origin, first.threads, second.threads) == ("measured", 1, 2)
    assert (first.p50_ms, first.n, first.load_ms) == (2.0, 60, 7.5)
    assert first.rounds_ns == ROUNDS
    assert first.inconclusive is None
    assert first.environment["board"] == "pi"
    assert first.environment["measured_at"] == "1970-01-01T00:00:00Z"
    assert said == ["On pi: clocks were fixed."]


def test_both_regions_and_the_layers_come_home_under_their_names(trials: list[Trial]) -> None:
    told = {
        "information": {"Layers": [{"Name": "conv", "LayerType": "CaskConvolution"}]},
        "times_ms": {"conv": [0.5, 0.7, 0.6]},
        "calls": 3,
    }
    extras = {"compute": packed([[MS, MS + 1]] * 8), "layers": told, "failed": ["its fan is loud"]}
    found = result([entry(**extras), entry()], [run(), run()])
    report, said = report_from_result(found, trials, board="pi", plan=BoardPlan(threads=(1, 2)))
    first, second = report.entries
    assert first.latency is not None
    alone = first.latency.compute_only
    assert alone is not None
    assert (alone.n, alone.p50_ms) == (16, pytest.approx(1.0))
    assert alone.region.startswith("compute only")
    assert "transfers included" in first.latency.region
    assert first.layers is not None
    assert (first.layers.calls, first.layers.total_ms) == (3, 0.6)
    assert said == ["x in onnxruntime: its fan is loud"]
    assert second.latency is not None
    assert second.latency.compute_only is None
    assert second.layers is None


def test_openvino_tells_layers_by_its_counters(trials: list[Trial]) -> None:
    told = {
        "counters": [
            {"name": "conv", "op": "Convolution", "kernel": "brgconv_avx512_I8", "median_ms": 0.5},
            {"name": "fc", "op": "FullyConnected", "kernel": "brgemm_avx512_f32", "median_ms": 0.3},
        ],
        "calls": 20,
    }
    found = result([entry(layers=told), entry()], [run(), run()])
    report, _ = report_from_result(found, trials, board="nuc", plan=BoardPlan(threads=(1, 2)))
    layers = report.entries[0].layers
    assert layers is not None
    assert (layers.source, layers.calls, layers.total_ms) == ("OpenVINO performance counters", 20, 0.8)
    assert [layer.arithmetic for layer in layers.layers] == ["int8", "float"]


def test_only_engines_of_one_run_took_turns(trials: list[Trial]) -> None:
    apart = result([entry(), entry()], [run(), run()])
    together = {**apart, "entries": [{**found, "run": 0} for found in apart["entries"]], "runs": [run()]}
    for found, expected in ((apart, False), (together, True)):
        report, _ = report_from_result(found, trials, board="pi", plan=BoardPlan(threads=(1, 2)))
        first, second = (entry.latency for entry in report.entries)
        assert first is not None
        assert second is not None
        assert first.took_turns_with(second) is expected


def test_a_board_that_throttled_gives_no_measurement(trials: list[Trial]) -> None:
    hot = {**CALM, "throttle_counts": {"cpu0/core": 4}}
    report, _ = report_from_result(
        result([entry(), entry()], [run(after=hot), run()]), trials, board="pi", plan=BoardPlan(threads=(1, 2))
    )
    slowed, calm = report.entries
    assert slowed.latency is None
    assert "throttled while measuring" in str(slowed.failure)
    assert slowed.failure_code == 5
    assert calm.latency is not None


def test_a_clock_that_moved_makes_a_latency_inconclusive(trials: list[Trial]) -> None:
    moved = "The clock moved between 600 and 1800 MHz while measuring."
    found = result([entry(), entry()], [run(floating=moved), run()])
    report, _ = report_from_result(found, trials, board="pi", plan=BoardPlan(threads=(1, 2)))
    assert report.entries[0].latency is not None
    assert report.entries[0].latency.inconclusive == moved


def test_an_engine_that_failed_has_its_reason_and_no_numbers(trials: list[Trial]) -> None:
    found = result([{"label": "x", "failure": "the runtime crashed"}, entry()], [run(), run()])
    report, _ = report_from_result(found, trials, board="pi", plan=BoardPlan(threads=(1, 2)))
    assert (report.entries[0].latency, report.entries[0].failure) == (None, "the runtime crashed")
    assert report.entries[0].failure_code == 3


def test_what_the_boards_meter_said_comes_home(trials: list[Trial]) -> None:
    joules = {"source": "VDD_IN", "per_call_mj": 12.0, "mean_w": 6.0, "idle_w": 3.0, "calls": 500, "took_s": 1.0}
    found = result([entry(energy=joules), entry()], [run(), run()])
    report, _ = report_from_result(found, trials, board="pi", plan=BoardPlan(threads=(1, 2)))
    first, second = (entry.latency for entry in report.entries)
    assert first is not None
    assert second is not None
    assert first.energy is not None
    assert (first.energy.per_call_mj, second.energy) == (12.0, None)


def test_engines_of_several_runs_say_that_they_did_not_all_take_turns(trials: list[Trial]) -> None:
    found = {**result([entry(), entry()], [run(), run()]), "groups": 1}
    _, said = report_from_result(found, trials, board="pi", plan=BoardPlan(threads=(1, 2)))
    assert "The memory of pi did not suffice for all engines at once" in said[0]
