"""The outer step of a training on two levels: a controller learns on held-out images how to weigh a loss's terms.

The training takes steps on `L(theta, w) = mean_i sum_j a_ij(w) * term_ij(theta)` over the student's weights theta
(`edgekd.train.weighing`). The controller's weights w should make V, the cross-entropy on held-out images, small where
such a step leads to, theta'. Through that one step

    dV(theta') / dw = -lr * d/dw [dL/dtheta . v] = -lr * mean_i sum_j da_ij/dw * d_ij,    v = dV/dtheta at theta'

with d_ij the derivative of term_ij along v at theta. Only a depends on w, and what the controller is shown is detached,
so no second derivative of the student is ever taken: d_ij is a central difference of two forward passes at
theta +- eps * v, as Liu, Simonyan and Yang (2019, arXiv 1806.09055) take it. An outer step costs those two and one
forward and backward pass over held-out images.

What is approximated: one step is looked ahead, and of it -lr times the gradient is what depends on w. For SGD with
momentum and weight decay that is exact for the step itself (Nesterov's factor is a positive constant, which Adam takes
out again); what momentum carries into later steps, clipping, and the scaling of AdamW are left out. Everything here is
computed in float32, without autocast and TF32: a difference of two losses that were rounded to 8 or 11 bits is noise.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from edgekd.tasks.classification import supervised_loss
from edgekd.train.batches import TrainBatches
from edgekd.train.engine import Fabric
from edgekd.train.lesson import Lesson
from edgekd.train.signal import Signals, signals_from_flat
from edgekd.train.weighing import Weighing

REACH = 0.001
"""eps * |v|: how far the two passes of a difference are from the weights between them. Liu et al. take 0.01; against
float64, the slopes of a ResNet-20 in float32 were 2 to 6 % off with theirs and 1 to 2 % with this, for fewer ReLUs
switch in between."""
_ADAM_EPS = 1e-15
"""The gradient has the scale of the student's learning rate, down to nothing at its end, and Adam takes scales out."""

Weights = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class InnerStep:
    """A training step, as an outer step looks back at it.

    Attributes:
        images: (N, C, H, W), as the student saw them.
        labels: (N,) int64.
        ids: (N,) int64.
        teacher: Its signals by the names of `Signals.flat`, or None.
        weights: Of every term of the loss.
        rate: The learning rate.
    """

    images: Tensor
    labels: Tensor | None
    ids: Tensor
    teacher: Mapping[str, Tensor] | None
    weights: Sequence[float]
    rate: float


