"""Both forms of DisWOT against float64 numpy, and the golden values of the methods specification."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from edgekd.errors import UserError
from edgekd.search.proxies.diswot import correlation
from edgekd.search.proxies.diswot_code import classifier_gradient, row_normalised_gram, semantic_distance
from edgekd.search.proxy import Batch, batch_from_images
from edgekd.search.proxy_names import proxy_from_name
from edgekd.testing.toys import toy_cnn

Array = npt.NDArray[np.float64]
FEATURES_STUDENT = torch.tensor([[1.0, 2, 2], [0, 3, 4], [1, 0, -1]])
FEATURES_TEACHER = torch.tensor([[2.0, 1, 2], [3, -1, 4], [0, 1, 0]])
CLASSES = 4


class Mapped(nn.Module):
    """A 1x1 convolution, ReLU, the mean over pixels, a classifier: what DisWOT compares, and nothing else."""

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(3, width, 1)
        self.act = nn.ReLU()
        self.classifier = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.act(self.conv(x)).mean((2, 3)))
        return logits


def batch() -> Batch:
    images = torch.randn(5, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    return Batch(images=images, labels=torch.tensor([0, 2, 1, 2, 0]))


def array(tensor: Tensor) -> Array:
    return tensor.detach().double().numpy()


def maps(network: Mapped) -> Array:
    """(N, C, H, W)."""
    kernel, bias = array(network.conv.weight)[:, :, 0, 0], array(network.conv.bias)
    return np.maximum(np.einsum("oc,nchw->nohw", kernel, array(batch().images)) + bias[:, None, None], 0)


def paper_terms(student: Mapped, teacher: Mapped) -> tuple[float, float]:
    """(M_semantic, M_relation)."""

    def gram(rows: Array) -> Array:
        product = rows @ rows.T
        return product / np.sqrt((product**2).sum())

    views = []
    for network in (student, teacher):
        found = maps(network)
        cams = np.einsum("kc,nchw->knhw", array(network.classifier.weight), found)
        views.append((gram(cams.reshape(CLASSES, -1)), gram(found.reshape(len(found), -1))))
    (classes, samples), (other_classes, other_samples) = views
    return float(np.linalg.norm(classes - other_classes)), float(np.linalg.norm(samples - other_samples))


def gradient(network: Mapped) -> Array:
    """(K, C): of the mean cross-entropy at the classifier's weight."""
    pooled = maps(network).mean((2, 3))
    logits = pooled @ array(network.classifier.weight).T + array(network.classifier.bias)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return (p - np.eye(CLASSES)[batch().labels.numpy()]).T @ pooled / len(pooled)


def code_semantic(student: Array, teacher: Array) -> float:
    """As the authors write it, with the (K, C, C) tensors."""

    def outer(g: Array) -> Array:
        product = g[:, :, None] * g[:, None, :]
        norms = np.linalg.norm(product, axis=2, keepdims=True)
        return np.divide(product, norms, out=np.zeros_like(product), where=norms > 0)

    return float(((outer(student) - outer(teacher)) ** 2).sum() / student.size)


def code_relation(student: Mapped, teacher: Mapped) -> float:
    grams = []
    for network in (student, teacher):
        rows = maps(network).reshape(5, -1)
        gram = rows @ rows.T
        grams.append(gram / np.linalg.norm(gram, axis=1, keepdims=True))
    return float(((grams[0] - grams[1]) ** 2).sum() / 25)


def score(name: str, student: nn.Module, teacher: nn.Module) -> float:
    return proxy_from_name(name).score(student, teacher, batch())


def test_the_paper_form_compares_class_maps_and_samples_of_networks_of_any_width() -> None:
    student, teacher = Mapped(6, seed=1), Mapped(9, seed=2)
    semantic, relation = paper_terms(student, teacher)
    assert score("diswot-semantic", student, teacher) == pytest.approx(-semantic, rel=1e-5)
    assert score("diswot-relation", student, teacher) == pytest.approx(-relation, rel=1e-5)
    assert score("diswot", student, teacher) == pytest.approx(-semantic - relation, rel=1e-5)


def test_the_code_form_compares_gradients_channel_by_channel_and_rows_of_the_gram_matrix() -> None:
    student, teacher = Mapped(6, seed=1), Mapped(6, seed=2)
    semantic = code_semantic(gradient(student), gradient(teacher))
    relation = code_relation(student, teacher)
    assert score("diswot-code-semantic", student, teacher) == pytest.approx(-semantic, rel=1e-5)
    assert score("diswot-code-relation", student, teacher) == pytest.approx(-relation, rel=1e-4)
    assert score("diswot-code", student, teacher) == pytest.approx(-semantic - relation, rel=1e-5)


