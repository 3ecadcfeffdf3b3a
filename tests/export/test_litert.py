"""The converter to LiteRT: its process, its answers, and the real tools where their environment is at hand."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.stage import StageResult
from edgekd.errors import BuildFailed, DeviceUnavailable
from edgekd.export import litert
from edgekd.export.convert import Conversion
from edgekd.export.convert_stage import ConvertConfig, ConvertStage
from edgekd.export.litert import CALIBRATION_IMAGES, CONVERTER, run_program
from edgekd.export.litert_program import Files, operator_of, place_of
from edgekd.runtimes.addons import ADDONS, LITERT_CONVERTER, venv_python
from edgekd.runtimes.samples import Samples, bundle_from_samples, random_images
from edgekd.runtimes.session import RUNTIMES, open_bundle
from edgekd.testing.harness import make_context, make_inputs, run_stage
from edgekd.testing.toys import toy_bundle

READY = CONVERTER.availability().ok and RUNTIMES.get("litert").availability().ok
needs_litert = pytest.mark.skipif(
    not READY, reason="needs ai-edge-litert and `edgekd doctor --install litert-converter`"
)


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment whose interpreter is a script: it writes what the test put in `answer`, and what it was asked."""
    monkeypatch.setenv("EDGEKD_ADDONS", str(tmp_path / "addons"))
    part = ADDONS[LITERT_CONVERTER]
    python = venv_python(part.folder)
    python.parent.mkdir(parents=True)
    (part.folder / part.proof).touch()
    python.write_text(
        f"#!{sys.executable}\n"
        "import json, os, pathlib, sys\n"
        "asked = json.loads(pathlib.Path(sys.argv[-1]).read_text())\n"
        "here = pathlib.Path(__file__).parent\n"
        "(here / 'asked.json').write_text(json.dumps([sys.argv[1:], asked, os.getcwd()]))\n"
        "pathlib.Path(asked['out']).write_bytes(b'a model')\n"
        "pathlib.Path(asked['answer']).write_text((here / 'answer').read_text())\n"
    )
    python.chmod(0o755)
    return python.parent


def converted(folder: Path, precision: str = "fp32", images: int = 2) -> litert.Converted:
    ctx = make_context(folder / "context")
    scratch = folder / "scratch"
    scratch.mkdir()
    return CONVERTER.convert(
        Conversion(
            source=toy_bundle(ctx.blobs, ctx.scratch),
            blobs=ctx.blobs,
            precision="int8" if precision == "int8" else "fp32",
            images=random_images((3, 8, 8), samples=images, seed=0),
            scratch=scratch,
        )
    )


def test_the_program_gets_the_model_and_no_part_of_this_environment(tmp_path: Path, environment: Path) -> None:
    (environment / "answer").write_text(json.dumps({"version": "0.10.0", "torch": "2.14.1"}))
    made = converted(tmp_path, "int8", images=CALIBRATION_IMAGES + 5)
    arguments, asked, folder = json.loads((environment / "asked.json").read_text())
    assert arguments[:2] == ["-I", str(litert.PROGRAM)]
    assert folder == str(tmp_path / "scratch")
    assert ModelBundle.from_json(asked["bundle"]).kind is BundleKind.TORCH
    assert all(Path(path).is_file() for path in asked["files"].values())
    assert np.load(asked["images"]).shape == (CALIBRATION_IMAGES, 3, 8, 8)
    assert made.files["model.tflite"].read_bytes() == b"a model"
    assert made.scheme == "litert-s8"
    assert "litert-torch 0.10.0 converted it, with its own PyTorch 2.14.1" in made.decisions[0]


