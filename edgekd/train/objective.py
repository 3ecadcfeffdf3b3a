"""What an objective is: a scalar loss between a student's and a teacher's signals, with everything declared.

An objective says which signals it reads, whether it needs labels, which weights and warm-up its authors use, and gives
its formula and source. It knows nothing of loops, devices or data; the loop knows nothing of any single objective.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar, Generic, TypeVar

import torch
from pydantic import JsonValue
from torch import Tensor, nn

from edgekd.core.registry import Registry
from edgekd.core.schema import Schema
from edgekd.errors import EdgekdError


class Signal(StrEnum):
    """What an objective may read."""

    LOGITS = "logits"
    EMBEDDING = "embedding"
    """(N, D): the input of the classifier."""
    FEATURE_MAP = "feature_map"
    """(N, C, H, W): the last map before global pooling."""
    CLASS_MAPS = "class_maps"
    """(N, K, H, W): the classifier's weights applied to each pixel of that map."""
    LABELS = "labels"


TAPPED = frozenset({Signal.EMBEDDING, Signal.FEATURE_MAP, Signal.CLASS_MAPS})
"""Signals that a plain forward pass does not return."""


@dataclass(frozen=True, kw_only=True)
class Signals:
    """What one network says about a batch.

    Attributes:
        logits: (N, K), unnormalised.
        embedding: (N, D), when some objective asked for it.
        feature_map: (N, C, H, W), when some objective asked for it.
        class_maps: (N, K, H, W), when some objective asked for it.
    """

    logits: Tensor
    embedding: Tensor | None = None
    feature_map: Tensor | None = None
    class_maps: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class SignalSpec:
    """Sizes of a network's signals.

    Attributes:
        classes: K.
        width: D of the embedding, None when it is not tapped.
        channels: C of the feature map, None when it is not tapped.
    """

    classes: int
    width: int | None = None
    channels: int | None = None


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """The weights an objective's authors use: `supervised * CE + distill * min(1, (epoch + 1) / warm-up) * objective`.

    Attributes:
        supervised: Of the cross-entropy with the labels.
        distill: Of the objective.
        warmup: Share of all epochs over which the objective is faded in; in [0, 1).
    """

    supervised: float
    distill: float
    warmup: float = 0.0


C = TypeVar("C", bound=Schema)
T = TypeVar("T")


class Objective(nn.Module, ABC, Generic[C]):
    """A loss between a student and its teacher.

    The engine constructs it from a config, calls `bind` once, `prepare` once if `needs_class_means`, then `forward` per
    step. Parameters that `bind` creates are trained with the student and never exported.

    Contract, held by `edgekd.testing.conformance_objective`: the value is a finite scalar of at least float32 for any
    finite float16, bfloat16 or float32 signals; it does not depend on the order of the batch; the teacher gets no
    gradient; it reduces by the mean over samples, so that the gradient does not depend on K or N by accident.

    Attributes:
        name: Registry key.
        Config: Its arguments.
        needs: Signals it reads, of the student and of the teacher, and whether it reads labels.
        needs_labels: Whether `needs` holds `Signal.LABELS`; derived.
        teaches_classes: Whether `needs` holds `Signal.LOGITS`; derived. One that does not leaves the classifier to the
            cross-entropy, so it cannot train without labels either.
        needs_class_means: Whether `prepare` must be given the teacher's mean embedding per class.
        t_squared: Whether the temperature's square multiplies the loss, which keeps gradients comparable across T.
        default_weights: Used where a training config leaves the weights open.
        formula: One line.
        source: Authors, year, arXiv id.
    """

    name: ClassVar[str]
    Config: ClassVar[type[Schema]]
    needs: ClassVar[frozenset[Signal]]
    needs_labels: ClassVar[bool]
    teaches_classes: ClassVar[bool]
    needs_class_means: ClassVar[bool] = False
    t_squared: ClassVar[bool]
    default_weights: ClassVar[LossWeights]
    formula: ClassVar[str]
    source: ClassVar[str]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.needs_labels = Signal.LABELS in cls.needs
        cls.teaches_classes = Signal.LOGITS in cls.needs

    def __init__(self, config: C) -> None:
        super().__init__()
        self.config = config

    def bind(self, student: SignalSpec, teacher: SignalSpec) -> None:
        """Creates what depends on the sizes of the networks, such as an adapter. Called once."""
        return None

    def prepare(self, class_means: Tensor) -> None:
        """Takes the teacher's mean embedding per class, (K, D) float32. Called once, after `bind`."""
        return None

    @abstractmethod
    def forward(self, student: Signals, teacher: Signals, labels: Tensor | None) -> Tensor:
        """The loss, a scalar of at least float32.

        Args:
            student: With gradients.
            teacher: Without gradients.
            labels: (N,) int64; never None for an objective that needs labels.
        """


def full_precision(x: Tensor) -> Tensor:
    """At least float32: exponentials and differences of nearly equal numbers do not survive half precision."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def present(x: T | None, what: str) -> T:
    """A signal that was asked for.

    Raises:
        EdgekdError: The caller did not provide what the objective declares in `needs`.
    """
    if x is None:
        raise EdgekdError(f"The objective declared that it needs {what}, and did not get it.")
    return x


OBJECTIVES: Registry[type[Objective[Any]]] = Registry(
    "objective",
    {
        "kd": "edgekd.distill.objectives.kd:KD",
        "dkd": "edgekd.distill.objectives.dkd:DKD",
        "dist": "edgekd.distill.objectives.dist:DIST",
        "kdpp": "edgekd.distill.objectives.kdpp:KDPlusPlus",
        "sp": "edgekd.distill.objectives.sp:SP",
        "pkt": "edgekd.distill.objectives.pkt:PKT",
        "rkd": "edgekd.distill.objectives.rkd:RKD",
        "at": "edgekd.distill.objectives.at:AT",
        "fitnet": "edgekd.distill.objectives.fitnet:FitNet",
        "diswot": "edgekd.distill.objectives.diswot:DisWOT",
    },
)


def build_objective(name: str, args: Mapping[str, JsonValue]) -> Objective[Any]:
    """A registered objective with its arguments, not yet bound.

    Raises:
        UserError: Unknown name or argument; the message suggests the near one.
    """
    kind = OBJECTIVES.get(name)
    return kind(kind.Config.parse(args, f"arguments of the objective {name!r}"))


def label_free_objectives() -> tuple[str, ...]:
    """Names of the objectives that train a student without labels."""
    kinds = {name: OBJECTIVES.get(name) for name in OBJECTIVES}
    return tuple(name for name, kind in kinds.items() if kind.teaches_classes and not kind.needs_labels)
