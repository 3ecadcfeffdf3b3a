"""ONNX Runtime Web in its two hosts, where they and the npm package are installed; its refusals anywhere."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest

from edgekd.core.bundle import ModelBundle
from edgekd.core.stage import Context
from edgekd.errors import DeviceUnavailable, UserError
from edgekd.profiling.isolated import Engine, Extras, measure_isolated
from edgekd.profiling.measure import MeasurePlan
from edgekd.quant.ptq_stage import QuantizeConfig, QuantizeStage
from edgekd.runtimes.onnxruntime import emulated
from edgekd.runtimes.onnxruntime_web import NODE, REGION, node_major
from edgekd.runtimes.samples import Samples, bundle_from_samples, random_images
from edgekd.runtimes.session import RUNTIMES, OwnClock, open_bundle
from edgekd.runtimes.web import engine
from edgekd.testing.conformance_session import SessionConformance, Subject
from edgekd.testing.harness import make_context, make_inputs, run_stage
from edgekd.testing.toy_graphs import toy_graph, toy_onnx_bundle
from tests.runtimes.test_session import onnx_subject

IMAGES = random_images((3, 8, 8), samples=24, seed=0)


def host(runtime: str, folder: Path) -> Iterator[str]:
    """The runtime, with a session of it open all the while: the host starts once, not once a test."""
    found = RUNTIMES.get(runtime).availability()
    if not found.ok:
        pytest.skip(f"needs {runtime}: {found.reason} ({found.install})")
    onnx.save(toy_graph(), folder / "model.onnx")
    with RUNTIMES.get(runtime).open(folder / "model.onnx", threads=1):
        yield runtime
    assert not [key for key in engine._running if key[0] in runtime]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    yield from host("ort-web-node", tmp_path_factory.mktemp("node"))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    yield from host("ort-web-browser", tmp_path_factory.mktemp("browser"))


class TestInNode(SessionConformance):
    @pytest.fixture
    def subject(self, node: str, tmp_path: Path) -> Subject:
        return onnx_subject(node, tmp_path)


@pytest.mark.slow
class TestInBrowser(SessionConformance):
    @pytest.fixture
    def subject(self, browser: str, tmp_path: Path) -> Subject:
        return onnx_subject(browser, tmp_path)


def int8_bundle(ctx: Context) -> ModelBundle:
    model = toy_onnx_bundle(ctx.blobs, ctx.scratch)
    samples = bundle_from_samples(
        Samples(images=IMAGES, labels=None, origin="synthetic"),
        preprocessing=model.model.preprocessing,
        source="a test",
        blobs=ctx.blobs,
        scratch=ctx.scratch,
    )
    stage = QuantizeStage(QuantizeConfig(scheme="ort-u8s8"))
    return run_stage(stage, make_inputs(model=model, calibration=samples), ctx).bundle


def agrees_in_int8(runtime: str, folder: Path) -> None:
    """The 8-bit kernels of WebAssembly round as the graph says, and no pair of products saturates."""
    ctx = make_context(folder)
    bundle = int8_bundle(ctx)
    with open_bundle(bundle, ctx.blobs, runtime, threads=1) as session:
        found = session.infer({"images": IMAGES})["logits"]
    with emulated(ctx.path(bundle, "model.onnx")) as session:
        exact = session.infer({"images": IMAGES})["logits"]
    assert float(np.abs(found - exact).max()) < 0.03 * float(exact.std())
    assert (found.argmax(1) == exact.argmax(1)).mean() > 0.9


def test_int8_in_node_is_what_the_graph_says(node: str, tmp_path: Path) -> None:
    agrees_in_int8(node, tmp_path)


@pytest.mark.slow
def test_int8_in_a_browser_is_what_the_graph_says(browser: str, tmp_path: Path) -> None:
    agrees_in_int8(browser, tmp_path)


def test_calls_are_timed_by_the_hosts_own_clock(node: str, tmp_path: Path) -> None:
    subject = onnx_subject(node, tmp_path)
    with subject.open(batch=1) as session:
        assert isinstance(session, OwnClock)
        timer = session.timer({"images": IMAGES[:1]})
        calls, fastest_ns = timer.warm_up(0.01)
        turn = timer.turn(4)
        found = session.environment()
    assert calls >= 3
    assert len(turn) == 4
    assert 0 < fastest_ns < 10**9
    assert session.load_ms > 0
    assert found["timed_region"] == REGION
    assert str(found["host"]).startswith("Node.js v")


@pytest.mark.slow
def test_a_page_is_isolated_so_that_threads_and_a_fine_clock_work(browser: str, tmp_path: Path) -> None:
    with onnx_subject(browser, tmp_path).open(threads=2) as session:
        found = session.environment()
    assert found["cross_origin_isolated"] is True
    assert found["threads"] == 2
    assert float(str(found["clock_step_us"])) < 50


def test_a_worker_measures_it_and_leaves_no_process_behind(node: str, tmp_path: Path) -> None:
    ctx = make_context(tmp_path)
    plan = MeasurePlan(warmup_s=0.02, burst_s=0.001, min_rounds=6, max_rounds=6, duration_s=0.1, precision=10)
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    model = Engine(bundle=toy_onnx_bundle(ctx.blobs, ctx.scratch), runtime=node)
    found = measure_isolated({"toy": model}, ctx.blobs, plan, extras=Extras(offline_samples=4)).outcomes["toy"]
    assert not isinstance(found, Exception), found
    assert found.region == REGION
    assert found.memory_peak_mib is not None
    assert found.mlperf is not None
    assert found.mlperf.offline_samples == 4
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before


def test_a_graph_that_it_cannot_load_is_refused_in_its_words(node: str, tmp_path: Path) -> None:
    graph = toy_graph()
    graph.graph.node[1].op_type = "Bernoulli2"
    onnx.save(graph, tmp_path / "model.onnx")
    with pytest.raises(UserError, match=r"ort-web-node .* cannot load .*model\.onnx: .*Bernoulli2"):
        RUNTIMES.get(node).open(tmp_path / "model.onnx", threads=1)


def test_a_file_that_is_no_model_is_refused_by_name(node: str, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(UserError, match=r"model\.onnx is not a readable ONNX file"):
        RUNTIMES.get(node).open(tmp_path / "model.onnx")


def test_a_host_that_dies_is_told_with_its_end(node: str, tmp_path: Path) -> None:
    subject = onnx_subject(node, tmp_path)
    with subject.open(threads=2) as session:
        session._engine._host._process.kill()  # type: ignore[attr-defined]
        with pytest.raises(DeviceUnavailable, match="gone during 'infer': node ended by SIGKILL"):
            session.infer({"images": IMAGES[:1]})


def script(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IEXEC)
    return path


def test_without_the_npm_package_the_command_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(tmp_path, "node", "echo v20.1.0")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("EDGEKD_ADDONS", str(tmp_path / "addons"))
    found = NODE.availability()
    assert not found.ok
    assert found.reason == f"onnxruntime-web is not in {tmp_path / 'addons' / 'onnxruntime-web'}"
    assert found.install == "edgekd doctor --install onnxruntime-web"
    with pytest.raises(DeviceUnavailable, match="'ort-web-node' cannot work here"):
        NODE.open(tmp_path / "model.onnx")


@pytest.mark.parametrize("runtime", ["ort-web-node", "ort-web-browser"])
def test_without_its_host_it_says_what_to_install(
    runtime: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("EDGEKD_BROWSER", raising=False)
    found = RUNTIMES.get(runtime).availability()
    assert not found.ok
    assert "is not on the PATH" in found.reason
    assert found.install.startswith("install ")


def test_an_old_node_is_refused_with_its_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = script(tmp_path, "node", "echo v16.20.2")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert NODE.availability().reason == f"{old} is Node.js 16, and 18 is the first one that works"
    assert node_major(str(script(tmp_path, "nonsense", "echo hello"))) == 0
