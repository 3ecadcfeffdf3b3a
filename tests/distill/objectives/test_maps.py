"""AT, FitNet and DisWOT-dagger against loops in float64, on maps of different widths and sizes."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgekd.distill.objectives.at import attention_distance
from edgekd.distill.objectives.diswot import correlation_distance
from edgekd.distill.objectives.fitnet import FitNet
from edgekd.errors import UserError
from edgekd.testing.toys import toy_cnn
from edgekd.train.objective import Signal, Signals, SignalSpec, build_objective
from edgekd.train.signals import SignalSource
from tests.nn.zoo import ConvHead, Tokens, images

Array = npt.NDArray[np.float64]
SHAPE = (3, 8, 8)


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def on(*, logits: Tensor | None = None, feature_map: Tensor, class_maps: Tensor | None = None) -> Signals:
    logits = feature_map.mean((2, 3)) if logits is None else logits
    return Signals(logits=logits, feature_map=feature_map, class_maps=class_maps)


def test_at_is_what_loops_over_pixels_give() -> None:
    f, g = drawn(1, 2, 3, 2, 2), drawn(2, 2, 5, 2, 2)

    def attention(maps: Array) -> Array:
        found = np.array([[np.mean(maps[:, h, w] ** 2) for w in range(2)] for h in range(2)]).ravel()
        return np.asarray(found / math.sqrt(sum(value**2 for value in found)))

    pairs = zip(f.numpy(), g.numpy(), strict=True)
    expected = np.mean([(attention(a) - attention(b)) ** 2 for a, b in pairs])
    assert attention_distance(f, g).item() == pytest.approx(expected, abs=1e-12)


def test_at_pools_the_larger_attention_map() -> None:
    f, g = drawn(1, 2, 3, 2, 2), drawn(2, 2, 5, 4, 4)
    pooled = F.avg_pool2d(g.square().mean(1, keepdim=True), 2)
    torch.testing.assert_close(attention_distance(f, g), attention_distance(f, pooled.sqrt()))
    torch.testing.assert_close(attention_distance(g, f), attention_distance(f, g))


def fitnet(student: int, teacher: int) -> FitNet:
    torch.manual_seed(0)
    objective = build_objective("fitnet", {})
    assert isinstance(objective, FitNet)
    objective.bind(SignalSpec(classes=4, channels=student), SignalSpec(classes=4, channels=teacher))
    return objective.double()


def test_at_over_all_stages_is_the_sum_over_pairs_from_the_end() -> None:
    ours = [drawn(number, 2, 3, side, side) for number, side in enumerate((8, 4, 2))]
    theirs = [drawn(9 + number, 2, 5, side, side) for number, side in enumerate((4, 2))]

    def unit(maps: Tensor) -> Array:
        found = (maps.numpy() ** 2).mean(1).reshape(2, -1)
        return np.asarray(found / np.sqrt((found**2).sum(1, keepdims=True)))

    pairs = zip(ours[1:], theirs, strict=True)
    expected = sum(float(((unit(f) - unit(g)) ** 2).mean()) for f, g in pairs)
    objective = build_objective("at", {"stages": "all"})
    student, teacher = (Signals(logits=maps[-1].mean((2, 3)), stages=tuple(maps)) for maps in (ours, theirs))
    assert objective(student, teacher, None).item() == pytest.approx(expected, abs=1e-12)
    assert objective.needs == objective.needs_of_teacher == {Signal.STAGES}
    assert build_objective("at", {}).needs == {Signal.FEATURE_MAP}


def test_fitnet_at_a_stage_is_fitnet_of_its_map() -> None:
    shapes = ((3, 8, 8), (5, 4, 4), (7, 2, 2))
    maps = tuple(drawn(number, 2, *shape) for number, shape in enumerate(shapes))
    goal = tuple(drawn(9 + number, 2, *shape) for number, shape in enumerate(((4, 4, 4), (6, 2, 2))))
    objective = build_objective("fitnet", {"stage": -2})
    theirs = SignalSpec(classes=7, stages=((4, 4, 4), (6, 2, 2)))
    objective.bind(SignalSpec(classes=7, stages=shapes), theirs)
    plain = fitnet(5, 4)
    plain.load_state_dict(objective.state_dict())
    found = objective.double()(Signals(logits=maps[0], stages=maps), Signals(logits=goal[0], stages=goal), None)
    assert torch.equal(found, plain(on(feature_map=maps[1]), on(feature_map=goal[0]), None))
    assert objective.needs == {Signal.STAGES}
    with pytest.raises(UserError, match=r"at stage -3, and one network has 2 stages(.|\n)*set stage to -2"):
        build_objective("fitnet", {"stage": -3}).bind(SignalSpec(classes=7, stages=shapes), theirs)


def test_fitnet_is_the_mean_square_of_what_its_regressor_leaves() -> None:
    objective = fitnet(3, 5)
    f, g = drawn(1, 2, 3, 4, 4), drawn(2, 2, 5, 2, 2)
    weight = objective.state_dict()["regressor.0.weight"].numpy()[:, :, 0, 0]
    pooled = f.numpy().reshape(2, 3, 2, 2, 2, 2).mean((3, 5))
    squares = []
    for k in range(5):
        answers = np.array([sum(weight[k, c] * pooled[n, c] for c in range(3)) for n in range(2)])
        normalised = (answers - answers.mean()) / math.sqrt(answers.var() + 1e-5)
        squares.append((normalised - g[:, k].numpy()) ** 2)
    assert objective(on(feature_map=f), on(feature_map=g), None).item() == pytest.approx(np.mean(squares), abs=1e-12)


def test_fitnets_regressor_is_trained_and_starts_as_the_identity_between_equal_widths() -> None:
    same = drawn(1, 2, 3, 4, 4)
    assert fitnet(3, 3).eval()(on(feature_map=same), on(feature_map=same), None).item() == pytest.approx(0, abs=1e-9)
    assert {tuple(p.shape) for p in fitnet(3, 5).parameters() if p.requires_grad} == {(5, 3, 1, 1), (5,)}


def test_fitnet_without_feature_maps_is_an_error() -> None:
    with pytest.raises(UserError, match="needs the feature maps of both networks"):
        build_objective("fitnet", {}).bind(SignalSpec(classes=4, channels=3), SignalSpec(classes=4))


def correlation_by_hand(rows: Array) -> Array:
    products = np.array([[sum(a * b) for b in rows] for a in rows])
    return np.asarray(products / math.sqrt(sum(value**2 for value in products.ravel())))


def test_diswot_is_kd_and_the_distances_of_both_correlations_over_their_squared_sizes() -> None:
    samples, classes = 3, 4
    s = on(logits=drawn(1, 3, 4), feature_map=drawn(2, 3, 5, 2, 2), class_maps=drawn(3, 3, 4, 2, 2))
    t = on(logits=drawn(4, 3, 4), feature_map=drawn(5, 3, 6, 3, 3), class_maps=drawn(6, 3, 4, 3, 3))

    def correlations(signals: Signals) -> tuple[Array, Array]:
        assert signals.class_maps is not None
        assert signals.feature_map is not None
        by_class = [signals.class_maps[:, k].numpy().ravel() for k in range(classes)]
        by_sample = [signals.feature_map[n].numpy().ravel() for n in range(samples)]
        return correlation_by_hand(np.array(by_class)), correlation_by_hand(np.array(by_sample))

    (classes_s, samples_s), (classes_t, samples_t) = correlations(s), correlations(t)
    semantic = math.sqrt(((classes_s - classes_t) ** 2).sum())
    relation = math.sqrt(((samples_s - samples_t) ** 2).sum())
    kd = build_objective("kd", {})(s, t, None).item()
    value = build_objective("diswot", {})(s, t, None).item()
    assert value == pytest.approx(0.9 * kd + semantic / classes**2 + relation / samples**2, abs=1e-12)
    weighed = build_objective("diswot", {"kd_weight": 0, "semantic_weight": 2, "relation_weight": 3})(s, t, None)
    assert weighed.item() == pytest.approx(2 * semantic + 3 * relation, abs=1e-12)


def test_the_relation_distance_has_its_golden_value() -> None:
    student = torch.tensor([[1, 2, 2], [0, 3, 4], [1, 0, -1]], dtype=torch.float64)
    teacher = torch.tensor([[2, 1, 2], [3, -1, 4], [0, 1, 0]], dtype=torch.float64)
    assert correlation_distance(student, teacher).item() == pytest.approx(0.163027, abs=1e-6)


def class_maps(module: nn.Module) -> Tensor:
    source = SignalSource(module.eval(), frozenset({Signal.CLASS_MAPS}), SHAPE)
    out: Signals = source(images())
    assert out.feature_map is None
    assert out.class_maps is not None
    return out.class_maps


def test_class_maps_average_to_the_logits_without_bias_for_a_linear_and_for_a_convolutional_head() -> None:
    module = toy_cnn()
    bias = module.get_parameter("classifier.bias")
    torch.testing.assert_close(class_maps(module).mean((2, 3)), module(images()) - bias)
    head = ConvHead()
    bias = head.get_parameter("head.bias")
    torch.testing.assert_close(class_maps(head), head.head(head.features(images())) - bias[:, None, None])


class HiddenLayer(nn.Module):
    """A layer between the pooled map and the classifier, both of one width."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 6, 3, padding=1)
        self.hidden = nn.Linear(6, 6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.hidden(self.body(x).mean((2, 3))))
        return out


def test_a_classifier_that_does_not_read_the_pooled_map_has_no_class_maps() -> None:
    with pytest.raises(UserError, match=r"'head' of this HiddenLayer does not read its last feature map \('body'\)"):
        class_maps(HiddenLayer())
    with pytest.raises(UserError, match="'head' of this Tokens reads no feature map"):
        class_maps(Tokens())
