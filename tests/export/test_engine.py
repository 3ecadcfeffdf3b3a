from __future__ import annotations

from pathlib import Path

import pytest

from edgekd.errors import DeviceUnavailable, UserError
from edgekd.export.engine import BuildConfig, BuildStage, build_command
from edgekd.runtimes.session import RUNTIMES
from edgekd.targets.load import load_target
from edgekd.testing.harness import make_context, make_inputs, run_stage
from edgekd.testing.toy_graphs import toy_onnx_bundle


def test_without_a_gpu_the_build_says_what_is_missing_before_any_work(tmp_path: Path) -> None:
    if RUNTIMES.get("tensorrt").availability().ok:
        pytest.skip("TensorRT works on this machine")
    ctx = make_context(tmp_path)
    model = toy_onnx_bundle(ctx.blobs, ctx.scratch)
    with pytest.raises(DeviceUnavailable, match="only be built on the device"):
        run_stage(BuildStage(BuildConfig()), make_inputs(model=model), ctx)


def test_a_scheme_that_tensorrt_does_not_read_is_refused(tmp_path: Path) -> None:
    ctx = make_context(tmp_path)
    model = toy_onnx_bundle(ctx.blobs, ctx.scratch).model_copy(
        update={"tags": {"precision": "int8", "scheme": "ort-u8s8"}}
    )
    with pytest.raises(UserError, match="does not take the quantization scheme 'ort-u8s8'"):
        run_stage(BuildStage(BuildConfig()), make_inputs(model=model), ctx)


@pytest.mark.parametrize(
    ("precision", "allowed"), [("fp32", ""), ("fp16", " --fp16"), ("int8", " --int8 --fp16")], ids=str
)
def test_the_command_holds_the_shapes_and_the_permissions(tmp_path: Path, precision: str, allowed: str) -> None:
    ctx = make_context(tmp_path)
    model = toy_onnx_bundle(ctx.blobs, ctx.scratch).model_copy(update={"tags": {"precision": precision}})
    assert build_command(load_target("jetson"), model, max_batch=4) == (
        "trtexec --onnx=model.onnx --saveEngine=model.engine --minShapes=images:1x3x8x8 --optShapes=images:1x3x8x8 "
        "--maxShapes=images:4x3x8x8" + allowed
    )


def test_sparse_weights_are_offered_sparse_kernels(tmp_path: Path) -> None:
    ctx = make_context(tmp_path)
    tags = {"precision": "fp16", "sparsity": "2:4"}
    model = toy_onnx_bundle(ctx.blobs, ctx.scratch).model_copy(update={"tags": tags})
    assert build_command(load_target("jetson"), model).endswith("--fp16 --sparsity=enable")


def test_a_target_without_tensorrt_has_no_build_command(tmp_path: Path) -> None:
    ctx = make_context(tmp_path)
    with pytest.raises(UserError, match="does not run TensorRT; it runs onnxruntime"):
        build_command(load_target("x86-cpu"), toy_onnx_bundle(ctx.blobs, ctx.scratch))
