"""Signals survive the flat form that steps, caches and processes exchange; schedules see where the training stands."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from edgekd.train.gather import gathered
from edgekd.train.signal import Classifier, Progress, Signals, signals_from_flat


def full(more: tuple[Signals, ...] = ()) -> Signals:
    return Signals(
        logits=torch.randn(2, 3),
        embedding=torch.randn(2, 4),
        feature_map=torch.randn(2, 4, 2, 2),
        class_maps=torch.randn(2, 3, 2, 2),
        stages=tuple(torch.randn(2, 1, side, side) for side in range(12, 0, -1)),
        classifier=Classifier(torch.randn(3, 4), torch.randn(3)),
        ids=torch.arange(2),
        more=more,
    )


def test_signals_come_back_from_their_flat_form() -> None:
    signals = full((full(), full()))
    flat = signals.flat()
    again = signals_from_flat(flat)
    assert all(isinstance(value, Tensor) for value in flat.values())
    assert again.flat().keys() == flat.keys()
    assert all(torch.equal(value, flat[name]) for name, value in again.flat().items())
    assert [stage.shape for stage in again.stages or ()] == [stage.shape for stage in signals.stages or ()]


def test_rows_are_those_of_every_view_but_not_of_the_classifier() -> None:
    signals = full((full(), full()))
    last = signals.rows(slice(1, 2))
    assert last.ids is not None
    assert last.ids.tolist() == [1]
    for name, value in last.flat().items():
        whole = signals.flat()[name]
        assert torch.equal(value, whole if "classifier." in name else whole[1:])
    assert len(last.more) == 2


def test_what_is_missing_stays_missing() -> None:
    alone = signals_from_flat(Signals(logits=torch.zeros(1, 2), classifier=Classifier(torch.zeros(2, 2), None)).flat())
    assert (alone.stages, alone.embedding, alone.ids, alone.more) == (None, None, None, ())
    assert alone.classifier is not None
    assert alone.classifier.bias is None


def test_progress_is_a_share_below_one() -> None:
    assert Progress.start().share == 0
    assert Progress(step=3, steps=4, epoch=1, epochs=2).share == pytest.approx(0.75)


def test_one_process_gathers_its_own_rows_without_gradients() -> None:
    rows = torch.randn(3, 2, requires_grad=True)
    assert torch.equal(gathered(rows), rows)
    assert not gathered(rows).requires_grad
