from __future__ import annotations

import torch
from torch import nn

from edgekd.nn.count import count_params, layer_costs
from edgekd.nn.models.repvgg import RepVggBlock, repvgg_from_kwargs
from edgekd.nn.reparam import reparameterised
from tests.nn.zoo import images, randomised

SPEC = {"depths": [2, 1], "widths": [4, 4, 8], "strides": [1, 1, 2], "classes": 5}


def test_the_identity_branch_is_there_only_where_the_shapes_agree() -> None:
    module = repvgg_from_kwargs(SPEC)
    blocks = [part for part in module.modules() if isinstance(part, RepVggBlock)]
    assert [block.bn0 is not None for block in blocks] == [False, True, True, False]


def test_a_block_is_deployed_as_exactly_one_convolution_that_computes_the_same() -> None:
    for stride, channels in ((1, 6), (2, 6), (1, 9)):
        block = randomised(RepVggBlock(6, channels, stride=stride).double())
        x = images(channels=6).double()
        fused = block.fused().eval()
        assert [type(part) for part in fused] == [nn.Conv2d, nn.ReLU]
        torch.testing.assert_close(fused(x), block(x), rtol=1e-12, atol=1e-12)


def test_the_deployed_network_has_no_additions_and_the_parameters_of_its_convolutions() -> None:
    deployed = reparameterised(repvgg_from_kwargs(SPEC))
    kinds = [cost.kind for cost in layer_costs(deployed, (3, 8, 8))]
    assert kinds.count("conv") == 4
    assert "add" not in kinds
    assert "norm" not in kinds
    assert count_params(deployed) == sum(9 * a * b + b for a, b in ((3, 4), (4, 4), (4, 4), (4, 8))) + 8 * 5 + 5
