"""The Python loop runs a bundle over a folder of images and says where the time goes."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
from edgekd_runtime import Engine
from PIL import Image

from tests.runtime.bundles import write_bundle

spec = importlib.util.spec_from_file_location(
    "jetson_loop", Path(__file__).parents[2] / "examples" / "jetson" / "loop.py"
)
assert spec is not None
assert spec.loader is not None
loop = importlib.util.module_from_spec(spec)
spec.loader.exec_module(loop)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.jpg")
    (folder / "notes.txt").write_text("no image")
    return folder


def test_every_image_gets_its_class(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = write_bundle(tmp_path / "b")
    ticks = itertools.count(step=0.002)
    assert loop.main([str(bundle), str(images)], clock=lambda: next(ticks)) == 0
    said = capsys.readouterr()
    engine = Engine.load(bundle)
    wanted = [f"{path.name}\t{engine(path, top=1).label}" for path in sorted(images.glob("*.jpg"))]
    assert said.out.splitlines() == wanted
    first, last = said.err.splitlines()
    assert first == "fp32 in onnxruntime on CPUExecutionProvider"
    assert last == "median of 3: 2.00 ms decode and resize, 2.00 ms inference"


def test_a_bundle_that_does_not_run_is_an_exit_code(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert loop.main([str(write_bundle(tmp_path / "b")), str(images), "--strict"]) == 3
    assert "onnxruntime is not installed" in capsys.readouterr().err
