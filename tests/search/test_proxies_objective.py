"""Distillation objectives as teacher-student proxies."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from edgekd.errors import UserError
from edgekd.nn.build import module_from_recipe
from edgekd.search.proxies.network import batch_statistics
from edgekd.search.proxies.objective import scoring_objectives
from edgekd.search.proxy import Batch, Unscorable
from edgekd.search.proxy_names import proxy_from_name
from edgekd.testing.toys import toy_cnn, toy_recipe
from edgekd.train.objective import OBJECTIVES, Signals, SignalSpec, build_objective


def batch() -> Batch:
    images = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return Batch(images=images, labels=torch.tensor([0, 1, 2, 3, 0, 1]))


def signals(module: torch.nn.Module) -> Signals:
    with batch_statistics(module), torch.no_grad():
        maps = module.stages(module.stem(batch().images))
        embedding = maps.mean((2, 3))
        return Signals(logits=module.classifier(embedding), embedding=embedding, feature_map=maps)


@pytest.mark.parametrize("name", ["kd", "dist", "sp"])
def test_the_score_is_the_negated_objective_between_the_signals_of_both(name: str) -> None:
    student, teacher = toy_cnn(seed=1), toy_cnn(seed=2)
    expected = -build_objective(name, {})(signals(student), signals(teacher), None)
    assert proxy_from_name(f"loss-{name}").score(student, teacher, batch()) == pytest.approx(float(expected), rel=1e-4)


def test_an_objective_that_needs_labels_gets_those_of_the_batch() -> None:
    student, teacher = toy_cnn(seed=1), toy_cnn(seed=2)
    expected = -build_objective("dkd", {})(signals(student), signals(teacher), batch().labels)
    assert proxy_from_name("loss-dkd").score(student, teacher, batch()) == pytest.approx(float(expected), rel=1e-4)


def test_an_objective_that_needs_class_means_gets_those_of_the_batch() -> None:
    student, teacher = toy_cnn(seed=1), toy_cnn(seed=2)
    spoken = signals(teacher)
    assert spoken.embedding is not None
    hot = F.one_hot(batch().labels, 4).float()
    objective = build_objective("kdpp", {})
    objective.bind(SignalSpec(classes=4, width=16), SignalSpec(classes=4, width=16))
    objective.class_directions.copy_(F.normalize(hot.T @ spoken.embedding / hot.sum(0)[:, None]))
    expected = -objective(signals(student), spoken, batch().labels)
    assert proxy_from_name("loss-kdpp").score(student, teacher, batch()) == pytest.approx(float(expected), rel=1e-4)


def test_a_student_that_would_need_an_adapter_to_be_compared_is_skipped() -> None:
    wider = module_from_recipe(
        toy_recipe().model_copy(update={"kwargs": {**toy_recipe().kwargs, "widths": [8, 8, 24]}})
    )
    with pytest.raises(Unscorable, match="'kdpp' would compare it through layers that must learn first"):
        proxy_from_name("loss-kdpp").score(wider, toy_cnn(), batch())


def test_every_objective_that_can_score_has_a_proxy_that_carries_its_formula_and_source() -> None:
    for name in scoring_objectives():
        proxy = proxy_from_name(f"loss-{name}")
        assert OBJECTIVES.get(name).formula in proxy.formula
        assert proxy.source == OBJECTIVES.get(name).source
        assert proxy.uses_teacher


@pytest.mark.parametrize("name", ["pskd", "exits", "reviewkd", "crd", "fitnet"])
def test_an_objective_that_must_learn_first_or_looks_at_the_student_alone_is_no_proxy(name: str) -> None:
    with pytest.raises(UserError, match=f"'{name}' compares a student with itself, remembers .* or trains") as caught:
        proxy_from_name(f"loss-{name}")
    assert "objectives that can score: kd, dkd" in str(caught.value.hint)


def test_other_numbers_of_classes_are_an_error() -> None:
    with pytest.raises(UserError, match="the student has 3 and the teacher 4"):
        proxy_from_name("loss-kd").score(toy_cnn(classes=3), toy_cnn(), batch())


def test_a_student_without_the_signal_is_skipped_and_a_teacher_without_it_is_an_error() -> None:
    flat = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 4))
    with pytest.raises(Unscorable, match="feature map"):
        proxy_from_name("loss-at").score(flat, toy_cnn(), batch())
    with pytest.raises(UserError, match="feature map"):
        proxy_from_name("loss-at").bind(flat, batch())
