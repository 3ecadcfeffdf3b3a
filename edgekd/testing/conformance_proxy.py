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

from edgekd.nn.build import module_from_recipe
from edgekd.search.proxy import PROXIES, Proxy
from edgekd.testing.toys import toy_cnn, toy_recipe

_SIDE = 8


class ProxyConformance:
    """The contract of `edgekd.search.proxy.Proxy`, as tests.

    Attributes:
        name: Registry key.
    """

    name: ClassVar[str]

    def proxy(self) -> Proxy:
        """A fresh one."""
        return PROXIES.get(self.name)()

    def images(self) -> Tensor:
        """(N, C, H, W)."""
        return torch.randn(6, 3, _SIDE, _SIDE, generator=torch.Generator().manual_seed(0))

    def student(self, seed: int = 1) -> nn.Module:
        """Another architecture than the teacher's."""
        kwargs = {"depths": [1, 2], "widths": [8, 16, 24], "classes": 4, "in_channels": 3}
        return module_from_recipe(toy_recipe().model_copy(update={"kwargs": kwargs}), seed=seed)

    def test_equal_networks_and_images_give_equal_scores(self) -> None:
        first = self.proxy().score(self.student(), toy_cnn(), self.images())
        again = self.proxy().score(self.student(), toy_cnn(), self.images())
        assert math.isfinite(first)
        assert first == again

    def test_the_order_of_the_images_does_not_matter(self) -> None:
        score = self.proxy().score(self.student(), toy_cnn(), self.images())
        reversed_score = self.proxy().score(self.student(), toy_cnn(), self.images().flip(0))
        assert reversed_score == pytest.approx(score, rel=1e-4)

    def test_binding_once_gives_what_scoring_alone_gives(self) -> None:
        bound = self.proxy().bind(toy_cnn(), self.images())
        expected = self.proxy().score(self.student(), toy_cnn(), self.images())
        bound(self.student(seed=2))
        assert bound(self.student()) == expected

    def test_only_proxies_that_use_the_weights_depend_on_them(self) -> None:
        bound = self.proxy().bind(toy_cnn(), self.images())
        differs = bound(self.student(seed=1)) != bound(self.student(seed=2))
        assert differs == self.proxy().uses_weights

    def test_modes_and_parameters_are_left_as_they_were(self) -> None:
        student, teacher = self.student(), toy_cnn()
        student.train()
        before = [parameter.clone() for parameter in (*student.parameters(), *teacher.parameters())]
        self.proxy().score(student, teacher, self.images())
        assert all(part.training for part in student.modules())
        assert not any(part.training for part in teacher.modules())
        after = (*student.parameters(), *teacher.parameters())
        assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


class DistanceProxyConformance(ProxyConformance):
    """The suite of proxies whose score is a negated distance to the teacher."""

    def test_the_teacher_itself_scores_highest(self) -> None:
        bound = self.proxy().bind(toy_cnn(), self.images())
        assert bound(toy_cnn()) == pytest.approx(0.0, abs=1e-6)
        assert bound(self.student()) < bound(toy_cnn())
