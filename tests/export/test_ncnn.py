from __future__ import annotations

import stat
import textwrap
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor, nn

from edgekd.core.stage import Context, StageResult
from edgekd.errors import BuildFailed
from edgekd.export import ncnn
from edgekd.export.convert import Conversion
from edgekd.export.convert_stage import ConvertConfig, ConvertStage
from edgekd.export.ncnn import NcnnLayer, layers_of_param
from edgekd.export.package import write_package
from edgekd.runtimes.engines.ncnn_network import arithmetic
from edgekd.runtimes.samples import random_images
from edgekd.runtimes.session import open_bundle
from edgekd.targets.load import load_target
from edgekd.testing.conformance_session import need_runtime
from edgekd.testing.harness import make_context, make_inputs, run_stage
from edgekd.testing.toys import toy_bundle, toy_cnn

IMAGES = random_images((3, 8, 8), samples=2, seed=1)


def job(folder: Path) -> Conversion:
    return Conversion(source=None, blobs=None, precision="fp32", images=IMAGES, scratch=folder)  # type: ignore[arg-type]


def standing_in(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch, module: nn.Module | None = None) -> None:
    """Puts a shell script in the place of pnnx, and a module in that of the bundle's."""
    path = folder / "pnnx"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(ncnn, "program", lambda: path)
    monkeypatch.setattr(ncnn, "module_from_bundle", lambda *_: module or toy_cnn())


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo a line; echo the last line >&2; exit 3", r"pnnx failed \(code 3\): the last line"),
        ("kill -6 $$", r"pnnx crashed \(signal 6\)"),
        ("exit 0", "pnnx wrote no network: model.ncnn.param cannot be read"),
        ("echo garbage > model.ncnn.param; echo 1 >> model.ncnn.param", "begins with 'garbage', not with 7767517"),
    ],
)
def test_a_pnnx_that_fails_is_said_with_the_end_of_its_log(
    script: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    standing_in(tmp_path, script, monkeypatch)
    with pytest.raises(BuildFailed, match=said):
        ncnn.CONVERTER.convert(job(tmp_path))


def test_a_pnnx_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    standing_in(tmp_path, "exec sleep 60", monkeypatch)
    monkeypatch.setattr(ncnn, "LIMIT_S", 0.2)
    with pytest.raises(BuildFailed, match="did not finish within 0 s"):
        ncnn.CONVERTER.convert(job(tmp_path))


def test_a_network_that_branches_on_its_input_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    standing_in(tmp_path, "exit 0", monkeypatch, Branching())
    with pytest.raises(BuildFailed, match="Branching could not be traced for ncnn"):
        ncnn.CONVERTER.convert(job(tmp_path))


def test_a_param_lists_its_layers(tmp_path: Path) -> None:
    (tmp_path / "x.param").write_text("7767517\n2 2\nInput in0 0 1 in0\nConvolution conv_1 1 1 in0 1 0=16\n")
    assert list(layers_of_param(tmp_path / "x.param")) == [
        NcnnLayer("Input", "in0"),
        NcnnLayer("Convolution", "conv_1"),
    ]


@pytest.mark.needs("ncnn")
def test_a_layer_that_ncnn_lacks_is_named_before_the_arithmetic_around_it(tmp_path: Path) -> None:
    need_runtime("ncnn")
    layers = [NcnnLayer("pnnx.Expression", "expr_1"), NcnnLayer("Convolution", "conv_1"), NcnnLayer("torch.cdist", "d")]
    with pytest.raises(BuildFailed, match=r"ncnn has no torch\.cdist at d \(TorchScript of .*\(2 layers in all\)"):
        ncnn._require_layers(layers)
    ncnn._require_layers(layers[1:2])


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> tuple[StageResult, StageResult, Context]:
    need_runtime("ncnn")
    if not ncnn.CONVERTER.availability().ok:
        pytest.skip(f"needs pnnx: {ncnn.INSTALL}")
    ctx = make_context(tmp_path_factory.mktemp("ncnn"))
    model = toy_bundle(ctx.blobs, ctx.scratch)
    whole, halved = (
        run_stage(ConvertStage(ConvertConfig(to="ncnn", precision=precision)), make_inputs(model=model), ctx)
        for precision in ("fp32", "fp16")
    )
    return whole, halved, ctx


@pytest.mark.needs("ncnn")
def test_fp16_halves_the_weights_and_says_what_it_ran_in(
    half: tuple[StageResult, StageResult, Context],
) -> None:
    whole, halved, _ = half
    assert halved.metrics["size_mib"] < 0.6 * float(str(whole.metrics["size_mib"]))  # type: ignore[operator]
    assert whole.metrics["sqnr_db"] > halved.metrics["sqnr_db"] > 50  # type: ignore[operator]
    assert halved.bundle.tags["precision"] == "fp16"
    full = "ncnn computed in float32 on this CPU: one that computes in float16 rounds more." in halved.decisions
    assert full is (arithmetic(half=True) == "float32")


@pytest.mark.needs("ncnn")
def test_the_readme_s_code_runs_as_it_is_printed(
    half: tuple[StageResult, StageResult, Context], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _, ctx = half
    folder = tmp_path / "out"
    write_package(whole.bundle, ctx.blobs, folder, target=load_target("raspberry-pi-5"), versions={}, extra={})
    monkeypatch.chdir(folder)
    snippet = (folder / "README.txt").read_text().split("same names:\n\n")[1].split("\n\n")[0]
    names = {"images": IMAGES}
    exec(textwrap.dedent(snippet), names)
    with open_bundle(whole.bundle, ctx.blobs, "ncnn") as session:
        np.testing.assert_allclose(names["logits"], session.infer({"images": IMAGES})["logits"][0], atol=1e-5)
