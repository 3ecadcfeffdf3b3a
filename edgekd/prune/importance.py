"""What an importance is: a score per unit of each channel group, with everything it needs to see declared.

An importance knows nothing of ratios, latencies or stages; a plan knows nothing of any single importance.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

import torch
from torch import Tensor, nn

from edgekd.core.registry import Registry
from edgekd.errors import BuildFailed, EdgekdError
from edgekd.nn.channels.groups import ChannelGroup


class Need(StrEnum):
    """What an importance may look at beside the weights."""

    IMAGES = "images"
    LABELS = "labels"
    """Of these images."""
    TEACHER = "teacher"


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What an importance sees.

    Attributes:
        module: The network that will be cut, in evaluation mode; it is left as it was.
        images: (N, C, H, W) float32 on the CPU, preprocessed and not augmented; None where no image is needed.
        labels: (N,) int64 on the CPU, or None.
        teacher: Images of the same preprocessing to logits of the same classes, in evaluation mode, on the module's
            device; or None.
        batch_size: Images that are looked at together; no score depends on it, up to rounding.
    """

    module: nn.Module
    images: Tensor | None = None
    labels: Tensor | None = None
    teacher: nn.Module | None = None
    batch_size: int = 32

    def batches(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """(images, labels) of at most `batch_size`, in order, on the module's device.

        Raises:
            EdgekdError: There are no images: the importance did not declare that it needs them.
        """
        if self.images is None:
            raise EdgekdError("The importance asked for images that it did not declare in `needs`.")
        device = next(self.module.parameters()).device
        for start in range(0, len(self.images), self.batch_size):
            rows = slice(start, start + self.batch_size)
            yield self.images[rows].to(device), None if self.labels is None else self.labels[rows].to(device)


class Importance(ABC):
    """How much a network would miss each unit of its channel groups.

    Contract, held by `edgekd.testing.conformance_importance`: one finite float64 score per unit, higher is more
    important; 0 for a unit whose weights are all 0; equal evidence gives equal scores; neither the order of the images
    nor how they are batched matters; scores follow the units when these are numbered otherwise; module and teacher are
    left as they were.

    Attributes:
        name: Registry key.
        needs: What it looks at beside the weights.
        comparable: Whether scores of different groups stand on one scale (an increase of the loss, a share). Others are
            made comparable by `scores_of`.
        formula: One line; `u` is a unit, `r` the layers that read it, `a` what they read of it.
        source: Authors, year, arXiv id.
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[Need]] = frozenset()
    comparable: ClassVar[bool] = False
    formula: ClassVar[str]
    source: ClassVar[str]

    @abstractmethod
    def scores(self, evidence: Evidence, groups: Sequence[ChannelGroup]) -> dict[str, Tensor]:
        """(units,) float64 by group name, in the importance's own scale.

        Args:
            evidence: Holds at least what `needs` declares.
            groups: Proved groups of the module; names differ.
        """

    def remarks(self, evidence: Evidence, groups: Sequence[ChannelGroup]) -> tuple[str, ...]:
        """Sentences on what was substituted; empty when nothing was."""
        return ()


def scores_of(importance: Importance, evidence: Evidence, groups: Sequence[ChannelGroup]) -> dict[str, Tensor]:
    """(units,) float64 by group name, comparable across groups.

    Scores that stand on one scale stay as they are. Others are divided by their mean over the group: widths and scales
    of weights differ between groups, and neither says how much a group matters.

    Raises:
        BuildFailed: A score is not finite; the message names the group.
    """
    found = importance.scores(evidence, groups)
    for name, scores in found.items():
        if not torch.isfinite(scores).all():
            raise BuildFailed(
                f"The importance {importance.name!r} is not finite for the group {name!r}.",
                hint="the network's outputs overflow on the calibration images; check the preprocessing, or use l2",
            )
    if importance.comparable:
        return found
    return {name: _with_mean_one(scores) for name, scores in found.items()}


def _with_mean_one(scores: Tensor) -> Tensor:
    mean = scores.mean()
    return scores / mean if mean > 0 else torch.ones_like(scores)


_PLACE = "edgekd.prune.importances"
IMPORTANCES: Registry[type[Importance]] = Registry(
    "importance",
    {
        "l2": f"{_PLACE}.weights:L2",
        "l1": f"{_PLACE}.weights:L1",
        "bn": f"{_PLACE}.weights:BatchNormScale",
        "lamp": f"{_PLACE}.weights:Lamp",
        "flap": f"{_PLACE}.flap:Flap",
        "taylor": f"{_PLACE}.taylor:Taylor",
        "fisher": f"{_PLACE}.taylor:Fisher",
        "kd": f"{_PLACE}.kd:Distillation",
    },
)


def needs_of(name: str) -> frozenset[Need]:
    """What the importance of this name looks at.

    Raises:
        UserError: Unknown name; the message suggests the near one.
    """
    return IMPORTANCES.get(name).needs


def build_importance(name: str) -> Importance:
    """A registered importance.

    Raises:
        UserError: Unknown name; the message suggests the near one.
    """
    return IMPORTANCES.get(name)()


def importances_without(missing: frozenset[Need]) -> tuple[str, ...]:
    """Names of the importances that do without some things, for hints."""
    kinds: Mapping[str, type[Importance]] = {name: IMPORTANCES.get(name) for name in IMPORTANCES}
    return tuple(name for name, kind in kinds.items() if not kind.needs & missing)
