from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edgekd.nn.count import count_macs, count_params
from edgekd.search.proxies.diswot import correlation
from edgekd.search.proxy import PROXIES, batch_from_images
from edgekd.testing.conformance_proxy import DistanceProxyConformance, ProxyConformance
from edgekd.testing.toys import toy_cnn

FEATURES_STUDENT = torch.tensor([[1.0, 2, 2], [0, 3, 4], [1, 0, -1]])
FEATURES_TEACHER = torch.tensor([[2.0, 1, 2], [3, -1, 4], [0, 1, 0]])


class TestDisWOT(DistanceProxyConformance):
    name = "diswot"


class TestParams(ProxyConformance):
    name = "params"


class TestMacs(ProxyConformance):
    name = "macs"


def test_every_registered_proxy_runs_the_conformance_suite() -> None:
    assert {suite.name for suite in (TestDisWOT, TestParams, TestMacs)} == set(PROXIES)


def test_the_relation_distance_equals_the_golden_value() -> None:
    distance = torch.linalg.norm(correlation(FEATURES_TEACHER) - correlation(FEATURES_STUDENT))
    assert float(distance) == pytest.approx(0.163027, abs=1e-6)


def test_correlation_ignores_scale_and_rotation_of_the_features() -> None:
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0))).Q
    changed = 7 * FEATURES_STUDENT @ rotation
    assert torch.allclose(correlation(changed), correlation(FEATURES_STUDENT), atol=1e-6)


def test_dead_features_correlate_to_zero_and_not_to_nan() -> None:
    assert torch.equal(correlation(torch.zeros(3, 5)), torch.zeros(3, 3, dtype=torch.float64))


class HeadBetween(nn.Module):
    """A 1x1 head between the pooled map and the classifier, as in MobileNetV3."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.head = nn.Conv2d(6, 10, 1)
        self.classifier = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.conv(x).relu().mean((2, 3), keepdim=True)
        logits: Tensor = self.classifier(self.head(pooled).flatten(1))
        return logits


class NoMap(nn.Module):
    """Tokens instead of a feature map, as in a vision transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3 * 4, 5)
        self.classifier = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
        logits: Tensor = self.classifier(self.embed(tokens).mean(1))
        return logits


@pytest.mark.parametrize("kind", [HeadBetween, NoMap])
def test_diswot_compares_networks_of_other_kinds(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    batch = batch_from_images(torch.randn(6, 3, 8, 8), None, classes=4)
    score = PROXIES.get("diswot")().bind(toy_cnn(), batch)
    network = kind()
    assert -2 * 2**0.5 <= score(network) < 0
    assert PROXIES.get("diswot")().score(network, network, batch) == pytest.approx(0, abs=1e-6)


def test_the_size_proxies_count() -> None:
    student, batch = toy_cnn(), batch_from_images(torch.zeros(2, 3, 8, 8), None, classes=4)
    assert PROXIES.get("params")().score(student, toy_cnn(), batch) == count_params(student)
    assert PROXIES.get("macs")().score(student, toy_cnn(), batch) == count_macs(student, (3, 8, 8))
