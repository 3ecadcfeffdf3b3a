"""The code that README.txt prints for JavaScript and for LiteRT runs as it is printed."""

from __future__ import annotations

import json
import re
import subprocess
import textwrap
from pathlib import Path

import numpy as np
import pytest

from edgekd.core.bundle import ModelBundle
from edgekd.core.stage import Context
from edgekd.export.convert import CONVERTERS
from edgekd.export.convert_stage import ConvertConfig, ConvertStage
from edgekd.export.readme import package_readme
from edgekd.quant.ptq_stage import QuantizeConfig, QuantizeStage
from edgekd.runtimes.addons import ADDONS, ONNXRUNTIME_WEB
from edgekd.runtimes.samples import random_images
from edgekd.runtimes.session import open_bundle
from edgekd.targets.load import load_target
from edgekd.testing.conformance_session import need_runtime
from edgekd.testing.harness import make_context, make_inputs, run_stage
from edgekd.testing.toy_graphs import toy_onnx_bundle
from edgekd.testing.toys import toy_bundle

IMAGE = random_images((3, 8, 8), samples=1, seed=0)


def printed(readme: str, first: str) -> str:
    """The indented lines that begin with `first`."""
    found = re.search(rf"^    {re.escape(first)}.*(?:\n(?:    .*)?)*", readme, flags=re.MULTILINE)
    assert found is not None, readme
    return textwrap.dedent(found[0])


def readme_of(bundle: ModelBundle, target: str, runtime: str) -> str:
    return package_readme(bundle, load_target(target), {"runtime": runtime, "threads": "1"})


def test_the_web_is_told_once_with_the_name_of_where_it_was_chosen(tmp_path: Path) -> None:
    ctx = make_context(tmp_path)
    text = readme_of(toy_onnx_bundle(ctx.blobs, ctx.scratch), "web", "ort-web-browser")
    assert "Chosen to run in ONNX Runtime Web in a browser" in text
    assert text.count("npm install onnxruntime-web") == 1


@pytest.mark.parametrize("scheme", ["", "weight-only"])
def test_the_code_for_javascript_runs_as_it_is_printed(scheme: str, tmp_path: Path) -> None:
    need_runtime("ort-web-node")
    ctx = make_context(tmp_path)
    bundle = toy_onnx_bundle(ctx.blobs, ctx.scratch)
    if scheme:
        stage = QuantizeStage(QuantizeConfig.parse({"scheme": scheme}, "a test"))
        bundle = run_stage(stage, make_inputs(model=bundle), ctx).bundle
    code = printed(readme_of(bundle, "web", "ort-web-node"), "import * as ort")
    assert ("disable_quant_qdq" in code) == bool(scheme)
    (tmp_path / "model.onnx").write_bytes(ctx.path(bundle, "model.onnx").read_bytes())
    (tmp_path / "node_modules").symlink_to(ADDONS[ONNXRUNTIME_WEB].folder / "node_modules")
    before = f"const pixels = Float32Array.from({IMAGE.ravel().tolist()});\n"
    (tmp_path / "main.mjs").write_text(f"{before}{code}\nconsole.log(JSON.stringify([...logits]));\n")
    done = subprocess.run(["node", "main.mjs"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    with open_bundle(bundle, ctx.blobs, "onnxruntime", threads=1) as session:
        expected = session.infer({"images": IMAGE})["logits"]
    np.testing.assert_allclose([json.loads(done.stdout)], expected, rtol=1e-3, atol=1e-4)


def litert_engine(ctx: Context) -> ModelBundle:
    need_runtime("litert")
    found = CONVERTERS.get("litert").availability()
    if not found.ok:
        pytest.skip(f"needs the converter to litert: {found.reason} ({found.install})")
    model = toy_bundle(ctx.blobs, ctx.scratch)
    return run_stage(ConvertStage(ConvertConfig(to="litert")), make_inputs(model=model), ctx).bundle


@pytest.mark.slow
def test_the_code_for_litert_runs_as_it_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ctx = make_context(tmp_path)
    bundle = litert_engine(ctx)
    (tmp_path / "model.tflite").write_bytes(ctx.path(bundle, "model.tflite").read_bytes())
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {"images": IMAGE}
    exec(printed(readme_of(bundle, "raspberry-pi-5", "litert"), "import numpy as np"), scope)
    with open_bundle(bundle, ctx.blobs, "litert", threads=1) as session:
        expected = next(iter(session.infer({bundle.inputs[0].name: IMAGE}).values()))
    np.testing.assert_allclose(np.asarray(scope["logits"]), expected, rtol=1e-4, atol=1e-5)
