"""Several teachers as one: their probabilities are averaged, and what each says stays at hand for those who ask."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edgekd.errors import UserError
from edgekd.nn.mode import evaluating
from edgekd.nn.shapes import example_images
from edgekd.train.reconcile import Reconciled
from edgekd.train.signal import TAPPED, Signal, Signals, SignalSpec
from edgekd.train.signals import SignalSource


class TeacherGroup(nn.Module):
    """Images to the log of the mean probability of its members (MEAL V2, Shen and Savvides 2020, arXiv 2009.08453).

    Their softmax is the mean itself, so a temperature of 1 sees exactly the average of the members; at another one,
    the average is softened, not the members.

    Args:
        members: Two or more networks of the same images and classes.

    Attributes:
        weights: Shares of the members in the mean; empty for equal ones.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.weights: tuple[float, ...] = ()

    def weigh_(self, weights: Sequence[float]) -> None:
        """Gives the members shares, in their order; they need not sum to 1.

        Raises:
            UserError: Another number of them, or nothing above 0.
        """
        if len(weights) != len(self.members) or sum(weights) <= 0:
            raise UserError(
                f"There are {len(self.members)} teachers and teacher_weights {list(weights)}: each needs one, and not "
                "all can be 0.",
                hint="in the order of --teacher and --also-teacher; `edgekd teachers` proposes weights",
            )
        self.weights = tuple(weight / sum(weights) for weight in weights)

    def forward(self, images: Tensor) -> Tensor:
        return mean_logits([member(images) for member in self.members], self.weights)


def mean_logits(logits: Sequence[Tensor], weights: Sequence[float] = ()) -> Tensor:
    """(N, K) at least float32: `log(sum_m w_m softmax(t_m))`, w equal where none are given.

    Raises:
        UserError: The teachers have unequal classes.
    """
    classes = [x.shape[1] for x in logits]
    if len(set(classes)) > 1:
        raise UserError(
            f"The teachers have {', '.join(map(str, classes))} classes: their answers cannot be averaged.",
            hint="give teachers of the same classes, in the same order",
        )
    whole = [x.float() if x.dtype in (torch.float16, torch.bfloat16) else x for x in logits]
    shares = weights or [1 / len(whole)] * len(whole)
    counted = [x.log_softmax(1) + math.log(w) for x, w in zip(whole, shares, strict=True) if w > 0]
    return torch.stack(counted).logsumexp(0)


class GroupSource(nn.Module):
    """The logits of a group, as `SignalSource` gives the signals of one network.

    Args:
        members: One source per teacher.
        input_shape: (C, H, W).
        weights: Of the members; empty for equal ones.
    """

    def __init__(
        self,
        members: Sequence[SignalSource],
        *,
        input_shape: tuple[int, int, int],
        weights: tuple[float, ...] = (),
    ) -> None:
        super().__init__()
        self._weights = weights
        self.members = nn.ModuleList(members)
        self._input_shape = input_shape

    def forward(self, images: Tensor) -> Signals:
        said: list[Signals] = [member(images) for member in self.members]
        return Signals(logits=mean_logits([signals.logits for signals in said], self._weights))

    @torch.no_grad()
    def example(self) -> Signals:
        """The signals of one black image, for their shapes."""
        with evaluating(self):
            out: Signals = self(example_images(self, self._input_shape))
        return out

    def spec(self) -> SignalSpec:
        """K."""
        return SignalSpec(classes=self.example().logits.shape[1])


def teacher_source(
    teacher: nn.Module, needs: frozenset[Signal], input_shape: tuple[int, int, int]
) -> SignalSource | GroupSource:
    """Where the signals of one teacher or of a group come from.

    Args:
        teacher: A network, a `Reconciled` one or a `TeacherGroup` of such.
        needs: Signals that objectives read; of a group there are logits alone.
        input_shape: (C, H, W) of the student's images.

    Raises:
        UserError: A signal is needed that a network does not have.
    """
    if isinstance(teacher, TeacherGroup):
        sources = [_single(member, needs - TAPPED, input_shape) for member in teacher.members]
        return GroupSource(sources, input_shape=input_shape, weights=teacher.weights)
    return _single(teacher, needs, input_shape)


def _single(module: nn.Module, needs: frozenset[Signal], input_shape: tuple[int, int, int]) -> SignalSource:
    if isinstance(module, Reconciled):
        return SignalSource(module.module, needs, input_shape, pixels=module.pixels, order=module.order)
    return SignalSource(module, needs, input_shape)
