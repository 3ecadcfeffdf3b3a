"""What every proxy must do. Inherit the suite, give the proxy, and pytest runs it:

class TestMine(ProxyConformance):
    name = "mine"
"""

from __future__ import annotations

import math
from typing import ClassVar

import pytest
import torch
from torch import nn

from edgekd.nn.build import module_from_recipe
from edgekd.search.proxy import Batch, Proxy, proxy_from_name
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
        return proxy_from_name(self.name)

    def batch(self) -> Batch:
        """Six images of four classes."""
        images = torch.randn(6, 3, _SIDE, _SIDE, generator=torch.Generator().manual_seed(0))
        return Batch(images=images, labels=torch.tensor([0, 1, 2, 3, 0, 1]))

    def student(self, seed: int = 1) -> nn.Module:
        """Another architecture than the teacher's."""
        kwargs = {"depths": [1, 2], "widths": [8, 16, 24], "classes": 4, "in_channels": 3}
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

    def test_modes_and_parameters_are_left_as_they_were(self) -> None:
        student, teacher = self.student(), toy_cnn()
        student.train()
        before = [parameter.clone() for parameter in (*student.parameters(), *teacher.parameters())]
        self.proxy().score(student, teacher, self.batch())
        assert all(part.training for part in student.modules())
        assert not any(part.training for part in teacher.modules())
        after = (*student.parameters(), *teacher.parameters())
        assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
        assert all(parameter.grad is None and parameter.requires_grad for parameter in after)
        assert not any(part._forward_hooks or part._forward_pre_hooks for part in student.modules())

    def test_what_it_is_and_where_it_is_from_is_said(self) -> None:
        assert self.proxy().formula
        assert self.proxy().source

    def test_the_teacher_matters_only_where_it_is_declared(self) -> None:
        first = self.proxy().score(self.student(), toy_cnn(), self.batch())
        second = self.proxy().score(self.student(), toy_cnn(seed=5), self.batch())
        assert (first != second) == self.proxy().uses_teacher


class DistanceProxyConformance(ProxyConformance):
    """The suite of proxies whose score is a negated distance to the teacher."""

    def test_the_teacher_itself_scores_highest(self) -> None:
        bound = self.proxy().bind(toy_cnn(), self.batch())
        assert bound(toy_cnn()) == pytest.approx(0.0, abs=1e-6)
        assert bound(self.student()) < bound(toy_cnn())
