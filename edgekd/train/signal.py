"""What networks say about a batch, as objectives read it, and where in a training. Plain data, no networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from torch import Tensor


class Signal(StrEnum):
    """What an objective may read."""

    LOGITS = "logits"
    EMBEDDING = "embedding"
    """(N, D): the input of the classifier."""
    FEATURE_MAP = "feature_map"
    """(N, C, H, W): the last map before global pooling; of a transformer, its last tokens as a grid."""
    CLASS_MAPS = "class_maps"
    """(N, K, H, W): the classifier's weights applied to each pixel of that map."""
    STAGES = "stages"
    """Tuple of (N, C_l, H_l, W_l): the last map of each resolution, from the image to the classifier."""
    CLASSIFIER = "classifier"
    """The classifier's weight (K, D) and bias (K,): the embedding times the one plus the other are the logits."""
    LABELS = "labels"
    IDS = "ids"
    """(N,): the position of each sample in the training split; of the student alone."""


TAPPED = frozenset({Signal.EMBEDDING, Signal.FEATURE_MAP, Signal.CLASS_MAPS, Signal.STAGES, Signal.CLASSIFIER})
"""Signals that a plain forward pass does not return."""
_MORE = "more"
_SINGLE = (Signal.LOGITS, Signal.EMBEDDING, Signal.FEATURE_MAP, Signal.CLASS_MAPS, Signal.IDS)


class Classifier(NamedTuple):
    """A network's last layer.

    Attributes:
        weight: (K, D).
        bias: (K,), or None.
    """

    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True, kw_only=True)
class Signals:
    """What one network says about a batch; all but the logits are None when no objective asked for them.

    Attributes:
        logits: (N, K), unnormalised. Of several teachers: log of their mean probability.
        embedding: (N, D).
        feature_map: (N, C, H, W).
        class_maps: (N, K, H, W).
        stages: (N, C_l, H_l, W_l) each, from the image to the classifier, so a student and a teacher with unequally
            many are paired from the end. Tokens of a transformer are maps where they form a grid.
        classifier: Weight and bias; the student's have gradients.
        ids: (N,) int64, of the student alone.
        more: Of the student, what it says of each further view that the objective asked for (`Objective.more_images`),
            sample by sample as above; empty where it asked for none.
    """

    logits: Tensor
    embedding: Tensor | None = None
    feature_map: Tensor | None = None
    class_maps: Tensor | None = None
    stages: tuple[Tensor, ...] | None = None
    classifier: Classifier | None = None
    ids: Tensor | None = None
    more: tuple[Signals, ...] = ()

    def flat(self) -> dict[str, Tensor]:
        """Every tensor by a dotted name; `signals_from_flat` is the inverse."""
        out: dict[str, Tensor] = {}
        for name in _SINGLE:
            value = getattr(self, name)
            if value is not None:
                out[str(name)] = value
        for number, stage in enumerate(self.stages or ()):
            out[f"{Signal.STAGES}.{number}"] = stage
        if self.classifier is not None:
            out[f"{Signal.CLASSIFIER}.weight"] = self.classifier.weight
            if self.classifier.bias is not None:
                out[f"{Signal.CLASSIFIER}.bias"] = self.classifier.bias
        for number, signals in enumerate(self.more):
            out |= {f"{_MORE}.{number}.{name}": value for name, value in signals.flat().items()}
        return out

    def rows(self, rows: slice) -> Signals:
        """What is said of some of the samples."""
        of_all = f"{Signal.CLASSIFIER}."
        return signals_from_flat({name: x if of_all in name else x[rows] for name, x in self.flat().items()})


def signals_from_flat(values: Mapping[str, Tensor]) -> Signals:
    """The signals whose `flat` is `values`."""
    stages = _numbered(values, Signal.STAGES)
    weight = values.get(f"{Signal.CLASSIFIER}.weight")
    return Signals(
        logits=values[Signal.LOGITS],
        embedding=values.get(Signal.EMBEDDING),
        feature_map=values.get(Signal.FEATURE_MAP),
        class_maps=values.get(Signal.CLASS_MAPS),
        stages=stages or None,
        classifier=None if weight is None else Classifier(weight, values.get(f"{Signal.CLASSIFIER}.bias")),
        ids=values.get(Signal.IDS),
        more=_nested(values),
    )


def _nested(values: Mapping[str, Tensor]) -> tuple[Signals, ...]:
    found: dict[int, dict[str, Tensor]] = {}
    for name, value in values.items():
        if name.startswith(f"{_MORE}."):
            _, number, inner = name.split(".", 2)
            found.setdefault(int(number), {})[inner] = value
    return tuple(signals_from_flat(found[number]) for number in sorted(found))


def _numbered(values: Mapping[str, Tensor], prefix: str) -> tuple[Tensor, ...]:
    found: list[Tensor] = []
    while f"{prefix}.{len(found)}" in values:
        found.append(values[f"{prefix}.{len(found)}"])
    return tuple(found)


@dataclass(frozen=True, kw_only=True)
class SignalSpec:
    """Sizes of a network's signals; None where a signal is not tapped.

    Attributes:
        classes: K.
        width: D of the embedding.
        channels: C of the feature map.
        stages: (C, H, W) of each stage's map.
    """

    classes: int
    width: int | None = None
    channels: int | None = None
    stages: tuple[tuple[int, int, int], ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where an objective stands in its epochs, before a step; they are the whole training unless its term says less.

    Attributes:
        step: Number of the step, from 0 at its first one.
        steps: In all of its epochs.
        epoch: Number of the epoch, from 0 at its first one.
        epochs: How many it has.
    """

    step: int
    steps: int
    epoch: int
    epochs: int

    @property
    def share(self) -> float:
        """Part of its steps that is done, in [0, 1)."""
        return self.step / self.steps

    @staticmethod
    def start() -> Progress:
        """Before the first step, of a training of unknown length."""
        return Progress(step=0, steps=1, epoch=0, epochs=1)
