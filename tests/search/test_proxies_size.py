from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from edgekd.nn.count import count_macs, count_params
from edgekd.search.proxies.depth import count_depth
from edgekd.search.proxies.size import capacity, count_activations
from edgekd.search.proxy import Unscorable, batch_from_images
from edgekd.search.proxy_names import proxy_from_name
from edgekd.testing.toys import toy_cnn

SHAPE = (3, 8, 8)


def test_the_size_proxies_count() -> None:
    student, batch = toy_cnn(), batch_from_images(torch.zeros(2, *SHAPE), None, classes=4)
    expected = {"params": count_params(student), "macs": count_macs(student, SHAPE)}
    assert {name: proxy_from_name(name).score(student, toy_cnn(), batch) for name in expected} == expected


def test_capacity_has_diminishing_returns_within_a_layer() -> None:
    layers = (3 * 8 * 9, 2 * (8 * 8 * 9), 8 * 16 * 9, 16 * 16 * 9, 8 * 16, 16 * 4)
    sizes = (layers[0], layers[1] // 2, layers[1] // 2, *layers[2:])
    assert capacity(toy_cnn()) == pytest.approx(math.log(sum(size ** (2 / 3) for size in sizes)))
    with pytest.raises(Unscorable, match="no weights"):
        capacity(nn.ReLU())


def test_activations_are_what_convolutions_and_products_write() -> None:
    # Stem, two convolutions at 8 pixels; two and the projection at 4; the classifier.
    assert count_activations(toy_cnn(), SHAPE) == 3 * 8 * 64 + 3 * 16 * 16 + 4


def test_depth_follows_the_longest_path() -> None:
    # Stem, two blocks of two convolutions, classifier; the projection is a shorter way.
    assert count_depth(toy_cnn(), SHAPE) == 6


class Attention(nn.Module):
    """A product of activations, a bare weight, and a branch that the output does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 6, 4, 4)
        self.mix = nn.Parameter(torch.randn(6, 6))
        self.unused = nn.Linear(6, 6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        self.unused(tokens)
        tokens = (tokens @ tokens.transpose(1, 2)).softmax(2) @ (tokens @ self.mix)
        logits: Tensor = self.head(tokens.mean(1))
        return logits


def test_depth_counts_products_with_weights_and_no_others() -> None:
    assert count_depth(Attention(), SHAPE) == 3


class Constant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.ones(len(x), 2))
        return logits


def test_a_network_without_a_path_has_no_depth() -> None:
    with pytest.raises(Unscorable, match="No path leads"):
        count_depth(Constant(), SHAPE)
