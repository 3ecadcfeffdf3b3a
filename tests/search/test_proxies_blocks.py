"""Which modules are the blocks of a network, and the proxies of AZ-NAS that look at them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgekd.nn.models import BUILDERS
from edgekd.nn.models.residual import BasicBlock
from edgekd.search.proxies.aznas import NOISE_SEED, block_gains, channel_entropy
from edgekd.search.proxies.blocks import channels_first, features, find_blocks, flows
from edgekd.search.proxies.isotropy import channel_isotropy
from edgekd.search.proxies.network import noise_batch
from edgekd.search.proxy import Unscorable, batch_from_images
from edgekd.search.proxy_names import proxy_from_name
from edgekd.testing.toys import toy_cnn


def images(side: int = 8) -> Tensor:
    return torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(0))


def names(blocks: list[nn.Module]) -> list[str]:
    return [type(block).__name__ for block in blocks]


def test_residual_blocks_are_blocks_and_the_stem_is_none() -> None:
    assert names(find_blocks(toy_cnn())) == ["BasicBlock", "BasicBlock"]


def test_the_cells_of_nas_bench_201_are_blocks_whatever_their_operations() -> None:
    empty = BUILDERS.get("nasbench201")({"operations": ["none"] * 6, "width": 8, "cells": 2, "classes": 4})
    full = BUILDERS.get("nasbench201")({"operations": ["nor_conv_3x3"] * 6, "width": 8, "cells": 2, "classes": 4})
    expected = ["Cell", "Cell", "Reduction", "Cell", "Cell", "Reduction", "Cell", "Cell"]
    assert names(find_blocks(empty)) == names(find_blocks(full)) == expected


def test_a_block_without_a_residual_connection_is_a_block_too() -> None:
    stages = [{"channels": 8, "stride": 2, "expansion": 2}, {"channels": 8, "stride": 1, "expansion": 2}]
    network = BUILDERS.get("inverted")({"stem": 8, "stages": stages, "classes": 4})
    assert names(find_blocks(network)) == ["InvertedBlock", "InvertedBlock"]


class Stage(nn.Module):
    """A stage class of its own around a sequence of blocks, as ConvNeXt has it."""

    def __init__(self) -> None:
        super().__init__()
        self.downsample = nn.Conv2d(4, 4, 2, 2)
        self.blocks = nn.Sequential(*(BasicBlock(4, 4, stride=1, kernel=3) for _ in range(2)))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.blocks(self.downsample(x))
        return out


def test_a_stage_that_holds_a_sequence_of_blocks_is_opened() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ModuleList([Stage(), Stage()]))
    assert names(find_blocks(network)) == ["BasicBlock"] * 4


def test_the_blocks_of_a_network_without_any_are_its_layers_with_weights() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.Flatten())
    assert names(find_blocks(plain)) == ["Conv2d", "Conv2d"]


def test_features_are_the_input_of_the_first_block_and_the_output_of_each() -> None:
    network = toy_cnn()
    assert features(network, images(), lambda x: float(x.shape[1])) == [8, 8, 16]
    assert features(network, images(), lambda x: float(x.shape[2])) == [8, 8, 4]


def test_each_block_has_a_graph_of_its_own() -> None:
    first, second = flows(toy_cnn(), images())
    (gradient,) = torch.autograd.grad(second.left.sum(), second.entered, retain_graph=True)
    assert gradient.shape == second.entered.shape
    with pytest.raises(RuntimeError, match="not have been used"):
        torch.autograd.grad(second.left.sum(), first.entered)


def test_the_channel_axis_is_found_in_maps_of_either_layout_and_in_tokens() -> None:
    assert channels_first(torch.zeros(2, 5, 3, 3)).shape == (2, 5, 3, 3)
    assert channels_first(torch.zeros(2, 3, 3, 5)).shape == (2, 5, 3, 3)
    assert channels_first(torch.zeros(2, 9, 5)).shape == (2, 5, 9, 1)


def test_the_entropy_is_that_of_the_normalised_principal_variances() -> None:
    x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 2, 3]).view(3, 1, 1)
    rows = x.double().permute(0, 2, 3, 1).reshape(-1, 3).numpy()
    share = np.linalg.eigvalsh(np.cov(rows.T))
    share = share / share.sum()
    assert channel_entropy(x) == pytest.approx(-(share * np.log(share)).sum(), rel=1e-5)


def test_isotropy_is_one_for_channels_of_equal_and_independent_variance() -> None:
    signs = torch.tensor([[1.0, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]]).view(1, 3, 2, 2)
    assert channel_isotropy(signs) == pytest.approx(1)
    assert channel_isotropy(signs[:, :1].expand(1, 3, 2, 2)) == pytest.approx(0, abs=1e-6)
    assert channel_isotropy(signs[:, :1]) == 1


def test_channels_that_do_not_vary_are_unscorable() -> None:
    with pytest.raises(Unscorable, match="same features for all images"):
        channel_entropy(torch.full((2, 3, 4, 4), 0.1))


def test_expressivity_adds_the_entropies_and_progressivity_takes_the_least_step() -> None:
    network, batch = toy_cnn(seed=4), batch_from_images(images(), None, classes=4)
    entropies: list[float] = []

    def keep(x: Tensor) -> float:
        entropies.append(channel_entropy(x))
        return entropies[-1]

    features(network, noise_batch(batch.images, seed=NOISE_SEED), keep)
    expressivity = proxy_from_name("expressivity").score(network, toy_cnn(), batch)
    progressivity = proxy_from_name("progressivity").score(network, toy_cnn(), batch)
    assert expressivity == pytest.approx(sum(entropies))
    assert progressivity == pytest.approx(min(entropies[1] - entropies[0], entropies[2] - entropies[1]))


def chain(*blocks: nn.Module) -> nn.Module:
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4)]
    return nn.Sequential(nn.Sequential(nn.Conv2d(3, 3, 1)), nn.Sequential(*map(nn.Sequential, blocks)), *head)


class Times(nn.Module):
    """A block of one linear map of the channels."""

    def __init__(self, matrix: Tensor, stride: int = 1) -> None:
        super().__init__()
        self.inner = nn.Conv2d(*reversed(matrix.shape), stride, stride, bias=False)
        with torch.no_grad():
            self.inner.weight.zero_()
            self.inner.weight[:, :, 0, 0] = matrix

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x)
        return out


def test_the_gain_of_a_linear_block_is_its_largest_singular_value() -> None:
    matrix = torch.tensor([[2.0, 1, 0], [0, 1, 0], [0, 0, 0.5]])
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential(Times(matrix), Times(matrix, stride=2)), *chain()[2:])
    # The signs are random, so their second moment is the identity only on average.
    expected = float(torch.linalg.matrix_norm(matrix, 2))
    assert block_gains(network, images(32)) == pytest.approx([expected, expected], rel=0.1)


class Copy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x)
        return out


def test_a_block_that_copies_counts_as_one_that_passes_nothing() -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential(Copy(), Times(torch.eye(3))), *chain()[2:])
    gains = block_gains(network, images())
    assert gains[0] == 0
    assert gains[1] == 0  # a convolution by the identity copies as well
    batch = batch_from_images(images(), None, classes=4)
    assert proxy_from_name("trainability").score(network, toy_cnn(), batch) == pytest.approx(2 - 1e6)


def test_trainability_is_best_where_blocks_keep_the_size_of_gradients() -> None:
    batch = batch_from_images(images(32), None, classes=4)
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0))).Q

    def trainability(scale: float) -> float:
        blocks = nn.Sequential(Times(scale * rotation), Times(scale * rotation))
        network = nn.Sequential(nn.Conv2d(3, 3, 1), blocks, *chain()[2:])
        return proxy_from_name("trainability").score(network, toy_cnn(), batch)

    assert trainability(1.0) == pytest.approx(0, abs=0.02)
    assert trainability(2.0) == pytest.approx(2 - 2 - 0.5, abs=0.1)
    assert trainability(0.5) == pytest.approx(2 - 0.5 - 2, abs=0.2)


def test_a_network_without_features_between_blocks_is_unscorable() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.ReLU(), nn.Linear(5, 4))
    batch = batch_from_images(images(), None, classes=4)
    for name in ("expressivity", "progressivity", "trainability"):
        with pytest.raises(Unscorable, match=r"no (two )?block"):
            proxy_from_name(name).score(network, toy_cnn(), batch)
