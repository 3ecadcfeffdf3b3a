"""Training at quantized weights: where gradients are taken, what is left out, what comes out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from edgekd.core.bundle import ModelBundle
from edgekd.core.events import RecordingReporter
from edgekd.core.stage import Context, StageResult
from edgekd.data.transform import preprocess
from edgekd.errors import UserError
from edgekd.nn.build import WEIGHTS_FILE, module_from_bundle
from edgekd.quant.bucket import WeightGrid, projected, quantized
from edgekd.quant.codes import CODES_FILE, packed_bytes, read_codes
from edgekd.quant.qd_stage import QuantizedDistillConfig, QuantizedDistillStage
from edgekd.quant.quantized_distillation import QuantizedWeights, left_float, outer_layers, quantizable_layers
from edgekd.testing.harness import make_context, make_inputs, run_stage
from edgekd.testing.toy_data import toy_dataset
from edgekd.testing.toys import toy_bundle, toy_cnn

SHAPE = (3, 8, 8)
GRID = WeightGrid(bits=4)


def bound(network: nn.Module, exclude: tuple[str, ...] = ()) -> QuantizedWeights:
    weights = QuantizedWeights(GRID, exclude)
    weights.bind(network)
    return weights


def test_inside_the_block_weights_are_quantized_and_after_it_the_masters_are_back() -> None:
    network = toy_cnn()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    weights = bound(network)
    with weights.applied():
        for name in weights.names:
            assert torch.equal(network.state_dict()[name], projected(before[name], GRID))
            assert not torch.equal(network.state_dict()[name], before[name])
        for name in set(before) - set(weights.names):
            assert torch.equal(network.state_dict()[name], before[name])
    assert all(torch.equal(network.state_dict()[name], value) for name, value in before.items())


def test_steps_are_taken_at_stochastic_weights_and_the_result_is_the_nearest() -> None:
    network = toy_cnn()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    weights = QuantizedWeights(GRID, (), "stochastic")
    weights.bind(network)
    seen = []
    for _ in range(2):
        with weights.applied():
            seen.append(network.state_dict()[weights.names[0]].clone())
    assert not torch.equal(*seen)
    weights.project_()
    assert torch.equal(network.state_dict()[weights.names[0]], projected(before[weights.names[0]], GRID))


def test_masters_come_back_after_an_error() -> None:
    network = toy_cnn()
    before = [p.clone() for p in network.parameters()]
    with pytest.raises(ZeroDivisionError), bound(network).applied():
        raise ZeroDivisionError
    assert all(torch.equal(p, q) for p, q in zip(network.parameters(), before, strict=True))


def test_the_gradient_is_the_one_at_the_quantized_weights() -> None:
    network, reference = toy_cnn(), toy_cnn()
    weights = bound(network)
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            if name in weights.names:
                parameter.copy_(projected(parameter, GRID))
    images, labels = torch.randn(4, *SHAPE), torch.tensor([0, 1, 2, 3])
    with weights.applied():
        F.cross_entropy(network(images), labels).backward()
    F.cross_entropy(reference(images), labels).backward()
    for mine, other in zip(network.parameters(), reference.parameters(), strict=True):
        assert mine.grad is not None
        assert other.grad is not None
        assert torch.equal(mine.grad, other.grad)


def test_the_first_layer_that_runs_and_the_classifier_are_found_by_running() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.body, self.stem = nn.Linear(5, 4), nn.Linear(5, 5), nn.Conv2d(3, 5, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.head(self.body(self.stem(x).mean((2, 3))))
            return logits

    assert outer_layers(Backwards(), SHAPE) == ("stem", "head")
    assert outer_layers(toy_cnn(), SHAPE) == ("stem.0", "classifier")


def test_weights_that_belong_to_no_layer_are_named_with_their_share() -> None:
    attention = nn.MultiheadAttention(6, 2)
    network = nn.ModuleDict({"attention": attention, "norm": nn.LayerNorm(6)})
    network.token = nn.Parameter(torch.zeros(1, 1, 6))  # one row is no table
    share = 108 / sum(parameter.numel() for parameter in network.parameters())
    assert left_float(network) == (
        " No weights of these layers, and float32 too: attention.in_proj_weight, "
        f"{100 * share:.1f} % of all parameters."
    )
    assert left_float(toy_cnn()) == ""


def test_excluded_layers_are_excluded_by_name_weight_and_bias_alike() -> None:
    names = bound(toy_cnn(), ("stem.0", "classifier")).names
    assert names
    assert not any(name.startswith(("stem.0", "classifier")) for name in names)
    assert not any(name.endswith("bias") for name in names)


def test_an_excluded_layer_that_does_not_exist_suggests_the_near_one() -> None:
    with pytest.raises(UserError, match="Did you mean 'classifier'"):
        bound(toy_cnn(), ("clasifier",))


def test_nothing_left_to_quantize_is_an_error() -> None:
    with pytest.raises(UserError, match="Nothing is left to quantize"):
        bound(toy_cnn(), tuple(quantizable_layers(toy_cnn())))


# ---- the stage

DATA = toy_dataset(n=160)


def distilled(folder: Path, **options: object) -> tuple[StageResult, ModelBundle, Context]:
    ctx = make_context(folder, resources={"data": DATA})
    student = toy_bundle(ctx.blobs, ctx.scratch, seed=1)
    teacher = toy_bundle(ctx.blobs, ctx.scratch, seed=2)
    config = QuantizedDistillConfig.parse({"epochs": 3, "batch_size": 32, "lr": 0.05, **options}, "test")
    result = run_stage(QuantizedDistillStage(config), make_inputs(student=student, teacher=teacher), ctx)
    return result, student, ctx


@pytest.mark.parametrize(("bits", "granularity"), [(8, "channel"), (4, "channel"), (3, "channel"), (2, "bucket")])
def test_the_stages_weights_have_few_levels_and_its_codes_are_the_same_numbers(
    tmp_path: Path, bits: int, granularity: str
) -> None:
    result, _, ctx = distilled(tmp_path, bits=bits, granularity=granularity, bucket_size=64)
    state = load_file(ctx.path(result.bundle, WEIGHTS_FILE))
    packed, _ = read_codes(ctx.path(result.bundle, CODES_FILE))
    assert all(torch.equal(state[name], packed[name]) for name in state)
    conv = state["stages.0.0.conv1.weight"]
    groups = conv.flatten(1) if granularity == "channel" else conv.reshape(-1, 64)
    assert max(len(group.unique()) for group in groups) <= 2**bits
    assert len(state["classifier.weight"].unique()) > 2**bits or bits == 8
    assert result.bundle.tags == {"weights_bits": bits, "weights_granularity": granularity}
    assert f"{bits} bits per {granularity}" in result.decisions[-1]
    assert "stem.0, classifier stayed float32" in result.decisions[-1]


def test_the_packed_size_is_reported_and_close_to_the_formula(tmp_path: Path) -> None:
    result, _, ctx = distilled(tmp_path, bits=4, epochs=1)
    state = load_file(ctx.path(result.bundle, WEIGHTS_FILE))
    names = [f"{name}.weight" for name in quantizable_layers(module_from_bundle(result.bundle, ctx.blobs))][1:-1]
    coded = [quantized(state[name], GRID) for name in names]
    full = sum(value.numel() for name, value in state.items() if name not in names)
    expected = packed_bytes(full=full, coded=coded, bits=4)
    packed = ctx.path(result.bundle, CODES_FILE).stat().st_size
    header = int.from_bytes(ctx.path(result.bundle, CODES_FILE).read_bytes()[:8], "little") + 8
    assert packed - header == pytest.approx(expected, rel=0.01)
    assert result.metrics["size_mib_packed"] == packed / (1 << 20)
    assert float(str(result.metrics["size_mib_huffman"])) <= expected / (1 << 20)
    assert float(str(result.metrics["size_mib_packed"])) < float(str(result.metrics["size_mib"]))


def test_a_rerun_gives_the_same_content(tmp_path: Path) -> None:
    first, _, _ = distilled(tmp_path / "a", bits=4)
    second, _, _ = distilled(tmp_path / "b", bits=4)
    assert first.bundle.content == second.bundle.content


def test_batchnorm_statistics_are_those_of_the_quantized_weights(tmp_path: Path) -> None:
    result, _, ctx = distilled(tmp_path, bits=2, ema_decay=0.9, epochs=4)
    network = module_from_bundle(result.bundle, ctx.blobs)
    block = network.get_submodule("stages.0.0")
    seen: list[torch.Tensor] = []
    block.get_submodule("conv1").register_forward_hook(lambda _m, _a, out: seen.append(out))
    p = result.bundle.model.preprocessing
    network(torch.from_numpy(preprocess(DATA.train.images(range(len(DATA.train)), p), p)))
    norm = block.get_submodule("bn1")
    assert isinstance(norm, nn.BatchNorm2d)
    torch.testing.assert_close(norm.running_mean, seen[0].mean((0, 2, 3)), rtol=0.02, atol=0.02)


def test_progress_is_reported(tmp_path: Path) -> None:
    _, _, ctx = distilled(tmp_path, epochs=1)
    assert isinstance(ctx.reporter, RecordingReporter)
    assert any(event["event"] == "progress" for event in ctx.reporter.events)


def test_nothing_that_leaves_the_grid_may_come_later() -> None:
    later = {"prune", "distill", "sparse-distill", "differentiable-quantize"}
    assert later <= QuantizedDistillStage.never_before
