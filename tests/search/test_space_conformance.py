from __future__ import annotations

from edgekd.search.space import SPACES, Arch, GridSpace
from edgekd.testing.conformance_space import SpaceConformance


class TestResidual(SpaceConformance):
    name = "residual"


class TestInverted(SpaceConformance):
    name = "inverted"

    def alive(self, space: GridSpace) -> Arch:
        """Cheap, with squeeze-and-excite in every stage: the part that is hardest to prune and to export."""
        return tuple(int(name.startswith("squeeze_excite")) for name in space.axes)


class TestResNet(SpaceConformance):
    name = "resnet"
    side = 32


class TestRepVgg(SpaceConformance):
    name = "repvgg"


class TestVit(SpaceConformance):
    name = "vit"


class TestChildren(SpaceConformance):
    name = "children"


class TestDisWotS0(SpaceConformance):
    name = "diswot-s0"


class TestNasBench201(SpaceConformance):
    name = "nasbench201"


def test_every_registered_space_runs_the_conformance_suite() -> None:
    assert {suite.name for suite in SpaceConformance.__subclasses__()} == set(SPACES)
