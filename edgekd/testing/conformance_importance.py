"""What every importance must do. Inherit the suite, give the importance, and pytest runs it:

class TestMine(ImportanceConformance):
    name = "mine"
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from edgekd.nn.channels.analysis import analyse
from edgekd.nn.channels.apply import part_at
from edgekd.nn.channels.groups import ChannelGroup, Member
from edgekd.prune.importance import IMPORTANCES, Evidence, Importance, Need, build_importance, scores_of
from edgekd.testing.toys import toy_cnn

_IMAGES, _SHAPE, _CLASSES = 12, (3, 8, 8), 4
_DEAD = 1
"""The unit of each group whose weights the suite sets to 0."""


class ImportanceConformance:
    """The contract of `edgekd.prune.importance.Importance`, as tests.

    Attributes:
        name: Registry key.
    """

    name: ClassVar[str]

    def importance(self) -> Importance:
        """A fresh one."""
        return build_importance(self.name)

    def network(self) -> nn.Module:
        """A residual network whose normalisations are not those of a new one."""
        module, random = toy_cnn(classes=_CLASSES), torch.Generator().manual_seed(2)
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.ndim == 1:
                    parameter.uniform_(0.2, 1.5, generator=random)
        return module

    def evidence(self, module: nn.Module) -> Evidence:
        """What the importance declares, and no more."""
        needs = IMPORTANCES.get(self.name).needs
        images = torch.randn(_IMAGES, *_SHAPE, generator=torch.Generator().manual_seed(0))
        return Evidence(
            module=module,
            images=images if Need.IMAGES in needs else None,
            labels=torch.arange(_IMAGES) % _CLASSES if Need.LABELS in needs else None,
            teacher=toy_cnn(classes=_CLASSES, seed=1) if Need.TEACHER in needs else None,
            batch_size=5,
        )

    def groups(self, module: nn.Module) -> Sequence[ChannelGroup]:
        """Its proved groups."""
        return analyse(module, _SHAPE).groups

    def test_it_declares_itself_under_its_name(self) -> None:
        kind = IMPORTANCES.get(self.name)
        assert kind.name == self.name
        assert kind.formula
        assert kind.source
        assert kind.needs <= frozenset(Need)
        assert Need.LABELS not in kind.needs or Need.IMAGES in kind.needs

    def test_every_unit_has_one_finite_score_and_units_differ(self) -> None:
        module = self.network()
        groups = self.groups(module)
        found = self.importance().scores(self.evidence(module), groups)
        assert found.keys() == {group.name for group in groups}
        for group in groups:
            scores = found[group.name]
            assert scores.shape == (group.units,)
            assert scores.dtype == torch.float64
            assert torch.isfinite(scores).all()
        assert any(float(scores.max()) > float(scores.min()) for scores in found.values())

    def test_equal_evidence_gives_equal_scores_and_the_networks_stay_as_they_were(self) -> None:
        module = self.network()
        evidence, groups, before = self.evidence(module), self.groups(module), copy.deepcopy(module)
        first, again = (self.importance().scores(evidence, groups) for _ in range(2))
        assert all(torch.equal(first[name], again[name]) for name in first)
        for network in (module, *([evidence.teacher] if evidence.teacher is not None else [])):
            assert not network.training
            assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())
            assert not any(part._forward_pre_hooks or part._forward_hooks for part in network.modules())
        state = module.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in before.state_dict().items())

    def test_neither_the_order_of_the_images_nor_the_batches_matter(self) -> None:
        module = self.network()
        evidence, groups = self.evidence(module), self.groups(module)
        order = torch.randperm(_IMAGES, generator=torch.Generator().manual_seed(1))
        other = replace(
            evidence,
            images=None if evidence.images is None else evidence.images[order],
            labels=None if evidence.labels is None else evidence.labels[order],
            batch_size=3,
        )
        found, shuffled = (self.importance().scores(given, groups) for given in (evidence, other))
        for name, scores in found.items():
            torch.testing.assert_close(shuffled[name], scores, rtol=1e-4, atol=1e-9 + 1e-5 * float(scores.abs().max()))

    def test_a_unit_whose_weights_are_all_zero_scores_zero_and_is_the_least(self) -> None:
        module = self.network()
        groups = self.groups(module)
        for group in groups:
            _silence_(module, group, _DEAD)
        found = self.importance().scores(self.evidence(module), groups)
        for scores in found.values():
            assert float(scores[_DEAD].abs()) <= 1e-12 * float(scores.abs().max())
        if Need.TEACHER not in IMPORTANCES.get(self.name).needs:  # a unit that pulls away from the teacher scores less
            assert all(scores[_DEAD] == scores.min() for scores in found.values())

    def test_scores_follow_the_units_when_these_are_numbered_otherwise(self) -> None:
        module = self.network()
        evidence, groups = self.evidence(module), self.groups(module)
        found = self.importance().scores(evidence, groups)
        turned = self.importance().scores(evidence, [_reversed(group) for group in groups])
        for name, scores in found.items():
            torch.testing.assert_close(turned[name].flip(0), scores)

    def test_the_scale_of_a_group_does_not_change_its_comparable_scores(self) -> None:
        """Units that speak louder to readers that are less sensitive are the same network to who watches it. Sums of
        weights cannot know that; for them all weights of the group are scaled, which changes no share."""
        module = self.network()
        groups = self.groups(module)
        watched = Need.IMAGES in IMPORTANCES.get(self.name).needs
        expected = scores_of(self.importance(), self.evidence(module), groups)
        for group in groups:
            scaled = copy.deepcopy(module)
            _rescale_(scaled, group, normed=watched, made=4.0, read=0.25 if watched else 4.0)
            found = scores_of(self.importance(), self.evidence(scaled), groups)[group.name]
            atol = 1e-4 * float(expected[group.name].abs().max())
            torch.testing.assert_close(found, expected[group.name], rtol=1e-3, atol=atol)


def _silence_(module: nn.Module, group: ChannelGroup, unit: int) -> None:
    """Sets to zero all that makes, scales, shifts or reads the unit."""
    for member in group.members:
        channels = member.channels_of(torch.tensor([unit]))
        for value, axis in _tensors(part_at(module, member.path), member):
            value.index_fill_(axis, channels, 0)


def _rescale_(module: nn.Module, group: ChannelGroup, *, normed: bool, made: float, read: float) -> None:
    """Multiplies what the units of a group say, and the weights that read it.

    Args:
        normed: Where a BatchNorm stands behind the layer that makes them, its scale and shift say how loud they are, so
            these alone are multiplied; otherwise all weights that make them are.
    """
    for member in group.members:
        part = part_at(module, member.path)
        for value, _ in _tensors(part, member):
            if member.axis == "in":
                value.mul_(read)
            elif not normed or isinstance(part, nn.BatchNorm2d):
                value.mul_(made)


def _tensors(part: nn.Module | nn.Parameter, member: Member) -> list[tuple[Tensor, int]]:
    """(tensor, channel axis) of what a member holds of its group."""
    assert isinstance(part, nn.Module)
    if member.axis == "in":
        assert isinstance(part, nn.Conv2d | nn.Linear)
        return [(part.weight.data, 1)]
    return [(parameter.data, 0) for parameter in part.parameters()]


def _reversed(group: ChannelGroup) -> ChannelGroup:
    members = tuple(replace(member, units=group.units - 1 - member.units) for member in group.members)
    return replace(group, members=members)
