"""LiteRT engines take one image a call; 8-bit files are fed and read as integers. Against a stand-in of the library."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgekd_runtime import Engine, EngineError
from edgekd_runtime.litert import dequantized, quantized

from tests.runtime.bundles import entry, write_bundle


class Interpreter:
    """Gives the mean of the image times 1, 2, 3, 4; the "file" says shape and type."""

    def __init__(self, model_content: bytes, num_threads: int | None) -> None:
        told = json.loads(model_content)
        if told.get("broken"):
            raise ValueError("not a flatbuffer")
        dtype = np.dtype(told["dtype"]).type
        self.input = {"index": 0, "shape": np.array(told["shape"]), "dtype": dtype, "quantization": (0.05, -3)}
        self.output = {"index": 1, "shape": np.array([1, 4]), "dtype": dtype, "quantization": (0.1, 5)}

    def allocate_tensors(self) -> None: ...

    def get_input_details(self) -> list[dict[str, Any]]:
        return [self.input]

    def get_output_details(self) -> list[dict[str, Any]]:
        return [self.output]

    def set_tensor(self, index: int, value: np.ndarray) -> None:
        assert value.dtype == self.input["dtype"]
        self.value = value

    def invoke(self) -> None:
        self.mean = dequantized(self.value, self.input).mean()

    def get_tensor(self, index: int) -> np.ndarray:
        return quantized(np.float32([[1, 2, 3, 4]]) * self.mean, self.output)


@pytest.fixture(autouse=True)
def library(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = types.ModuleType("ai_edge_litert.interpreter")
    module.Interpreter = Interpreter
    package: Any = types.ModuleType("ai_edge_litert")
    package.interpreter = module
    monkeypatch.setitem(sys.modules, "ai_edge_litert", package)
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", module)


def _bundle(folder: Path, **told: Any) -> Path:
    content = json.dumps({"shape": [1, 3, 8, 8], "dtype": "float32", **told}).encode()
    engine = entry("lite", format="litert", files={"model.tflite": "model.tflite"}, runtimes=["litert"])
    return write_bundle(folder, [engine], {"model.tflite": content})


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("int8", 0.26)])
def test_batches_are_run_image_by_image(tmp_path: Path, dtype: str, tolerance: float) -> None:
    engine = Engine.load(_bundle(tmp_path / "b", dtype=dtype))
    images = np.random.default_rng(0).standard_normal((3, 3, 8, 8)).astype(np.float32)
    wanted = images.mean(axis=(1, 2, 3))[:, None] * np.arange(1, 5)
    assert np.allclose(engine.run(images), wanted, atol=tolerance)
    assert engine.info["runtime"] == "litert"


def test_integers_saturate() -> None:
    tensor = {"dtype": np.int8, "quantization": (0.5, 10)}
    assert quantized(np.float32([-1000, 0, 0.5, 1000]), tensor).tolist() == [-128, 10, 11, 127]
    assert dequantized(np.int8([-128, 10, 11]), tensor).tolist() == [-69.0, 0.0, 0.5]


@pytest.mark.parametrize(
    ("told", "message"), [({"broken": 1}, "not a flatbuffer"), ({"shape": [1, 8, 8, 3]}, r"takes \(1, 8, 8, 3\)")]
)
def test_files_that_do_not_fit_are_refused(tmp_path: Path, told: dict[str, Any], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        Engine.load(_bundle(tmp_path / "b", **told), strict=True)
