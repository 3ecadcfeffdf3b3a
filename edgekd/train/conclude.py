"""The end of a training in which an objective has the last word (`Objective.conclude`): it may rewrite one layer.

Nothing is trained here, and the architecture stays. What stands beside the student may have learned what the student's
own last layer lacks; here it goes into that layer, before it is thrown away.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.functional import linear

from edgekd.core.digest import Json
from edgekd.data.batches import epoch_order, eval_batches
from edgekd.data.dataset import Split
from edgekd.errors import EdgekdError, UserError
from edgekd.nn.mode import evaluating
from edgekd.nn.shapes import example_images
from edgekd.nn.taps import CLASSIFIER, EMBEDDING, Taps
from edgekd.train.loop import Loop
from edgekd.train.loss_plan import LossPlan
from edgekd.train.projection import WeightProjection
from edgekd.train.review import Review, ReviewBatch
from edgekd.train.signal import Classifier, Signals

_BATCH = 256
_PROBES = 4


def check_conclusion(
    plan: LossPlan, student: nn.Module, input_shape: tuple[int, int, int], projection: WeightProjection | None
) -> None:
    """Makes sure, before the training, that what an objective would write after it can be written.

    Raises:
        UserError: The weights are projected, or the student's logits do not come straight out of a layer of its own.
    """
    names = [term.label for term in plan.terms if term.objective.concludes]
    if not names:
        return
    if projection is not None:
        raise UserError(
            f"The objective {names[0]!r} rewrites the student's last layer after the training, and this training keeps "
            "weights on a grid or at zero, which they would leave.",
            hint="distil with it first, and with another objective, such as kd, in this stage",
        )
    if _last_layer(student, input_shape) is None:
        raise UserError(
            f"The objective {names[0]!r} rewrites the student's last layer after the training, but the logits of this "
            f"{type(student).__name__} are not the output of one trainable Linear or 1x1 convolution on its embedding.",
            hint="choose an objective that leaves the last layer alone, such as kd or dhkd: edgekd objectives",
        )


@torch.no_grad()
def conclude_(loop: Loop, select: Split) -> tuple[Mapping[str, Mapping[str, Json]], tuple[str, ...]]:
    """Lets the objectives conclude, on the student's final weights; their metrics by label, and what is to be said.

    Args:
        loop: Run to its end, with the final weights in place.
        select: The split that decisions are taken on.
    """
    metrics: dict[str, Mapping[str, Json]] = {}
    said: list[str] = []
    epochs = loop.config.epochs
    for term in loop.plan.terms:
        if not term.objective.concludes:
            continue
        if term.schedule.until_epoch < epochs:
            said.append(
                f"The objective {term.label!r} ended with epoch {term.schedule.until_epoch} of {epochs}: what it had "
                "learned beside the student is out of date and was left out."
            )
            continue
        loop.reporter.message(f"The training is over; the objective {term.label!r} has the last word.")
        with evaluating(loop.lesson):
            conclusion = term.objective.conclude(_review(loop, select))
        metrics[term.label] = conclusion.metrics
        said += conclusion.decisions
    return metrics, tuple(said)


def _review(loop: Loop, select: Split) -> Review:
    batches = loop.batches
    classifier = _last_layer(loop.lesson.student.taps.module, batches.preprocessing.input_shape)
    if classifier is None:
        raise EdgekdError("The student's last layer cannot be written any more, and before the training it could.")

    def training(most: int) -> Iterator[ReviewBatch]:
        rows: npt.NDArray[np.int64] = np.sort(epoch_order(len(batches.split), batches.seed, 0)[:most])
        return _batches(loop, batches.split.subset(rows))

    return Review(classifier=classifier, training=training, select=lambda: _batches(loop, select))


def _batches(loop: Loop, split: Split) -> Iterator[ReviewBatch]:
    device = loop.fabric.device
    layout = torch.channels_last if loop.batches.channels_last else torch.contiguous_format
    for batch in eval_batches(split, loop.batches.preprocessing, _BATCH):
        with torch.no_grad():
            said: Signals = loop.lesson.student(torch.from_numpy(batch.images).to(device, memory_format=layout))
        assert batch.labels is not None, "data without labels is refused before the training"
        yield ReviewBatch(said, torch.from_numpy(batch.labels).to(device))


def _last_layer(student: nn.Module, input_shape: tuple[int, int, int]) -> Classifier | None:
    """The parameters (K, D) and (K,) whose product with the embedding is the logits; None where there are none."""
    try:
        taps = Taps(student, {EMBEDDING, CLASSIFIER}, input_shape)
    except UserError:
        return None
    assert taps.points is not None
    layer: Any = student.get_submodule(taps.points.classifier)
    weight, bias = layer.weight, layer.bias
    own = [isinstance(x, nn.Parameter) and x.requires_grad for x in (weight, bias) if x is not None]
    if not all(own):
        return None
    blank = example_images(student, input_shape, batch=_PROBES)
    generator = torch.Generator().manual_seed(0)
    probes = torch.randn(blank.shape, generator=generator).to(blank)
    with evaluating(student), torch.no_grad():
        out = taps(probes)
        expected = linear(out.embedding, weight.flatten(1), bias)
    scale = float(expected.abs().max())
    if out.logits.shape != expected.shape or not torch.allclose(out.logits, expected, rtol=0, atol=1e-3 * scale + 1e-6):
        return None
    return Classifier(weight.detach().flatten(1), None if bias is None else bias.detach())
