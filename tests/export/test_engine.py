from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgekd.core.bundle import BundleKind
from edgekd.core.stage import Context
from edgekd.errors import BuildFailed, DeviceUnavailable, UserError
from edgekd.export.engine import BuildStage
from edgekd.export.tensorrt import BuildConfig
from edgekd.runtimes.fingerprint import fingerprint_from_plain, require_own_engine
from edgekd.runtimes.session import RUNTIMES, Availability
from edgekd.targets.load import load_target
from edgekd.testing.harness import make_context, make_inputs, run_stage
from edgekd.testing.toy_graphs import toy_onnx_bundle
from tests.runtimes.engines.boards import FakeBoard


@pytest.fixture
def ctx(tmp_path: Path) -> Context:
    return make_context(tmp_path, resources={"target": load_target("jetson")})


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process takes the fakes for a TensorRT."""
    runtime = RUNTIMES.get("tensorrt")
    monkeypatch.setattr(runtime, "availability", lambda: Availability(ok=True, version="10.3.0"))


def test_without_a_gpu_the_build_says_what_is_missing_before_any_work(ctx: Context) -> None:
    if RUNTIMES.get("tensorrt").availability().ok:
        pytest.skip("TensorRT works on this machine")
    model = toy_onnx_bundle(ctx.blobs, ctx.scratch)
    with pytest.raises(DeviceUnavailable, match="only be built on the device"):
        run_stage(BuildStage(BuildConfig()), make_inputs(model=model), ctx)


def test_a_scheme_that_tensorrt_does_not_read_is_refused(ctx: Context) -> None:
    model = toy_onnx_bundle(ctx.blobs, ctx.scratch).model_copy(
        update={"tags": {"precision": "int8", "scheme": "ort-u8s8"}}
    )
    with pytest.raises(UserError, match="does not take the quantization scheme 'ort-u8s8'"):
        run_stage(BuildStage(BuildConfig()), make_inputs(model=model), ctx)


def test_the_stage_gives_an_engine_with_its_fingerprint_and_timing_cache(
    fake_board: FakeBoard, there: None, ctx: Context
) -> None:
    model = toy_onnx_bundle(ctx.blobs, ctx.scratch)
    result = run_stage(BuildStage(BuildConfig(probes=1, duration_s=0)), make_inputs(model=model), ctx)
    bundle = result.bundle
    assert bundle.kind is BundleKind.ENGINE
    assert bundle.bound_to == "tensorrt-10.3.0/sm_87/Orin"
    assert set(bundle.files) == {"model.engine", "model.engine.json", "timing.cache"}
    found = fingerprint_from_plain(json.loads(ctx.path(bundle, "model.engine.json").read_text()), "x")
    require_own_engine(found, ctx.path(bundle, "model.engine"))
    assert found.onnx_sha256 == model.file("model.onnx")
    assert found.timing_cache_sha256 == bundle.file("timing.cache")
    assert (found.builder, found.flags, found.multiprocessors) == ("python", ("STRONGLY_TYPED",), 8)
    assert found.settings["workspace_mib"] == load_target("jetson").memory_mib // 4
    assert result.decisions[-1] == "The engine runs only on tensorrt-10.3.0/sm_87/Orin."


def test_an_engine_that_computes_something_else_is_no_engine(fake_board: FakeBoard, there: None, ctx: Context) -> None:
    fake_board.set(version="10.3.0", builds=[{"error": 5.0}])
    model = toy_onnx_bundle(ctx.blobs, ctx.scratch)
    with pytest.raises(BuildFailed, match=r"Not one of 1 engine.* computes what its graph does: its output 'logits'"):
        run_stage(BuildStage(BuildConfig(probes=1, duration_s=0)), make_inputs(model=model), ctx)


def test_an_operator_that_tensorrt_does_not_know_is_named_with_the_opset(
    fake_board: FakeBoard, there: None, ctx: Context
) -> None:
    fake_board.set(version="10.3.0", parses=False)
    model = toy_onnx_bundle(ctx.blobs, ctx.scratch)
    with pytest.raises(BuildFailed, match=r"TensorRT 10\.3\.0: it cannot take the operator Frobnicate") as caught:
        run_stage(BuildStage(BuildConfig()), make_inputs(model=model), ctx)
    assert caught.value.hint is not None
    assert "the graph has opset 17" in caught.value.hint
