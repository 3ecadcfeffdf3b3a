from __future__ import annotations

import textwrap
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgekd.core.stage import StageResult
from edgekd.errors import BuildFailed
from edgekd.export import executorch
from edgekd.export.convert import Conversion
from edgekd.export.convert_stage import ConvertConfig, ConvertStage
from edgekd.export.executorch import Operations, exported, quantized
from edgekd.export.executorch_forms import plain_attention
from edgekd.export.package import write_package
from edgekd.runtimes.executorch_layers import arithmetic, layers_from_events
from edgekd.runtimes.samples import Samples, bundle_from_samples, random_images
from edgekd.runtimes.session import RUNTIMES
from edgekd.targets.load import load_target
from edgekd.testing.conformance_session import need_runtime
from edgekd.testing.harness import make_context, make_inputs, run_stage
from edgekd.testing.toys import toy_bundle

pytestmark = pytest.mark.needs("executorch")
IMAGES = random_images((3, 8, 8), samples=4, seed=1)


def test_attention_without_a_mask_is_two_products_and_a_softmax() -> None:
    class Attention(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.scaled_dot_product_attention(x, x * 2, x + 1)

    program = exported(Attention(), IMAGES)
    called = " ".join(str(node.target) for node in program.graph.nodes)
    assert "scaled_dot_product_attention" not in called
    assert "softmax" in called
    assert "where" not in called
    found = program.module()(torch.from_numpy(IMAGES[:1]))
    np.testing.assert_allclose(found, Attention()(torch.from_numpy(IMAGES[:1])), rtol=1e-5, atol=1e-6)


def test_attention_with_a_mask_is_left_to_torch() -> None:
    q = torch.zeros(1, 1, 2, 2)
    assert plain_attention(q, q, q, torch.zeros(2, 2)) is NotImplemented
    assert plain_attention(q, q, q, is_causal=True) is NotImplemented


class Bounded(nn.Module):
    """Layers behind which values are bounded in four ways; channels differ much in size, so the bound matters."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8)
        self.third, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, 4)
        with torch.no_grad():
            for layer in (self.first, self.second, self.third):
                layer.weight *= torch.logspace(0, 2, 8).reshape(-1, 1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.relu6(self.first(x))
        x = nn.functional.hardtanh(self.second(x), 0.0, 6.0)
        x = torch.clamp(self.third(x), -1, 6)
        logits: Tensor = self.head(x.mean((2, 3)))
        return nn.functional.hardtanh(logits, -4.0, 4.0)


def test_bounds_are_hardtanh_and_pooling_keeps_its_axes() -> None:
    program = exported(Bounded().eval(), IMAGES)
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert called.count("aten.hardtanh.default") == 4
    assert not {"aten.relu6.default", "aten.clamp.default"} & set(called)
    (mean,) = (node for node in program.graph.nodes if str(node.target) == "aten.mean.dim")
    assert mean.args[2] is True
    with torch.no_grad():
        found, expected = (module(torch.from_numpy(IMAGES[:1])) for module in (program.module(), Bounded().eval()))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_what_no_form_covers_is_left_to_torch() -> None:
    class Others(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.clamp(min=0.1).mean((1, 2)) + x.mean((2, 3), keepdim=True).sum()

    program = exported(Others(), IMAGES)
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert "aten.hardtanh.default" not in called
    found = program.module()(torch.from_numpy(IMAGES[:1]))
    np.testing.assert_allclose(found, Others()(torch.from_numpy(IMAGES[:1])), rtol=1e-5)


def test_values_are_rounded_behind_a_bound_and_not_before_it() -> None:
    need_runtime("executorch")
    module = Bounded().eval()
    rounded = quantized(exported(module, IMAGES), IMAGES)
    for node in rounded.graph.nodes:
        if str(node.target) == "aten.hardtanh.default":
            assert str(node.args[0].target) in ("aten.conv2d.default", "aten.linear.default")
            assert {str(reader.target) for reader in node.users} == {"quantized_decomposed.quantize_per_tensor.default"}
    images = torch.from_numpy(IMAGES)
    with torch.no_grad():
        expected = module(images)
        found = torch.cat([rounded.module()(image[None]) for image in images])
    assert 20 * torch.log10(expected.norm() / (expected - found).norm()) > 30


def test_a_network_that_branches_on_its_input_is_refused() -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(BuildFailed, match="Branching could not be traced for ExecuTorch"):
        exported(Branching(), IMAGES)


def test_what_is_left_to_portable_kernels_is_said() -> None:
    clean = Operations(20, 1, Counter())
    assert clean.decisions == ()
    mixed = Operations(20, 3, Counter({"native_layer_norm": 4, "expand_copy": 2}))
    (said,) = mixed.decisions
    assert "20 operations in 3 parts; 6 are left" in said
    assert "4 native_layer_norm, 2 expand_copy" in said
    assert mixed.metrics == {"xnnpack_operations": 20, "xnnpack_parts": 3, "portable_operations": 6}


def event(name: str, *times: float, delegated: bool = True) -> SimpleNamespace:
    return SimpleNamespace(name=name, is_delegated_op=delegated, perf_data=SimpleNamespace(raw=list(times)))


def test_events_become_layers_without_what_encloses_them() -> None:
    layers = layers_from_events(
        [
            event("native_call_native_layer_norm.out", 9.0, 0.4, 0.2, 0.3, delegated=False),
            event("OPERATOR_CALL", 9.0, 0.5, 0.5, 0.5, delegated=False),
            event("Convolution (NHWC, QC8) IGEMM #2", 9.0, 1.0, 3.0, 2.0),
            event("DELEGATE_CALL", 9.0, 4.0, 4.0, 4.0, delegated=False),
        ],
        3,
        quantized=True,
    )
    assert [(n.op, n.provider, n.arithmetic, n.median_ms) for n in layers] == [
        ("native_layer_norm", "portable", "float", 0.3),
        ("Convolution", "XnnpackBackend", "int8", 2.0),
    ]


@pytest.mark.parametrize(
    ("kernel", "quantized", "said"),
    [
        ("Fully Connected (NC, QS8, QC8W) GEMM", True, "int8"),
        ("Max Pooling (NHWC, S8)", True, "int8"),
        ("Convolution (NHWC, F32) DWConv", True, "float"),
        ("Add (ND)", False, "float"),
        ("Add (ND)", True, "other"),
        ("Convert (NC)", True, "conversion"),
        ("Transpose (ND, X32)", False, "conversion"),
        ("Static Reshape (NC)", False, "other"),
    ],
)
def test_the_arithmetic_is_read_from_the_name_of_the_kernel(kernel: str, quantized: bool, said: str) -> None:
    assert arithmetic(kernel, quantized=quantized) == said


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> tuple[StageResult, Path, float]:
    need_runtime("executorch")
    ctx = make_context(tmp_path_factory.mktemp("int8"))
    model = toy_bundle(ctx.blobs, ctx.scratch)
    samples = bundle_from_samples(
        Samples(IMAGES, None, "real"), preprocessing=model.model.preprocessing, source="a test", blobs=ctx.blobs,
        scratch=ctx.scratch,
    )  # fmt: skip
    stage = ConvertStage(ConvertConfig(to="executorch", precision="int8"))
    result = run_stage(stage, make_inputs(model=model, samples=samples), ctx)
    layers = RUNTIMES.get("executorch").layers(result.bundle, ctx.blobs, {"images": IMAGES[:1]}, threads=1, calls=3)
    assert layers is not None
    kernels = [layer for layer in layers.layers if layer.op in ("Convolution", "Fully Connected")]
    folder = ctx.scratch / "out"
    write_package(result.bundle, ctx.blobs, folder, target=load_target("raspberry-pi-5"), versions={}, extra={})
    return result, folder, sum(layer.arithmetic == "int8" for layer in kernels) / len(kernels)


@pytest.mark.slow
def test_int8_is_computed_in_int8_and_near_the_model(int8: tuple[StageResult, Path, float]) -> None:
    result, _, share = int8
    assert result.bundle.tags["precision"] == "int8"
    assert result.bundle.tags["scheme"] == "xnnpack"
    assert 20 < result.metrics["sqnr_db"] < 80  # type: ignore[operator]
    assert result.metrics["portable_operations"] == 0
    assert result.metrics["xnnpack_parts"] == 1
    assert share == 1.0


@pytest.mark.slow
def test_the_readme_s_code_runs_as_it_is_printed(
    int8: tuple[StageResult, Path, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder, _ = int8
    monkeypatch.chdir(folder)
    snippet = (folder / "README.txt").read_text().split("64-bit Arm):\n\n")[1].split("\n\n")[0]
    names = {"images": IMAGES}
    exec(textwrap.dedent(snippet), names)
    assert tuple(names["logits"].shape) == (1, 4)


@pytest.mark.slow
def test_an_operator_outside_core_aten_is_named_with_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need_runtime("executorch")

    class Special(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.lgamma(x.abs() + 1)

    monkeypatch.setattr(executorch, "module_from_bundle", lambda *_: Special())
    job = Conversion(source=None, blobs=None, precision="fp32", images=IMAGES, scratch=tmp_path)  # type: ignore[arg-type]
    with pytest.raises(BuildFailed, match=r"has no aten::lgamma at test_executorch\.py:\d+ .*Core ATen") as caught:
        executorch.CONVERTER.convert(job)
    assert all(name in str(caught.value.hint) for name in ("onnxruntime, openvino", "ncnn", "litert"))
    assert "executorch" not in str(caught.value.hint)
    assert not list(tmp_path.iterdir())