class OuterStep:
    """Moves the controller of a weighing objective every few training steps.

    BatchNorm normalises as it does in the training, by the batch, and dropout drops what it dropped in the training
    pass; running statistics and the student's weights are what they were after an outer step.

    Args:
        lesson: The training's.
        place: Of the objective among the lesson's.
        batches: Of the held-out images, not augmented.
        fabric: Device and processes.
        clock: Seconds; injected by tests.

    Attributes:
        steps: Outer steps so far.
        seconds: That they took.
        found: (2, J): mean and standard deviation of the weights over the images of the last outer step.
    """

    def __init__(
        self,
        lesson: Lesson,
        place: int,
        batches: TrainBatches,
        fabric: Fabric,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        objective: Any = lesson.objectives[place]
        self.objective: Weighing[Any] = objective
        self.steps, self.seconds = 0, 0.0
        self.found = torch.zeros(2, len(self.objective.term_names))
        self._lesson, self._place, self._batches, self._fabric, self._clock = lesson, place, batches, fabric, clock
        self._parameters = list(self.objective.controller.parameters())
        self._optimizer = torch.optim.Adam(self._parameters, lr=self.objective.config.rate, eps=_ADAM_EPS)
        self._before: Weights = {}
        self._generators: tuple[Tensor, ...] = ()

    def due(self, weights: Sequence[float]) -> bool:
        """Whether the training step for which the objective was just advanced is followed by an outer one."""
        return self.objective.progress.step % self.objective.config.every == 0 and weights[self._place] > 0

    def begin(self) -> None:
        """Keeps what the training pass that follows starts from: the student's weights, the generators."""
        self._before = {name: value.clone() for name, value in self._student().items()}
        cuda = self._fabric.device.type == "cuda"
        self._generators = (torch.get_rng_state(), *((torch.cuda.get_rng_state(self._fabric.device),) if cuda else ()))

    def finish(self, inner: InnerStep) -> None:
        """One step of the controller, after the optimizer's; alike in every process."""
        began = self._settled()
        with _without_tf32():
            self._move(inner)
        self._before = {}
        self.steps += 1
        self.seconds += self._settled() - began

    def slopes(self, inner: InnerStep, v: Weights, eps: float) -> Tensor:
        """(N, J): the derivative of each term along v, at the weights that the training pass had.

        Args:
            inner: That pass.
            v: By the names of the student's parameters.
            eps: The difference is taken between the weights + eps * v and the weights - eps * v.
        """
        ahead, behind = (
            self._terms(inner, {name: value + sign * eps * v[name] for name, value in self._before.items()})
            for sign in (1, -1)
        )
        return (ahead - behind) / (2 * eps)

    def gradient(self, inner: InnerStep, slopes: Tensor) -> list[Tensor]:
        """dV/dw by the parameters of the controller, mean over the processes."""
        objective = self.objective
        assert objective.seen is not None
        objective.controller.requires_grad_(True)
        try:
            weights = objective.weights(objective.seen)
            scale = -inner.rate * inner.weights[self._place]
            total = scale * (weights * slopes).sum(1).mean()
            gradient = torch.autograd.grad(total, self._parameters)
        finally:
            objective.controller.requires_grad_(False)
        self.found = torch.stack([weights.detach().mean(0), weights.detach().std(0)]).float().cpu()
        return self._mean(gradient)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the controller's weights, which are the lesson's."""
        return {
            "optimizer": self._optimizer.state_dict(),
            "steps": self.steps,
            "seconds": self.seconds,
            "found": self.found,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Takes over the state of an interrupted run."""
        self._optimizer.load_state_dict(state["optimizer"])
        self.steps, self.seconds, self.found = state["steps"], state["seconds"], state["found"]

    def said(self) -> str:
        """What was held out, what was learned of it and for how much, in one sentence."""
        objective, (means, spreads) = self.objective, self.found.tolist()
        shown = ", ".join(
            f"{name} {mean:.2f} (+-{spread:.2f})"
            for name, mean, spread in zip(objective.term_names, means, spreads, strict=True)
        )
        return (
            f"{objective.name} held out {self._batches.samples} of {len(self._batches.split)} training images and "
            f"learned on them to weigh its terms image by image, in {self.steps} step(s) of a controller, one every "
            f"{objective.config.every} training steps for three forward passes and one backward pass; weights at the "
            f"end: {shown}."
        )

    def _move(self, inner: InnerStep) -> None:
        """The controller's step itself."""
        v = self._direction()
        norm = float(torch.stack([x.square().sum() for x in v.values()]).sum().sqrt())
        if 0 < norm < float("inf"):  # otherwise nothing can be learned of it, and the training itself says why
            slopes = self.slopes(inner, v, REACH / norm)
            for parameter, gradient in zip(self._parameters, self.gradient(inner, slopes), strict=True):
                parameter.grad = gradient
            self._optimizer.step()
            self._optimizer.zero_grad()

    def _student(self) -> Weights:
        """What the training moves, and nothing that is frozen."""
        named = self._lesson.student.named_parameters()
        return {name: parameter.detach() for name, parameter in named if parameter.requires_grad}

    def _at(self, weights: Weights) -> Callable[[Tensor], Signals]:
        """The student with other weights, on a copy of its statistics."""
        student = self._lesson.student

        def call(images: Tensor) -> Signals:
            buffers = {name: buffer.clone() for name, buffer in student.named_buffers()}
            said: Signals = functional_call(student, (weights, buffers), (images,))
            return said

        return call

    def _direction(self) -> Weights:
        """v: the gradient of the held-out cross-entropy at the student's weights, mean over the processes."""
        batch = self._batches.batch(self.steps)
        weights = {name: value.requires_grad_() for name, value in self._student().items()}
        assert batch.labels is not None
        loss = supervised_loss(self._at(weights)(batch.images).logits, batch.labels, 0.0)
        found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True, materialize_grads=True)
        return dict(zip(weights, self._mean(found), strict=True))

    @torch.no_grad()
    def _terms(self, inner: InnerStep, weights: Weights) -> Tensor:
        """(N, J): the terms that the training pass would have had with these weights."""
        torch.set_rng_state(self._generators[0])
        for state in self._generators[1:]:
            torch.cuda.set_rng_state(state, self._fabric.device)
        out, more = self._lesson.said(inner.images, inner.weights, self._at(weights))
        taught = None if inner.teacher is None else signals_from_flat(inner.teacher)
        said: Any = (replace(out, ids=inner.ids, more=more[self._place]), taught, inner.labels)
        return self.objective.terms(*said)

    def _mean(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The mean of each over the processes, in one exchange."""
        if self._fabric.world_size == 1:
            return list(tensors)
        flat = self._fabric.all_reduce(torch.cat([x.reshape(-1) for x in tensors]), reduce_op="mean")
        parts = flat.split([x.numel() for x in tensors])
        return [part.reshape(x.shape) for part, x in zip(parts, tensors, strict=True)]

    def _settled(self) -> float:
        """Now, with nothing left that the device still computes."""
        if self._fabric.device.type == "cuda":
            torch.cuda.synchronize(self._fabric.device)
        return self._clock()


@contextmanager
def _without_tf32() -> Iterator[None]:
    """Convolutions and products on a GPU keep all bits of float32 inside of the block."""
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = convolutions, products
