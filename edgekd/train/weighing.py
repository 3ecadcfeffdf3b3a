"""Objectives that weigh their terms image by image, and learn how from images that are held out of the training.

A training minimises `mean_i sum_j a_ij(w) * term_ij(theta)` over the student's weights theta. The weights a come from a
small network, the controller, which this loss must not train: it would turn to whichever term is smallest. Its own
weights w are moved every few steps, so that the student does better on held-out images; that is done by
`edgekd.train.outer`, which knows no single objective. What a class of this kind gives it is here.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from edgekd.core.schema import Schema
from edgekd.train.objective import Objective, Signal, Signals


class WeighingConfig(Schema):
    """Arguments that every weighing objective has.

    Attributes:
        held_out: Share of the training images that the student is never trained on: on them the controller learns.
        every: Training steps from one step of the controller to the next.
        rate: Learning rate of the controller, for Adam. A larger one drives every weight to 0 or 1 before the student
            has learned anything that tells images apart.
    """

    held_out: float = Field(default=0.1, gt=0, le=0.5)
    every: int = Field(default=10, ge=1)
    rate: float = Field(default=1e-3, gt=0)


W = TypeVar("W", bound=WeighingConfig)


class Weighing(Objective[W]):
    """`mean_i sum_j a_ij * term_ij`: the terms train the student, and a controller gives the weights of each image.

    A subclass creates its controller in `bind` by `take_controller`. The controller asks for no gradient, so the
    training's own optimizer, weight decay and processes leave it alone; its weights are part of the state.

    Attributes:
        needs: Labels at least: the held-out images are judged by theirs.
        term_names: Of the J terms, for reports.
        controller: Maps what `state` returns to what `weights` reads.
        seen: (N, S) what the controller was shown in the last training pass.
    """

    needs: ClassVar = frozenset({Signal.LOGITS, Signal.LABELS})
    term_names: ClassVar[tuple[str, ...]]
    controller: nn.Module

    def __init__(self, config: W) -> None:
        super().__init__(config)
        self.seen: Tensor | None = None

    def take_controller(self, controller: nn.Module) -> None:
        """Takes the network that gives the weights."""
        self.controller = controller.requires_grad_(False)

    @abstractmethod
    def state(self, student: Signals, teacher: Signals, labels: Tensor | None) -> Tensor:
        """(N, S) of at least float32: what the controller is shown of each image."""

    @abstractmethod
    def weights(self, state: Tensor) -> Tensor:
        """(N, J) weights of the terms, at least 0, with gradients where the controller asks for them."""

    @abstractmethod
    def terms(self, student: Signals, teacher: Signals, labels: Tensor | None) -> Tensor:
        """(N, J) losses of each image, of at least float32; they do not depend on the controller."""

    def forward(self, student: Signals, teacher: Signals, labels: Tensor | None) -> Tensor:
        with torch.no_grad():
            state = self.state(student, teacher, labels)
            weights = self.weights(state)
        if self.training:
            self.seen = state
        return (weights * self.terms(student, teacher, labels)).sum(1).mean()
