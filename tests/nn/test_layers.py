from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edgekd.nn.rebuild import module_from_program
from tests.nn.zoo import exported, images, randomised


class Around(nn.Module):
    """A layer between two steps that keep it from being the whole graph."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x * 2.0) + 1.0
        return out


LAYERS = [
    nn.Conv2d(3, 4, (3, 1), (2, 1), (1, 0), bias=False),
    nn.Conv2d(3, 6, 3, dilation=2, groups=3, padding=2),
    nn.Linear(8, 5, bias=False),
    nn.BatchNorm2d(3, affine=False),
    nn.GroupNorm(3, 3),
    nn.LayerNorm(8, eps=1e-3),
    nn.LayerNorm((8, 8), elementwise_affine=False),
    nn.ReLU(),
    nn.ReLU6(),
    nn.Hardtanh(-2.0, 0.5),
    nn.Hardswish(),
    nn.Hardsigmoid(),
    nn.SiLU(),
    nn.Sigmoid(),
    nn.GELU(approximate="tanh"),
    nn.LeakyReLU(0.3),
    nn.Dropout(0.4),
    nn.Dropout2d(0.4),
    nn.AdaptiveAvgPool2d((2, 1)),
    nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    nn.MaxPool2d(3, 2, 1, ceil_mode=True),
    nn.MaxPool2d(2),
]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: str(layer)[:40])
def test_every_layer_comes_back_as_itself(layer: nn.Module) -> None:
    module = randomised(Around(layer))
    rebuilt = module_from_program(exported(module, images(2)))
    assert type(rebuilt.get_submodule("layer")) is type(layer)
    assert torch.equal(rebuilt(images()), module(images()))
    torch.manual_seed(0)
    trained = module.train()(images())
    torch.manual_seed(0)
    assert torch.equal(rebuilt.train()(images()), trained)


def test_a_weight_that_is_computed_stays_an_operator() -> None:
    module = randomised(Around(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3))))
    rebuilt = module_from_program(exported(module, images(2)))
    assert not any(isinstance(part, nn.Conv2d) for part in rebuilt.modules())
    assert torch.equal(rebuilt(images()), module(images()))
    assert rebuilt.state_dict().keys() == module.state_dict().keys()


def test_a_transposed_convolution_stays_an_operator() -> None:
    module = randomised(Around(nn.ConvTranspose2d(3, 4, 2, 2)))
    rebuilt = module_from_program(exported(module, images(2)))
    assert torch.equal(rebuilt(images()), module(images()))