def test_a_store_with_a_relative_path_is_found_by_the_program(
    tmp_path: Path, environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (environment / "answer").write_text(json.dumps({"version": "0.10.0", "torch": "2.14.1"}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGEKD_ADDONS", "addons")
    made = converted(Path())
    _, asked, _ = json.loads((environment / "asked.json").read_text())
    assert all(Path(asked[name]).is_absolute() for name in ("images", "scratch", "out", "answer", "package"))
    assert all(Path(path).is_absolute() for path in asked["files"].values())
    assert made.files["model.tflite"].is_file()


def test_a_missing_operator_is_named_with_what_else_could_run_the_model(tmp_path: Path, environment: Path) -> None:
    answer = {"version": "1", "torch": "2.14.1", "error": "Lowering not found: aten.x", "operator": "aten.x"}
    answer["place"] = "line 3 of net.py, in forward"
    (environment / "answer").write_text(json.dumps(answer))
    with pytest.raises(
        BuildFailed, match=r"no aten\.x at line 3 of net\.py, in forward \(torch 2\.14\.1 \(ATen\)\).*\n.*onnxruntime"
    ):
        converted(tmp_path)


def test_another_refusal_is_told_in_the_tools_words(tmp_path: Path, environment: Path) -> None:
    answer = {"version": "1", "torch": "2.14.1", "error": "ValueError: dynamic shapes", "operator": ""}
    (environment / "answer").write_text(json.dumps(answer))
    with pytest.raises(BuildFailed, match="cannot convert the model: ValueError: dynamic shapes"):
        converted(tmp_path)


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("print('no room left'); raise SystemExit(3)", "ended with code 3. Its last words: no room left"),
        ("import os; os.kill(os.getpid(), 11)", r"crashed \(signal 11\)"),
        ("import time; time.sleep(60)", "did not end within 1 s and was killed"),
    ],
)
def test_a_program_that_fails_crashes_or_hangs_is_a_failed_build(program: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(BuildFailed, match=message):
        run_program([sys.executable, "-c", program], tmp_path, limit_s=1)


def test_an_environment_without_interpreter_says_how_to_make_it_again(tmp_path: Path) -> None:
    with pytest.raises(BuildFailed, match=r"does not start.*\n.*doctor --install litert-converter"):
        run_program([str(tmp_path / "python")], tmp_path)


def test_without_its_environment_the_converter_names_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEKD_ADDONS", str(tmp_path / "none"))
    assert CONVERTER.availability().install == "edgekd doctor --install litert-converter"
    ctx = make_context(tmp_path)
    stage = ConvertStage(ConvertConfig(to="litert"))
    with pytest.raises(DeviceUnavailable, match="litert-torch is not in"):
        stage.requires(make_inputs(model=toy_bundle(ctx.blobs, ctx.scratch)), ctx)


RECORDED = (  # litert-torch 0.10.0
    "RuntimeError: Lowering not found: aten.special_bessel_j0.default\n\nWhile executing %special_bessel_j0 : "
    "[num_users=1] = call_function[target=torch.ops.aten.special_bessel_j0.default](args = (%x,), kwargs = {})\n"
    'Original traceback:\nFile "net.py", line 3, in forward\n    def forward(self,x): return '
    "torch.special.bessel_j0(x).mean((2,3))\nUse tlparse to see full graph."
)


def test_operator_and_place_are_read_from_the_tools_message() -> None:
    assert operator_of(RECORDED) == "aten.special_bessel_j0.default"
    assert place_of(RECORDED) == "line 3 of net.py, in forward"
    assert operator_of("ValueError: shapes differ") == place_of("ValueError: shapes differ") == ""


@pytest.mark.slow
@needs_litert
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_real_converter_gives_an_engine_that_agrees(precision: str, tmp_path: Path) -> None:
    result = _really_converted(tmp_path, precision)
    assert result.bundle.format == "litert"
    assert float(str(result.metrics["sqnr_db"])) > (80 if precision == "fp32" else 10)  # untrained


def _really_converted(folder: Path, precision: str) -> StageResult:
    ctx = make_context(folder)
    model = toy_bundle(ctx.blobs, ctx.scratch)
    images = random_images((3, 8, 8), samples=16, seed=0)
    samples = bundle_from_samples(
        Samples(images=images, labels=None, origin="synthetic"),
        preprocessing=model.model.preprocessing,
        source="a test",
        blobs=ctx.blobs,
        scratch=ctx.scratch,
    )
    stage = ConvertStage(ConvertConfig.parse({"to": "litert", "precision": precision}, "a test"))
    result = run_stage(stage, make_inputs(model=model, samples=samples), ctx)
    with open_bundle(result.bundle, ctx.blobs, "litert", threads=1) as session:
        found = session.infer({model.inputs[0].name: images})[model.outputs[0].name]
        assert session.environment()["provider"] == "XNNPACK"
        assert session.environment()["input_type"] == ("float32" if precision == "fp32" else "int8")
    assert found.shape == (16, 4)
    return result


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel has to tell")
def test_the_program_does_not_outlive_a_process_that_is_killed(tmp_path: Path) -> None:
    place = tmp_path / "pid"
    program = f"import os, pathlib, time; pathlib.Path({str(place)!r}).write_text(str(os.getpid())); time.sleep(60)"
    code = (
        "import sys; from pathlib import Path; from edgekd.export.litert import run_program\n"
        f"run_program([sys.executable, '-c', {program!r}], Path({str(tmp_path)!r}))"
    )
    asking = subprocess.Popen([sys.executable, "-c", code])
    end = time.monotonic() + 60
    while not (place.exists() and place.read_text()) and time.monotonic() < end:
        time.sleep(0.05)
    child = psutil.Process(int(place.read_text()))
    asking.kill()
    asking.wait()
    psutil.wait_procs([child], timeout=10)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_the_program_adds_no_file_to_those_it_was_given(tmp_path: Path) -> None:
    files = Files({"digest": str(tmp_path / "weights.safetensors")})
    assert files.path("digest") == tmp_path / "weights.safetensors"
    with pytest.raises(PermissionError, match=r"read-only; .*other\.bin cannot be added"):
        files.add(tmp_path / "other.bin")
