"""The profile node: real runtimes on a tiny graph, and devices that are elsewhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest

from edgekd.core.bundle import BundleKind, ModelBundle, TensorSpec
from edgekd.core.layers import LayerReport
from edgekd.core.preprocess import Preprocessing
from edgekd.core.report import CandidateLatency, ProfileReport
from edgekd.core.report_io import report_from_bundle
from edgekd.core.stage import BoardAccess, Context, Execution
from edgekd.errors import DeviceUnavailable, UserError
from edgekd.profiling.predict.nets import probe_nets
from edgekd.profiling.remote.request import Candidate
from edgekd.profiling.stage import ProfileConfig, ProfileStage, _mostly_float, _usual
from edgekd.runtimes.session import RUNTIMES
from edgekd.targets.latency import latency_model_from_target
from edgekd.testing.harness import make_context, make_inputs, run_stage
from edgekd.testing.toys import toy_bundle, toy_recipe
from tests.profiling.cards import card

QUICK = {"warmup_s": 0.0, "duration_s": 0.02}


def onnx_bundle(ctx: Context, *, broken: bool = False) -> ModelBundle:
    """A graph of 8 channels on 8 x 8 pixels."""
    net = next(net for net in probe_nets("fp32") if net.name.startswith("overhead"))
    path = ctx.scratch / "model.onnx"
    onnx.save(net.model, path)
    if broken:
        path.write_bytes(b"no graph")
    recipe = toy_recipe().model_copy(update={"preprocessing": EightChannels(size=(8, 8))})
    return ModelBundle(
        kind=BundleKind.ONNX,
        inputs=(TensorSpec(name="images", shape=(1, 8, 8, 8)),),
        outputs=(TensorSpec(name="logits", shape=(1, 8)),),
        files={"model.onnx": ctx.blobs.add(path)},
        recipe=recipe,
        tags={"precision": "fp32"},
    )


class EightChannels(Preprocessing):
    """Lets a test feed a graph that takes no images."""

    @property
    def channels(self) -> int:
        return 8


def profile(ctx: Context, candidates: list[tuple[str, ModelBundle]], config: ProfileConfig) -> ProfileReport:
    result = run_stage(ProfileStage(config), make_inputs(candidates=candidates), ctx)
    return report_from_bundle(result.bundle, ProfileReport, ctx, "profile")


def test_every_candidate_is_measured_at_every_thread_count(tmp_path: Path) -> None:
    ctx = make_context(tmp_path, resources={"target": card(here=True)})
    candidates = [("a", onnx_bundle(ctx)), ("b", onnx_bundle(ctx))]
    report = profile(ctx, candidates, ProfileConfig(threads=(1, 2), **QUICK))
    assert report.measured
    assert [(e.candidate, e.latency.threads) for e in report.entries if e.latency] == [
        ("a", 1),
        ("b", 1),
        ("a", 2),
        ("b", 2),
    ]
    latency = report.entries[0].latency
    assert latency is not None
    assert latency.provider == "CPUExecutionProvider"
    assert {"machine", "before", "after", "session", "rounds"} <= set(latency.environment)
    assert "onnxruntime" in report.device


def test_a_candidate_that_cannot_be_opened_is_an_entry_with_a_reason(tmp_path: Path) -> None:
    ctx = make_context(tmp_path, resources={"target": card(here=True)})
    candidates = [("good", onnx_bundle(ctx)), ("bad", onnx_bundle(ctx, broken=True))]
    report = profile(ctx, candidates, ProfileConfig(runtimes=("onnxruntime",), **QUICK))
    good, bad = report.entries
    assert good.latency is not None
    assert bad.latency is None
    assert bad.failure


def test_every_engine_says_which_provider_ran_its_layers_and_all_of_them_when_asked(tmp_path: Path) -> None:
    ctx = make_context(tmp_path, resources={"target": card(here=True)})
    candidates = [("a", onnx_bundle(ctx))]
    for wanted in ("none", "summary", "all"):
        (entry,) = profile(ctx, candidates, ProfileConfig(runtimes=("onnxruntime",), layers=wanted, **QUICK)).entries
        assert (entry.layers is None) == (wanted == "none")
        if entry.layers is not None:
            assert set(entry.layers.nodes_by_provider) == {"CPUExecutionProvider"}
            assert bool(entry.layers.layers) == (wanted == "all")


def test_the_widest_of_the_inconclusive_latencies_is_said(tmp_path: Path) -> None:
    ctx = make_context(tmp_path, resources={"target": card(here=True)})
    candidates = [("a", onnx_bundle(ctx)), ("b", onnx_bundle(ctx))]
    config = ProfileConfig(runtimes=("onnxruntime",), precision=1e-12, layers="none", **QUICK)
    result = run_stage(ProfileStage(config), make_inputs(candidates=candidates), ctx)
    assert result.metrics["inconclusive"] == 2
    assert any(text.startswith("2 of 2 latencies are inconclusive. The widest is") for text in result.decisions)


def test_only_an_int8_engine_is_blamed_for_its_time_in_float() -> None:
    layers = LayerReport(
        source="a test", calls=1, total_ms=1.0, share_by_arithmetic={"float": 0.99}, nodes_by_provider={"A": 1, "B": 1},
        fell_back=("slice (slice) ran on B, not on A",),
    )  # fmt: skip
    entries = [
        CandidateLatency(candidate=name, runtime="r", precision=name, size_mib=1.0, failure="none", layers=layers)
        for name in ("fp32", "int8")
    ]
    (said,) = _mostly_float(entries)
    assert said.startswith("int8 in r is an int8 engine that spends 99% of its time in float: slice (slice) ran on B")


def test_torch_bundles_are_measured_in_torch_alone(tmp_path: Path) -> None:
    ctx = make_context(tmp_path, resources={"target": card(here=True)})
    candidates = [("model", toy_bundle(ctx.blobs, ctx.scratch)), ("graph", onnx_bundle(ctx))]
    report = profile(ctx, candidates, ProfileConfig(runtimes=("onnxruntime", "torch"), **QUICK))
    assert [(e.candidate, e.runtime) for e in report.entries] == [("model", "torch"), ("graph", "onnxruntime")]


def test_a_device_elsewhere_is_predicted_and_says_so(tmp_path: Path) -> None:
    ctx = make_context(tmp_path, resources={"target": card(here=False, runtime="tensorrt")})
    bundle = toy_bundle(ctx.blobs, ctx.scratch)
    result = run_stage(ProfileStage(ProfileConfig()), make_inputs(candidates=[("teacher", bundle)]), ctx)
    report = report_from_bundle(result.bundle, ProfileReport, ctx, "profile")
    predicted = report.entries[0].prediction
    assert not report.measured
    assert report.device == "toy-board"
    assert report.entries[0].latency is None
    assert predicted is not None
    assert (predicted.origin, predicted.device, predicted.relative_error) == ("predicted", "toy-board", 0.3)
    assert predicted.low_ms == pytest.approx(0.7 * predicted.median_ms)
    assert "this machine is not toy-board" in result.decisions[0]


def test_a_graph_without_a_module_is_predicted_from_its_operations(tmp_path: Path) -> None:
    ctx = make_context(tmp_path, resources={"target": card(here=False)})
    bundle = onnx_bundle(ctx)
    bundle = bundle.model_copy(update={"recipe": bundle.model.model_copy(update={"builder": "onnx"})})
    found = profile(ctx, [("graph", bundle)], ProfileConfig()).entries[0].prediction
    costs = next(net.costs for net in probe_nets("fp32") if net.name.startswith("overhead"))
    expected_ms = latency_model_from_target(card(here=False)).predict_ms(costs, "fp32")
    assert found is not None
    assert found.median_ms == pytest.approx(expected_ms, rel=0.01)


def test_a_runtime_that_was_asked_for_and_is_not_here_is_a_missing_device_with_what_is(tmp_path: Path) -> None:
    if RUNTIMES.get("onnxruntime:nnapi").availability().ok:
        pytest.skip("this build of ONNX Runtime has NNAPI")
    ctx = make_context(tmp_path, resources={"target": card(here=True)})
    with pytest.raises(DeviceUnavailable, match=r"onnxruntime:nnapi is not measured: .* it has .*CPUExecutionProvider"):
        profile(ctx, [("a", onnx_bundle(ctx))], ProfileConfig(runtimes=("onnxruntime:nnapi",)))


def test_an_unknown_runtime_and_an_empty_port_are_refused_before_any_work(tmp_path: Path) -> None:
    ctx = make_context(tmp_path, resources={"target": card(here=True)})
    with pytest.raises(UserError, match="Did you mean 'openvino'"):
        profile(ctx, [("a", onnx_bundle(ctx))], ProfileConfig(runtimes=("openvin",)))
    with pytest.raises(UserError, match="nothing to profile"):
        profile(ctx, [], ProfileConfig())


def test_an_engine_is_measured_in_its_own_runtime_even_where_the_card_does_not_list_it(tmp_path: Path) -> None:
    ctx = make_context(tmp_path, resources={"target": card(here=True)})
    engine = onnx_bundle(ctx).model_copy(
        update={"kind": BundleKind.ENGINE, "files": {"model.tflite": ctx.blobs.add(_written(ctx))}}
    )
    engine = engine.model_copy(update={"tags": {"format": "unheard-of"}})
    with pytest.raises(UserError, match="format 'unheard-of'"):
        profile(ctx, [("a", engine)], ProfileConfig(**QUICK))
    assert _usual(card(here=True), [onnx_bundle(ctx), engine])[-1] == "unheard-of"


def test_a_prediction_for_an_engine_names_its_own_runtime(tmp_path: Path) -> None:
    ctx = make_context(tmp_path, resources={"target": card(here=False)})
    source = toy_bundle(ctx.blobs, ctx.scratch)
    engine = source.model_copy(
        update={
            "kind": BundleKind.ENGINE,
            "files": {"model.pte": ctx.blobs.add(_written(ctx))},
            "tags": {"format": "executorch", "precision": "fp32"},
        }
    )
    (entry,) = profile(ctx, [("a", engine)], ProfileConfig(**QUICK)).entries
    assert entry.runtime == "executorch"
    assert entry.prediction is not None


def test_a_board_s_profile_says_which_engines_its_agent_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []

    def answer(access: object, target: object, candidates: list[Candidate], *_: object) -> SimpleNamespace:
        sent.extend(candidate.name for candidate in candidates)
        report = ProfileReport(device="pi", measured=True, threads=(1,), entries=(), board="ssh://pi")
        return SimpleNamespace(report=report, decisions=())

    monkeypatch.setattr("edgekd.profiling.stage.profile_for_target", answer)
    ctx = make_context(tmp_path, resources={"target": card(here=False)})
    ctx = replace(ctx, execution=Execution(board=BoardAccess(address="ssh://pi")))
    engine = ModelBundle(kind=BundleKind.ENGINE, tags={"format": "edgetpu"})
    inputs = make_inputs(candidates=[("graph", onnx_bundle(ctx)), ("engine", engine)])
    result = run_stage(ProfileStage(ProfileConfig()), inputs, ctx)
    assert sent == ["graph"]
    assert "engine is not measured: the agent on a board does not run edgetpu engines." in result.decisions


def _written(ctx: Context) -> Path:
    path = ctx.scratch / "engine"
    path.write_bytes(b"an engine")
    return path
