"""Every registered proxy runs the conformance suite, and every objective as a proxy does."""

from __future__ import annotations

import pytest

from edgekd.errors import UserError
from edgekd.search.proxies.objective import scoring_objectives
from edgekd.search.proxy import PROXIES
from edgekd.search.proxy_names import proxy_from_name
from edgekd.testing.conformance_proxy import FAMILIES, DistanceProxyConformance, ProxyConformance

WITHOUT_CLASS_MAPS = frozenset({"vit", "mobilenetv3"})


class TestParams(ProxyConformance):
    name = "params"


class TestMacs(ProxyConformance):
    name = "macs"


class TestActivations(ProxyConformance):
    name = "activations"


class TestCapacity(ProxyConformance):
    name = "capacity"


class TestDepth(ProxyConformance):
    name = "depth"


class TestNASWOT(ProxyConformance):
    name = "naswot"


class TestJacobCov(ProxyConformance):
    name = "jacobcov"


class TestSynFlow(ProxyConformance):
    name = "synflow"


class TestZen(ProxyConformance):
    name = "zen"


class TestGradNorm(ProxyConformance):
    name = "gradnorm"


class TestSNIP(ProxyConformance):
    name = "snip"


class TestZiCo(ProxyConformance):
    name = "zico"


class TestMeCo(ProxyConformance):
    name = "meco"


class TestVKDNW(ProxyConformance):
    name = "vkdnw"


class TestExpressivity(ProxyConformance):
    name = "expressivity"


class TestProgressivity(ProxyConformance):
    name = "progressivity"


class TestTrainability(ProxyConformance):
    name = "trainability"


class TestIsotropy(ProxyConformance):
    name = "isotropy"


class TestDisWOT(DistanceProxyConformance):
    name = "diswot"


class TestDisWOTSemantic(DistanceProxyConformance):
    name = "diswot-semantic"


class TestDisWOTRelation(DistanceProxyConformance):
    name = "diswot-relation"


class TestDisWOTCode(DistanceProxyConformance):
    name = "diswot-code"
    refuses = frozenset(FAMILIES)  # none of them is as wide as the teacher at its classifier


class TestDisWOTCodeSemantic(DistanceProxyConformance):
    name = "diswot-code-semantic"
    refuses = frozenset(FAMILIES)


class TestDisWOTCodeRelation(DistanceProxyConformance):
    name = "diswot-code-relation"


class TestLossKD(DistanceProxyConformance):
    name = "loss-kd"


class TestLossDKD(DistanceProxyConformance):
    name = "loss-dkd"


class TestLossDIST(DistanceProxyConformance):
    name = "loss-dist"
    tolerance = 1e-2  # its correlations divide by more than the product of the norms


class TestLossKDPlusPlus(DistanceProxyConformance):
    name = "loss-kdpp"
    tolerance = 0.1  # an embedding is not the mean of its class
    refuses = frozenset(FAMILIES)  # none of them is as wide as the teacher at its classifier


class TestLossSP(DistanceProxyConformance):
    name = "loss-sp"


class TestLossPKT(DistanceProxyConformance):
    name = "loss-pkt"


class TestLossRKD(DistanceProxyConformance):
    name = "loss-rkd"


class TestLossAT(DistanceProxyConformance):
    name = "loss-at"


class TestLossDisWOT(DistanceProxyConformance):
    name = "loss-diswot"
    refuses = WITHOUT_CLASS_MAPS


class TestLossSoft(DistanceProxyConformance):
    name = "loss-soft"


class TestLossFIRST(DistanceProxyConformance):
    name = "loss-first"


class TestLossBDKD(DistanceProxyConformance):
    name = "loss-bdkd"


class TestLossSinKD(DistanceProxyConformance):
    name = "loss-sinkd"
    tolerance = 1e-2  # a plan with entropy moves a little even between equal batches


class TestLossTAID(DistanceProxyConformance):
    name = "loss-taid"


def test_every_registered_proxy_and_objective_runs_the_conformance_suite() -> None:
    suites = {
        suite.name
        for suite in (*ProxyConformance.__subclasses__(), *DistanceProxyConformance.__subclasses__())
        if hasattr(suite, "name")
    }
    assert suites == {*PROXIES, *(f"loss-{name}" for name in scoring_objectives())}


@pytest.mark.parametrize(("name", "near"), [("diswto", "diswot"), ("loss-kdd", "kd"), ("synflo", "synflow")])
def test_an_unknown_proxy_is_answered_with_the_near_one(name: str, near: str) -> None:
    with pytest.raises(UserError, match=f"Did you mean '{near}'"):
        proxy_from_name(name)
