"""Engines in processes of their own: what one of them does to itself leaves the others alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from edgekd.core.bundle import BundleKind, ModelBundle, TensorSpec
from edgekd.core.report import LatencyReport
from edgekd.core.stage import Context
from edgekd.errors import EdgekdError, Inconclusive
from edgekd.profiling import isolated
from edgekd.profiling.agent import facts
from edgekd.profiling.isolated import Engine, Extras, Measured, measure_isolated
from edgekd.profiling.measure import MeasurePlan
from edgekd.profiling.process import WorkerLost, WorkerProcess
from edgekd.testing.conformance_session import need_runtime
from edgekd.testing.harness import make_context
from edgekd.testing.toy_graphs import toy_onnx_bundle
from tests.profiling.bad_runtime import COMMAND

PLAN = MeasurePlan(warmup_s=0, burst_s=0.001, min_rounds=6, max_rounds=8, duration_s=0.05)
GOOD = "running nothing"


@pytest.fixture
def ctx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    monkeypatch.setattr(isolated, "WorkerProcess", partial(WorkerProcess, command=COMMAND))
    monkeypatch.setattr(isolated, "state", lambda: {"busy_share": 0.0})
    return make_context(tmp_path)


def bad(ctx: Context, behaviour: str) -> Engine:
    path = ctx.scratch / "model.onnx"
    path.write_text(behaviour)
    bundle = ModelBundle(
        kind=BundleKind.ONNX,
        inputs=(TensorSpec(name="images", shape=("N", 1, 2, 2)),),
        files={"model.onnx": ctx.blobs.add(path)},
    )
    return Engine(bundle=bundle, runtime="bad")


def measured(ctx: Context, *behaviours: str) -> Measured:
    engines = {behaviour: bad(ctx, behaviour) for behaviour in behaviours}
    return measure_isolated(engines, ctx.blobs, PLAN, extras=Extras(limit_s=60))


def test_an_engine_that_segfaults_is_an_error_with_its_last_words_and_the_others_are_measured(ctx: Context) -> None:
    found = measured(ctx, "running segfault", GOOD).outcomes
    lost, good = found["running segfault"], found[GOOD]
    assert isinstance(lost, WorkerLost)
    assert "crashed in native code (SIGSEGV)" in lost.message
    assert "nothing of it is kept" in lost.message
    assert "libbad: index out of range" in lost.message
    assert lost.exit_code == 3
    assert isinstance(good, LatencyReport)
    assert good.n >= 6


class Impatient(WorkerProcess):
    """Gives a turn three seconds, and loading as long as a busy machine needs."""

    def __init__(self, label: str, runtime: str, *, limit_s: float) -> None:
        super().__init__(label, runtime, limit_s=limit_s, command=COMMAND)

    def ask(self, do: str, arguments: Mapping[str, Any] | None = None, *, takes_s: float = 0.0) -> Any:
        self._limit_s = 3 if do == "turn" else 60
        return super().ask(do, arguments, takes_s=takes_s)


def test_an_engine_that_hangs_is_killed_after_the_time_limit(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated, "WorkerProcess", Impatient)
    found = measured(ctx, "running hang", GOOD).outcomes
    assert isinstance(found["running hang"], WorkerLost)
    assert "hung in native code: no answer to 'run the model' within 3 s (--time-limit)" in str(found["running hang"])
    assert isinstance(found[GOOD], LatencyReport)


@pytest.mark.parametrize(
    ("behaviour", "says"),
    [
        ("loading segfault", "during 'load the model'"),
        ("running exit", "ended with code 3 during"),
        ("running refuse", "the bad runtime refused"),
    ],
)
def test_every_other_end_is_an_error_that_says_what_happened(ctx: Context, behaviour: str, says: str) -> None:
    found = measured(ctx, behaviour).outcomes[behaviour]
    assert isinstance(found, EdgekdError)
    assert says in found.message


def test_what_a_library_prints_does_not_disturb_the_answers(ctx: Context) -> None:
    assert isinstance(measured(ctx, "running noise").outcomes["running noise"], LatencyReport)


def test_no_worker_outlives_its_measurement(ctx: Context) -> None:
    started: list[int] = []

    class Noted(WorkerProcess):
        def __init__(self, label: str, runtime: str, *, limit_s: float) -> None:
            super().__init__(label, runtime, limit_s=limit_s, command=COMMAND)
            started.append(self.pid)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(isolated, "WorkerProcess", Noted)
        measured(ctx, GOOD, "running segfault")
    assert len(started) == 2
    for pid in started:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills a child with its parent")
def test_a_worker_that_hangs_dies_with_its_coordinator(ctx: Context) -> None:
    engine = bad(ctx, "loading hang")
    code = (
        "import sys, json, os, signal, threading\n"
        "from edgekd.profiling.process import WorkerProcess\n"
        f"worker = WorkerProcess('a', 'bad', command={COMMAND!r})\n"
        "sys.stdout.write(f'{worker.pid}\\n'); sys.stdout.flush()\n"
        f"worker.ask('open', json.loads({json.dumps(engine.request(ctx.blobs, 0))!r}))\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as coordinator:
        assert coordinator.stdout is not None
        pid = int(coordinator.stdout.readline())
        time.sleep(1.5)  # until it hangs; on a slow machine, while it still starts
        assert _runs(pid)
        coordinator.kill()
    deadline = time.monotonic() + 10
    while _runs(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(pid)


def _runs(pid: int) -> bool:
    """Whether the process is there and no zombie that nobody waits for."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_a_device_that_throttled_has_measured_nothing(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    states = iter([{"throttle_counts": {"cpu0/core_throttle_count": count}} for count in (4, 9)])
    monkeypatch.setattr(isolated, "state", lambda: next(states))
    found = measured(ctx, GOOD).outcomes[GOOD]
    assert isinstance(found, Inconclusive)
    assert found.exit_code == 5
    assert "throttled while measuring, because of heat: cpu0/core_throttle_count by 5" in found.message


