from __future__ import annotations

import pytest
import torch
from torch import nn

from edgekd.nn.count import count_macs, count_params, layer_costs
from edgekd.testing.toys import toy_cnn
from tests.nn.zoo import PaddedShortcut, Tokens


def only(module: nn.Module, shape: tuple[int, int, int] = (4, 8, 8)):
    costs = layer_costs(module, shape)
    assert len(costs) == 1
    return costs[0]


@pytest.mark.parametrize(
    ("layer", "kind", "macs"),
    [
        (nn.Conv2d(4, 6, 3, padding=1), "conv", 6 * 64 * 4 * 9),
        (nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False), "conv", 6 * 16 * 4 * 9),
        (nn.Conv2d(4, 8, 1, groups=2), "conv", 8 * 64 * 2),
        (nn.Conv2d(4, 4, 3, padding=1, groups=4), "depthwise", 4 * 64 * 9),
        (nn.ConvTranspose2d(4, 6, 2, stride=2), "conv", 4 * 64 * 6 * 4),
        (nn.ConvTranspose2d(4, 4, 3, stride=2), "conv", 4 * 64 * 4 * 9),
        (nn.BatchNorm2d(4), "norm", 0),
        (nn.ReLU(), "activation", 0),
        (nn.MaxPool2d(2), "pool", 0),
        (nn.Linear(8, 5), "linear", 32 * 8 * 5),
    ],
)
def test_one_layer_costs_what_its_formula_says(layer: nn.Module, kind: str, macs: int) -> None:
    cost = only(layer)
    assert (cost.kind, cost.macs) == (kind, macs)
    assert cost.params == count_params(layer)
    assert cost.activations == 4 * 64 + layer.eval()(torch.zeros(1, 4, 8, 8)).numel()


def test_functional_operations_are_seen_and_named_after_the_code_that_calls_them() -> None:
    costs = {cost.name: cost for cost in layer_costs(PaddedShortcut(), (3, 8, 8))}
    assert costs["add"].kind == "add"
    assert costs["relu"].kind == "activation"
    assert costs["mean"].kind == "pool"
    assert costs["conv1"].kind == "conv"
    assert costs["constant_pad_nd"].kind == "other"
    assert "slice" not in costs


def test_attention_counts_both_of_its_products() -> None:
    attention = [cost for cost in layer_costs(Tokens(), (3, 8, 8)) if "attention" in cost.name]
    # 2 heads, 4 x 4 pairs of tokens, width 4: Q K^T and the product with V.
    assert [cost.macs for cost in attention] == [2 * 16 * 4 * 2]


def test_a_bare_parameter_counts_where_it_is_used() -> None:
    costs = layer_costs(Tokens(), (3, 8, 8))
    assert sum(cost.params for cost in costs) == count_params(Tokens())


def test_a_norm_folds_into_a_convolution_and_an_activation_into_both() -> None:
    fused = {cost.name: cost.fused for cost in layer_costs(toy_cnn(), (3, 8, 8))}
    assert fused["stem.1"]
    assert fused["stem.2"]
    assert not fused["stem.0"]
    assert not fused["stages.0.0.add"]


def test_a_norm_in_front_of_everything_cannot_be_folded() -> None:
    first, second, _ = layer_costs(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 1)), (3, 4, 4))
    assert not first.fused
    assert second.fused


def test_a_layer_norm_is_never_folded() -> None:
    costs = layer_costs(Tokens(), (3, 8, 8))
    assert [cost.fused for cost in costs if cost.name == "norm"] == [False]


def test_a_layer_that_runs_twice_is_listed_twice_and_stored_once() -> None:
    layer = nn.Conv2d(3, 3, 1)
    module = nn.Sequential(layer, layer)
    assert sum(cost.params for cost in layer_costs(module, (3, 4, 4))) == 2 * count_params(module)


def test_the_sum_over_a_network_is_the_sum_of_its_layers() -> None:
    stem, stage1, stage2, shortcut = 3 * 8 * 9 * 64, 2 * 8 * 8 * 9 * 64, (8 + 16) * 16 * 9 * 16, 8 * 16 * 16
    assert count_macs(toy_cnn(), (3, 8, 8)) == stem + stage1 + stage2 + shortcut + 16 * 4


def test_counting_leaves_the_module_as_it_was() -> None:
    module = toy_cnn().train()
    before = module.stem[1].running_mean.clone()
    layer_costs(module, (3, 8, 8))
    assert module.training
    assert torch.equal(before, module.stem[1].running_mean)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