def test_the_classifier_s_gradient_is_that_of_the_cross_entropy() -> None:
    network = Mapped(6, seed=1)
    assert array(classifier_gradient(network, batch())) == pytest.approx(gradient(network), rel=1e-4, abs=1e-7)


def test_the_relation_of_the_code_form_takes_networks_of_unequal_width() -> None:
    student, teacher = Mapped(6, seed=1), Mapped(9, seed=2)
    assert score("diswot-code-relation", student, teacher) == pytest.approx(-code_relation(student, teacher), rel=1e-4)


@pytest.mark.parametrize("name", ["diswot-code", "diswot-code-semantic"])
def test_the_code_form_says_which_widths_differ(name: str) -> None:
    with pytest.raises(UserError, match="student reads 6 channels and that of the teacher 9") as err:
        score(name, Mapped(6, seed=1), Mapped(9, seed=2))
    assert "diswot-semantic" in str(err.value)


@pytest.mark.parametrize("name", ["diswot", "diswot-code-semantic"])
def test_other_numbers_of_classes_are_an_error(name: str) -> None:
    student = Mapped(6, seed=1)
    student.classifier = nn.Linear(6, 3)
    with pytest.raises(UserError, match="the student has 3 and the teacher 4"):
        proxy_from_name(name).score(student, Mapped(6, seed=2), Batch(images=batch().images, labels=batch().labels % 3))


def test_the_golden_values_of_the_specification() -> None:
    distance = torch.linalg.norm(correlation(FEATURES_TEACHER) - correlation(FEATURES_STUDENT))
    assert float(distance) == pytest.approx(0.163027, abs=1e-6)
    assert closed_form(array(FEATURES_STUDENT), array(FEATURES_TEACHER)) == pytest.approx(1.407407, abs=1e-6)


def closed_form(student: Array, teacher: Array) -> float:
    """`2 - 2 * mean_k(cos(g_k, g'_k) * mean_i sign(g_ki * g'_ki))`, for gradients without zeros."""
    cosine = (student * teacher).sum(1) / np.linalg.norm(student, axis=1) / np.linalg.norm(teacher, axis=1)
    return float(2 - 2 * (cosine * np.sign(student * teacher).mean(1)).mean())


def test_the_code_form_is_a_cosine_times_an_agreement_of_signs() -> None:
    student, teacher = np.random.default_rng(0).normal(size=(2, CLASSES, 6))
    expected = closed_form(student, teacher)
    assert semantic_distance(torch.from_numpy(student), torch.from_numpy(teacher)) == pytest.approx(expected)
    assert code_semantic(student, teacher) == pytest.approx(expected)


def test_channels_and_classes_without_gradient_count_as_the_authors_zero_rows_do() -> None:
    # The closed form takes every row of E for a unit vector; the rows of zeros are none.
    found = semantic_distance(FEATURES_STUDENT, FEATURES_TEACHER)
    assert found == pytest.approx(code_semantic(array(FEATURES_STUDENT), array(FEATURES_TEACHER)))
    assert found == pytest.approx(0.962963, abs=1e-6)
    student = FEATURES_STUDENT * torch.tensor([[0.0], [1.0], [1.0]])
    expected = code_semantic(array(student), array(FEATURES_TEACHER))
    assert semantic_distance(student, FEATURES_TEACHER) == pytest.approx(expected)


def test_correlation_ignores_scale_and_rotation_of_the_features() -> None:
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0))).Q
    changed = 7 * FEATURES_STUDENT @ rotation
    assert torch.allclose(correlation(changed), correlation(FEATURES_STUDENT), atol=1e-6)


def test_dead_features_correlate_to_zero_and_not_to_nan() -> None:
    assert torch.equal(correlation(torch.zeros(3, 5)), torch.zeros(3, 3, dtype=torch.float64))
    assert torch.equal(row_normalised_gram(torch.zeros(3, 5)), torch.zeros(3, 3, dtype=torch.float64))


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
    given = batch_from_images(torch.randn(6, 3, 8, 8), None, classes=4)
    network = kind()
    assert -2 * 2**0.5 <= proxy_from_name("diswot").score(network, toy_cnn(), given) < 0
    assert proxy_from_name("diswot").score(network, network, given) == pytest.approx(0, abs=1e-6)
