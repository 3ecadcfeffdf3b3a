"""Loading picks the right engine, says what it passed over and why, and computes what the runtime computes."""

from __future__ import annotations

import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from edgekd_runtime import Engine, EngineError, FallbackWarning, ImageError
from edgekd_runtime.session import MODULES

from edgekd.testing.toy_graphs import toy_graph
from tests.runtime.bundles import LABELS, SIZE, entry, graph_bytes, write_bundle, zipped

INT8 = {"model.onnx": "engines/int8/model.onnx"}


def _pixels(seed: int = 0, height: int = 20, width: int = 15) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _logits(images: np.ndarray, seed: int = 0) -> np.ndarray:
    session = onnxruntime.InferenceSession(graph_bytes(seed), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"images": images})[0])


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundle")


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """A bundle of two graphs: the chosen one for OpenVINO alone, the next one for ONNX Runtime alone."""
    engines = [
        entry("int8", files=INT8, runtimes=["openvino"], precision="int8"),
        entry("fp32", runtimes=["onnxruntime"], chosen=False),
    ]
    return write_bundle(tmp_path / "two", engines, {INT8["model.onnx"]: graph_bytes(7)})


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes libraries missing."""

    def hide(*names: str) -> None:
        for name in names:
            monkeypatch.setitem(sys.modules, name, None)

    return hide


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("as_archive", [False, True])
def test_labels_and_scores_are_those_of_the_graph(bundle: Path, tmp_path: Path, runtime: str, as_archive: bool) -> None:
    path = zipped(bundle, tmp_path / "model.edgekd") if as_archive else bundle
    with Engine.load(path, runtime=runtime) as engine:
        labels, scores = engine(_pixels(), top=2)
        wanted = _logits(engine.preprocess(_pixels()))[0]
    chances = np.exp(wanted - wanted.max()) / np.exp(wanted - wanted.max()).sum()
    order = np.argsort(-wanted)[:2]
    assert labels == tuple(LABELS[index] for index in order)
    assert np.allclose(scores, chances[order], atol=1e-5)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_batch_gives_what_its_images_give_alone(bundle: Path, runtime: str) -> None:
    images = [_pixels(seed, 10 + seed, 30 - seed) for seed in range(5)]
    with Engine.load(bundle, runtime=runtime) as engine:
        together = engine(images)
        alone = [engine(image) for image in images]
    assert [result.labels for result in together] == [result.labels for result in alone]
    assert np.allclose([r.scores for r in together], [r.scores for r in alone], atol=1e-5)
    assert together[0].label == together[0].labels[0]
    assert together[0].score == pytest.approx(float(together[0].scores[0]))


def test_outputs_are_not_overwritten_by_later_calls(bundle: Path) -> None:
    for runtime in ("onnxruntime", "openvino"):
        with Engine.load(bundle, runtime=runtime) as engine:
            first = engine.run(engine.preprocess(_pixels(1)))
            before = first.copy()
            engine.run(engine.preprocess(_pixels(2)))
            assert np.array_equal(first, before)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_graph_of_a_fixed_batch_takes_any_number_of_images(tmp_path: Path, runtime: str) -> None:
    model = toy_graph(classes=len(LABELS), size=SIZE)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 4
    path = write_bundle(
        tmp_path / "bundle",
        files={"model.onnx": model.SerializeToString()},
        input={"name": "images", "shape": [4, 3, SIZE, SIZE]},
        outputs=[{"name": "logits", "shape": [4, len(LABELS)]}],
    )
    with Engine.load(path, runtime=runtime) as engine:
        images = engine.preprocess([_pixels(seed) for seed in range(6)])
        assert np.allclose(engine.run(images), _logits(images), atol=1e-5)
        assert engine.run(images[:1]).shape == (1, len(LABELS))


def test_the_first_choice_loads_without_a_word(two: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine = Engine.load(two)
    info = engine.info
    assert (info["engine"], info["runtime"], info["chosen"], info["skipped"]) == ("int8", "openvino", True, [])
    assert info["threads"] == 1
    assert info["latency"]["origin"] == "measured"


def test_the_next_engine_is_used_with_a_warning_that_says_why(two: Path, without: Any) -> None:
    without("openvino")
    with pytest.warns(FallbackWarning, match=r"using fp32 in onnxruntime .*0.5 ms.* int8 in openvino: .*not installed"):
        engine = Engine.load(two)
    assert engine.info["engine"] == "fp32"
    assert engine.info["skipped"][0]["reason"].endswith("(pip install 'edgekd-runtime[openvino]')")


def test_a_warning_can_be_an_error(two: Path, without: Any) -> None:
    without("openvino")
    with pytest.raises(EngineError, match=r"int8 cannot be used in openvino.*strict=True"):
        Engine.load(two, strict=True)


def test_another_runtime_of_the_same_engine_is_a_fallback_too(bundle: Path, without: Any) -> None:
    without("onnxruntime")
    with pytest.warns(FallbackWarning, match=r"using fp32 in openvino \(its latency is not known\)"):
        info = Engine.load(bundle).info
    assert (info["runtime"], info["latency"]) == ("openvino", None)  # what was measured was ONNX Runtime


def test_an_engine_that_is_asked_for_is_no_fallback(two: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Engine.load(two, engine="fp32").info["engine"] == "fp32"
        assert Engine.load(two, runtime="onnxruntime").info["engine"] == "fp32"


def test_nothing_that_works_lists_every_reason(two: Path, without: Any) -> None:
    without("openvino", "onnxruntime")
    with pytest.raises(EngineError, match=r"no engine works here(.|\n)*int8 in openvino(.|\n)*fp32 in onnxruntime"):
        Engine.load(two)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"engine": "fp16"}, "no engine 'fp16'; it has: int8, fp32"),
        ({"runtime": "tensorrt"}, "nothing in it is meant for 'tensorrt', only for onnxruntime, openvino"),
        ({"runtime": "tflite"}, "This version knows: litert, ncnn, onnxruntime, openvino, tensorrt"),
        ({"threads": 0}, "at least one thread"),
    ],
)
def test_what_the_bundle_has_not_is_named(two: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        Engine.load(two, **arguments)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"format": "executorch", "runtimes": ["executorch"]}, "its Python binding needs PyTorch"),
        ({"format": "quantum", "runtimes": ["quantum"]}, "does not know the runtime 'quantum'"),
        ({"runtimes": ["ort-web-node"]}, "runs in Node.js"),
        ({"runtimes": ["ort-web-browser"]}, "runs in a browser"),
        ({"runtimes": ["onnxruntime:cuda"]}, "runs onnxruntime on the CPU only, not with cuda"),
        ({"format": "tensorrt", "runtimes": ["onnxruntime"]}, "does not run engines of the format 'tensorrt'"),
        ({"files": {"other.onnx": "model.onnx"}}, "lists no model.onnx"),
        ({"files": {"model.onnx": "bundle.json"}}, "ONNX Runtime .* cannot load the graph"),
        ({"files": {"model.onnx": "bundle.json"}, "runtimes": ["openvino"]}, "OpenVINO .* cannot load the graph"),
    ],
)
def test_an_engine_that_does_not_work_is_passed_over(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    engines = [entry("first", runtimes=["onnxruntime"]) | changes, entry("last", runtimes=["onnxruntime"])]
    with pytest.warns(FallbackWarning, match=reason):
        assert Engine.load(write_bundle(tmp_path / "b", engines)).info["engine"] == "last"


def test_weights_alone_in_int8_are_expanded_when_loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    class Options(onnxruntime.SessionOptions):  # type: ignore[misc]
        def add_session_config_entry(self, key: str, value: str) -> None:
            asked.append((key, value))
            super().add_session_config_entry(key, value)

    monkeypatch.setattr(onnxruntime, "SessionOptions", Options)
    Engine.load(write_bundle(tmp_path / "b", [entry(scheme="weight-only")]))
    assert ("session.disable_quant_qdq", "1") in asked


def test_threads_are_those_of_the_measurement_unless_told(tmp_path: Path) -> None:
    path = write_bundle(tmp_path / "b", [entry(threads=2, runtimes=["openvino"])])
    assert Engine.load(path).info["threads"] == 2
    assert Engine.load(path, threads=1).info["threads"] == 1


def test_what_run_does_not_take_is_refused(bundle: Path) -> None:
    engine = Engine.load(bundle)
    for images in (np.zeros((1, 3, 9, 9), np.float32), np.zeros((1, 3, SIZE, SIZE)), np.zeros((0, 3, SIZE, SIZE), "f")):
        with pytest.raises(ImageError, match=r"Expected float32 of shape \(N, 3, 8, 8\)"):
            engine.run(images)
    with pytest.raises(ImageError, match="empty batch"):
        engine([])


def test_a_closed_engine_says_so(bundle: Path) -> None:
    engine = Engine.load(bundle)
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine(_pixels())


def test_another_task_is_run_and_not_interpreted(tmp_path: Path) -> None:
    engine = Engine.load(write_bundle(tmp_path / "b", task="depth", labels=None))
    with pytest.raises(EngineError, match="'depth'"):
        engine(_pixels())
    assert engine.run(engine.preprocess(_pixels())).shape == (1, len(LABELS))


def test_without_names_labels_are_numbers(tmp_path: Path) -> None:
    result = Engine.load(write_bundle(tmp_path / "b", labels=None))(_pixels(), top=99)
    assert sorted(result.labels) == ["0", "1", "2", "3"]
    assert result.labels == tuple(str(index) for index in result.indices)
    assert result.scores.sum() == pytest.approx(1, abs=1e-6)


def test_threads_may_share_an_engine(bundle: Path) -> None:
    engine = Engine.load(bundle, runtime="openvino")
    images = [engine.preprocess(_pixels(seed)) for seed in range(4)]
    wanted = [engine.run(image) for image in images]
    wrong: list[int] = []

    def work(index: int) -> None:
        for _ in range(30):
            if not np.array_equal(engine.run(images[index]), wanted[index]):
                wrong.append(index)

    workers = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []


def test_every_runtime_states_how_it_is_installed() -> None:
    import importlib

    for name, module in MODULES.items():
        found = importlib.import_module(module)
        assert "pip install" in found.INSTALL, name
        assert found.FORMATS, name