def test_without_memory_for_all_there_are_groups_and_a_note(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "available_mib", lambda: 100)
    found = measured(ctx, GOOD, "never nothing")
    assert all(isinstance(outcome, LatencyReport) for outcome in found.outcomes.values())
    assert any("measured in 2 groups" in note for note in found.notes)


def test_a_worker_reports_load_time_and_memory_of_a_real_runtime(tmp_path: Path) -> None:
    ctx = make_context(tmp_path)
    engine = Engine(bundle=toy_onnx_bundle(ctx.blobs, ctx.scratch, size=32), runtime="onnxruntime")
    found = measure_isolated(
        {"a": engine}, ctx.blobs, PLAN, extras=Extras(layers=True, offline_samples=6, offline_batch=4)
    )
    report = found.outcomes["a"]
    assert isinstance(report, LatencyReport)
    assert report.load_ms is not None
    assert report.load_ms > 0
    assert report.memory_peak_mib is not None
    assert 0.5 < report.memory_peak_mib < 200
    assert report.energy is None or report.energy.per_call_mj > 0
    assert report.mlperf is not None
    assert report.mlperf.single_stream_p90_ms == report.p90_ms
    assert (report.mlperf.offline_samples, report.mlperf.offline_batch) == (8, 4)
    assert sum(len(values) for values in report.rounds_ns) == report.n
    assert found.layers["a"].nodes_by_provider == {"CPUExecutionProvider": len(found.layers["a"].layers)}


def test_a_worker_opens_a_graph_in_javascript_without_onnx(tmp_path: Path) -> None:
    need_runtime("ort-web-node")
    ctx = make_context(tmp_path)
    asked = Engine(bundle=toy_onnx_bundle(ctx.blobs, ctx.scratch), runtime="ort-web-node").request(ctx.blobs, 0)
    code = (
        "import json, sys\n"
        "from edgekd.profiling.worker import Worker\n"
        "worker = Worker()\n"
        "worker.open(json.loads(sys.stdin.read()))\n"
        "worker.close()\n"
        "sys.stdout.write(' '.join({name.partition('.')[0] for name in sys.modules}))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, check=True, timeout=120)
    assert not set(done.stdout.split()) & {"torch", "onnx", "onnxruntime"}


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_worker_imports_its_runtime_and_neither_torch_nor_onnx(runtime: str) -> None:
    code = (
        "import sys, edgekd.profiling.worker\n"
        "from edgekd.runtimes.session import RUNTIMES\n"
        f"RUNTIMES.get({runtime!r}).availability()\n"
        "sys.stdout.write(' '.join({name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    loaded = set(done.stdout.split())
    assert runtime in loaded
    assert not loaded & {"torch", "onnx", "scipy", "sklearn", "timm", "nncf", "torchvision"}
