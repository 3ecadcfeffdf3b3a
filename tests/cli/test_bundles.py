"""`edgekd evaluate`, `edgekd profile` and `edgekd targets`, in this process."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgekd.cli.app import exit_code_of
from edgekd.core.blobs import FolderBlobs
from edgekd.export.package import write_package
from edgekd.targets.load import load_target
from edgekd.testing.toy_graphs import toy_graph, toy_onnx_bundle

IMAGES = np.random.default_rng(0).integers(0, 256, (80, 8, 8, 3), dtype=np.uint8)
# Uneven, so that even a network that always gives one answer tells one order of the classes from another.
LABELS = np.repeat(np.arange(4), [40, 20, 12, 8])
NAMES = [f"class{number}" for number in range(4)]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The folder of a run, with the package of a toy graph made with seed 5 and with other data."""
    blobs = FolderBlobs(tmp_path / "blobs")
    (tmp_path / "scratch").mkdir()
    write_package(
        toy_onnx_bundle(blobs, tmp_path / "scratch"),
        blobs,
        tmp_path / "out" / "bundle",
        target=load_target("host"),
        versions={},
        extra={"seed": "5", "data": "0" * 64},
    )
    return tmp_path / "out"


def _evaluated(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[float, str]:
    assert exit_code_of(["evaluate", *arguments, "--format", "json"]) == 0
    captured = capsys.readouterr()
    return json.loads(captured.out)[0]["value"], captured.err


def _data(folder: Path, names: list[str], labels: np.ndarray) -> list[str]:
    path = folder / f"{names[0]}.npz"
    np.savez(path, images=IMAGES, labels=labels, classes=np.array(names))
    return ["--data", str(path)]


def test_evaluate_gives_one_accuracy_whatever_the_order_of_the_datas_classes(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    straight, _ = _evaluated([str(out), *_data(out.parent, NAMES, LABELS)], capsys)
    turned, _ = _evaluated([str(out), *_data(out.parent, NAMES[::-1], 3 - LABELS)], capsys)
    assert straight == turned


def test_evaluate_warns_of_other_data_than_the_bundle_was_made_with(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, said = _evaluated([str(out), *_data(out.parent, NAMES, LABELS)], capsys)
    warnings = [line for line in map(json.loads, said.splitlines()) if line.get("level") == "warning"]
    assert len(warnings) == 1
    assert "out: other data than the bundle was made with" in warnings[0]["text"]


def test_evaluate_refuses_classes_that_the_bundle_does_not_know(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(["evaluate", str(out), *_data(out.parent, ["ant", "bee", "cow", "dog"], LABELS)]) == 2
    assert "the model does not know the classes ant" in capsys.readouterr().err


def test_evaluate_says_what_it_assumes_of_a_bare_graph(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(toy_graph(), tmp_path / "x.onnx")
    _, said = _evaluated([str(tmp_path / "x.onnx"), *_data(tmp_path, NAMES, LABELS)], capsys)
    assert "the file carries no preprocessing" in said


def test_profile_takes_the_folder_of_a_bundle(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--runtime", "onnxruntime", "--warmup", "0", "--duration", "0.05", "--format", "json"]
    code = exit_code_of(["profile", str(out), *arguments])
    (entry,) = json.loads(capsys.readouterr().out)["entries"]
    assert entry["candidate"] == "out"
    assert entry["latency"]["p50_ms"] > 0
    assert code == (5 if entry["latency"]["inconclusive"] else 0)


def test_profile_refuses_a_fraction_of_a_thread(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(["profile", str(out), "--threads", "1.7"]) == 2
    assert "--threads '1.7': expected whole numbers" in capsys.readouterr().err


def test_targets_shows_the_name_host_beside_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(["targets"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if " host" in line]
    assert line.startswith(load_target("host").name)
