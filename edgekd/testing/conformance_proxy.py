"""What every proxy must do. Inherit the suite, give the proxy, and pytest runs it:

class TestMine(ProxyConformance):
    name = "mine"
"""

from __future__ import annotations

import math
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from edgekd.core.preprocess import Preprocessing
from edgekd.core.recipe import ModelRecipe
from edgekd.errors import UserError
from edgekd.nn.build import module_from_recipe
from edgekd.search.proxy import Batch, Proxy, Unscorable
from edgekd.search.proxy_names import proxy_from_name
from edgekd.testing.toys import toy_cnn, toy_recipe

_SIDE = 8
_FAMILY_SIDE = 32
_STAGES = [{"channels": 8, "stride": 1, "expansion": 2}, {"channels": 16, "stride": 2, "expansion": 2, "depth": 2}]
FAMILIES: dict[str, tuple[str, dict[str, object]]] = {
    "inverted": ("edgekd:inverted", {"stem": 8, "stages": _STAGES, "head": 24, "classes": 4}),
    "nasbench201": (
        "edgekd:nasbench201",
        {
            "operations": ["nor_conv_3x3", "none", "skip_connect", "avg_pool_3x3", "none", "nor_conv_1x1"],
            "width": 8,
            "cells": 1,
            "classes": 4,
        },
    ),
    "mobilenetv3": ("timm:mobilenetv3_small_050", {"num_classes": 4}),
    "vit": (
        "timm:vit_tiny_patch16_224",
        {"img_size": _FAMILY_SIDE, "patch_size": 8, "depth": 2, "embed_dim": 48, "num_classes": 4},
    ),
}
"""(builder, kwargs) of small networks that have little in common, four classes each."""


class ProxyConformance:
    """The contract of `edgekd.search.proxy.Proxy`, as tests.

    Attributes:
        name: Of the proxy.
        refuses: Keys of `FAMILIES` that it can say nothing about beside the suite's teacher.
    """

    name: ClassVar[str]
    refuses: ClassVar[frozenset[str]] = frozenset()

    def proxy(self) -> Proxy:
        """A fresh one."""
        return proxy_from_name(self.name)

    def batch(self, side: int = _SIDE) -> Batch:
        """Six images of four classes."""
        images = torch.randn(6, 3, side, side, generator=torch.Generator().manual_seed(0))
        return Batch(images=images, labels=torch.tensor([0, 1, 2, 3, 0, 1]))

    def student(self, seed: int = 1) -> nn.Module:
        """Another architecture than the teacher's, with a classifier of the same width."""
        kwargs = {"depths": [1, 2], "widths": [8, 12, 16], "classes": 4, "in_channels": 3}
        return module_from_recipe(toy_recipe().model_copy(update={"kwargs": kwargs}), seed=seed)

    def test_equal_networks_and_images_give_equal_scores(self) -> None:
        first = self.proxy().score(self.student(), toy_cnn(), self.batch())
        again = self.proxy().score(self.student(), toy_cnn(), self.batch())
        assert math.isfinite(first)
        assert first == again

    def test_the_order_of_the_images_does_not_matter(self) -> None:
        score = self.proxy().score(self.student(), toy_cnn(), self.batch())
        batch = self.batch()
        flipped = Batch(images=batch.images.flip(0), labels=batch.labels.flip(0))
        reversed_score = self.proxy().score(self.student(), toy_cnn(), flipped)
        assert reversed_score == pytest.approx(score, rel=1e-4)

    def test_binding_once_gives_what_scoring_alone_gives(self) -> None:
        bound = self.proxy().bind(toy_cnn(), self.batch())
        expected = self.proxy().score(self.student(), toy_cnn(), self.batch())
        bound(self.student(seed=2))
        assert bound(self.student()) == expected

    def test_only_proxies_that_use_the_weights_depend_on_them(self) -> None:
        bound = self.proxy().bind(toy_cnn(), self.batch())
        differs = bound(self.student(seed=1)) != bound(self.student(seed=2))
        assert differs == self.proxy().uses_weights

    def test_networks_and_random_state_are_left_as_they_were(self) -> None:
        student, teacher = self.student(), toy_cnn()
        student.train()
        student.get_submodule("stem").eval()
        before = [_state(student), _state(teacher)]
        modes = [part.training for part in (*student.modules(), *teacher.modules())]
        random = torch.random.get_rng_state()
        self.proxy().score(student, teacher, self.batch())
        for module, old in zip((student, teacher), before, strict=True):
            assert all(torch.equal(old[name], value) for name, value in _state(module).items())
            assert all(parameter.grad is None and parameter.requires_grad for parameter in module.parameters())
            assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
        assert modes == [part.training for part in (*student.modules(), *teacher.modules())]
        assert torch.equal(torch.random.get_rng_state(), random)

    @pytest.mark.parametrize("family", FAMILIES)
    def test_a_network_of_another_kind_is_scored_or_refused_with_a_reason(self, family: str) -> None:
        network = _network(family)
        if family in self.refuses:
            with pytest.raises((Unscorable, UserError)) as refusal:
                self.proxy().score(network, toy_cnn(), self.batch(_FAMILY_SIDE))
            assert str(refusal.value)
        else:
            assert math.isfinite(self.proxy().score(network, toy_cnn(), self.batch(_FAMILY_SIDE)))

    def test_a_network_without_a_path_from_its_input_to_its_output_is_unscorable_unless_it_is_only_counted(
        self,
    ) -> None:
        network = _Severed()
        if self.proxy().uses_weights:
            with pytest.raises(Unscorable):
                self.proxy().score(network, toy_cnn(), self.batch())
        else:
            assert math.isfinite(self.proxy().score(network, toy_cnn(), self.batch()))

    def test_what_it_is_and_where_it_is_from_is_said(self) -> None:
        assert self.proxy().formula
        assert self.proxy().source

    def test_the_teacher_matters_only_where_it_is_declared(self) -> None:
        first = self.proxy().score(self.student(), toy_cnn(), self.batch())
        second = self.proxy().score(self.student(), toy_cnn(seed=5), self.batch())
        assert (first != second) == self.proxy().uses_teacher


class DistanceProxyConformance(ProxyConformance):
    """The suite of proxies whose score is a negated distance to the teacher.

    Attributes:
        tolerance: How far from zero the score of the teacher's own copy may be.
    """

    tolerance: ClassVar[float] = 1e-6

    def test_the_teacher_itself_scores_highest(self) -> None:
        bound = self.proxy().bind(toy_cnn(), self.batch())
        assert bound(toy_cnn()) == pytest.approx(0, abs=self.tolerance)
        assert bound(self.student()) < bound(toy_cnn())


class _Severed(nn.Module):
    """Its features never reach the pooled map that the classifier reads, as in a cell of `none` operations."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()) for _ in range(2)))
        self.last = nn.Conv2d(3, 16, 1)
        self.classifier = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.last(0 * self.blocks(x)).relu().mean((2, 3)))
        return logits


def _state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def _network(family: str) -> nn.Module:
    builder, kwargs = FAMILIES[family]
    recipe = ModelRecipe.model_validate(
        {
            "builder": builder,
            "kwargs": kwargs,
            "preprocessing": Preprocessing(size=(_FAMILY_SIDE, _FAMILY_SIDE), mean=(0.5,) * 3, std=(0.5,) * 3),
        }
    )
    return module_from_recipe(recipe, seed=1)
