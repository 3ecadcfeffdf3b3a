"""The model card: every sentence from facts, and none where there are none."""

from __future__ import annotations

from pathlib import Path

from edgekd.core.deployment import DeployedEngine, DeployedLatency
from edgekd.core.report import Verdict
from edgekd.export.card import CardFacts, model_card
from edgekd.targets.load import load_target
from edgekd.testing.harness import make_context
from edgekd.testing.toy_graphs import toy_onnx_bundle
from edgekd.testing.toys import toy_bundle
from tests.gate.results import accuracy


def engine(name: str, *, chosen: bool, latency: DeployedLatency | None) -> DeployedEngine:
    return DeployedEngine(
        name=name, format="onnx", files={"model.onnx": "model.onnx"}, runtimes=("onnxruntime",), precision="int8",
        chosen=chosen, reason="the fastest", latency=latency, size_mib=0.5,
    )  # fmt: skip


def test_a_card_tells_what_was_measured_where(tmp_path: Path) -> None:
    ctx = make_context(tmp_path)
    measured = DeployedLatency(median_ms=0.5, p99_ms=0.7, origin="measured", device="a desk")
    text = model_card(
        CardFacts(
            bundle=toy_onnx_bundle(ctx.blobs, ctx.scratch),
            target=load_target("x86-cpu"),
            engines=(engine("int8", chosen=True, latency=measured), engine("fp32", chosen=False, latency=None)),
            facts={"model": "cats.pt", "seed": "3", "data": "ab" * 32, "model_license": "MIT."},
            data="cats, 4 classes",
            accuracy=accuracy("chosen", 0.9),
            reference=accuracy("teacher", 0.91),
            verdict=Verdict(status="FAIL", reason="Too slow."),
            decisions=("Calibrated on\n 16 images.",),
        )
    )
    assert "| this model | top-1 accuracy | 90.0 % | 88.0 % to" in text
    assert "| the network it was made from | top-1 accuracy | 91.0 %" in text
    assert "| int8 (chosen) | int8 | onnxruntime | 1 | 0.500 ms | 0.700 ms | 0.500 MiB |" in text
    assert "| fp32 | int8 | onnxruntime | 1 | not known |  | 0.500 MiB |" in text
    assert "Chosen: the fastest.\nMeasured on a desk." in text
    assert "- Data: cats, 4 classes (digest abababababababab...)" in text
    assert "- Calibrated on 16 images.\n" in text
    assert "- It was judged FAIL: Too slow." in text
    assert "MIT. See NOTICE.txt." in text


def test_a_card_never_calls_a_prediction_or_an_agreement_what_it_is_not(tmp_path: Path) -> None:
    ctx = make_context(tmp_path)
    predicted = DeployedLatency(median_ms=0.5, origin="predicted", device="jetson")
    text = model_card(
        CardFacts(
            bundle=toy_onnx_bundle(ctx.blobs, ctx.scratch),
            target=load_target("jetson"),
            engines=(engine("int8", chosen=True, latency=predicted),),
            facts={},
            accuracy=accuracy("chosen", 0.9, metric="agreement"),
        )
    )
    assert "0.500 ms predicted" in text
    assert "Predicted for jetson." in text
    assert "Measured on" not in text
    assert "| this model | agreement with the teacher |" in text
    assert "not how often it is right" in text
    assert "Nothing was measured on the device" in text


def test_a_card_of_weights_says_what_is_not_known(tmp_path: Path) -> None:
    ctx = make_context(tmp_path)
    text = model_card(CardFacts(bundle=toy_bundle(ctx.blobs, ctx.scratch), target=None, facts={}))
    assert text.startswith("# FP32 image classifier for PyTorch\n")
    assert "Not judged: there were no images" in text
    assert "nothing in this package runs on a device yet" in text
    assert "Its accuracy is not known" in text
    assert "Not known: it was not given. See NOTICE.txt." in text
