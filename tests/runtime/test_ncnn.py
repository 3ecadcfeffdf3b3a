"""ncnn engines take one image a call; with ncnn itself where it is installed, else with a stand-in."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgekd_runtime import Engine, EngineError

from tests.runtime.bundles import LABELS, SIZE, entry, write_bundle, zipped

PARAM = f"""7767517
3 3
Input        in0  0 1 in0
Pooling      pool 1 1 in0 pool 0=1 4=1
InnerProduct head 1 1 pool out0 0={len(LABELS)} 1=1 2={3 * len(LABELS)}
"""
WEIGHTS = np.random.default_rng(0).standard_normal((len(LABELS), 3)).astype(np.float32)
BIAS = np.float32([0.5, -0.5, 1, 0])
BIN = bytes(4) + WEIGHTS.tobytes() + BIAS.tobytes()  # four zero bytes: the weights are float32


class _Net:
    def __init__(self) -> None:
        self.opt = types.SimpleNamespace()

    def load_param(self, path: str) -> int:
        self.known = Path(path).read_text() == PARAM
        return 0 if self.known else -1

    def load_model(self, path: str) -> int:
        return 0 if Path(path).read_bytes() == BIN else -1

    def input_names(self) -> list[str]:
        return ["in0"] if self.known else []

    def output_names(self) -> list[str]:
        return ["out0"] if self.known else []

    def create_extractor(self) -> _Net:
        return self

    def input(self, name: str, mat: np.ndarray) -> int:
        self.mat = mat
        return 0

    def extract(self, name: str) -> tuple[int, np.ndarray]:
        return 0, WEIGHTS @ self.mat.mean(axis=(1, 2)) + BIAS


@pytest.fixture(autouse=True)
def library(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        import ncnn  # type: ignore[import-not-found]  # noqa: F401
    except ImportError:
        module: Any = types.ModuleType("ncnn")
        module.Net, module.Mat, module.__version__ = _Net, np.asarray, "stand-in"
        module.get_physical_big_cpu_count = lambda: 1
        monkeypatch.setitem(sys.modules, "ncnn", module)


def _bundle(folder: Path, param: str = PARAM) -> Path:
    names = {"model.param": "engines/n/model.param", "model.bin": "engines/n/model.bin"}
    engine = entry("n", format="ncnn", files=names, runtimes=["ncnn"])
    return write_bundle(folder, [engine], {names["model.param"]: param.encode(), names["model.bin"]: BIN})


@pytest.mark.parametrize("as_archive", [False, True])
def test_batches_are_run_image_by_image(tmp_path: Path, as_archive: bool) -> None:
    folder = _bundle(tmp_path / "b")
    engine = Engine.load(zipped(folder, tmp_path / "model.edgekd") if as_archive else folder)
    images = np.random.default_rng(1).standard_normal((3, 3, SIZE, SIZE)).astype(np.float32)
    assert np.allclose(engine.run(images), images.mean(axis=(2, 3)) @ WEIGHTS.T + BIAS, atol=1e-5)
    assert (engine.info["runtime"], engine.info["threads"]) == ("ncnn", 1)
    engine.close()


def test_a_file_that_is_no_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"ncnn .* cannot load the network"):
        Engine.load(_bundle(tmp_path / "b", "7767517\nrubbish"), strict=True)
