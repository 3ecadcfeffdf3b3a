"""torch.compile (PyTorch 2, Ansel et al. 2024) for the student, where it was measured to pay and to compute the same.

Whether it pays depends on network, batch, device and compiler, so it is tried: some forward and backward passes on the
training's own images as the student is, and some compiled, without moving a weight, a statistic or the random
generators. Only the student's own pass in training mode is compiled. Its module stays what it is: checkpoints, weights
and evaluation know nothing of it. Where the inside of the student is listened to by hooks, or its weights are replaced
for a pass, nothing is tried.

A compiled student has other last bits than an uncompiled one, and each start, resumed ones included, decides anew by
what it measures: what is said elsewhere of equal bits holds without this option, and with it for equal decisions.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edgekd.train.loop import Loop
from edgekd.train.signal import TAPPED

COST_S = 40.0
"""What compiling a small network for one batch size takes as a rule; what is left must be able to win it back."""
MOST_SAVED = 0.5
"""Share of a pass that compiling saves at best, for this estimate."""
LEAST_SAVED = 0.05
"""Share that it must save to be kept; less is within the noise of so few passes."""
TOLERANCE = {"32-true": 1e-2, "bf16-mixed": 1e-1}
"""Largest relative difference (L2) of a tensor from the uncompiled pass: outputs, gradients, statistics. Summing in
another order changes float32 by 1e-6 to 1e-3; in bf16 the compiler keeps bits that single operations round away."""
_FLOOR = 0.01
"""Share of all gradients' norm that counts as a tensor's own at least: in front of BatchNorm a bias has only noise."""
_TIMED = 5

Call = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class _Pass:
    """What a forward and backward pass of the student gave.

    Attributes:
        outputs: The logits alone.
        gradients: Of each trainable parameter that has one.
        statistics: The buffers after it.
        seconds: That it took.
    """

    outputs: list[Tensor]
    gradients: list[Tensor]
    statistics: list[Tensor]
    seconds: float


@dataclass(frozen=True)
class _Trial:
    """How the compiled student did, in the slowest process.

    Attributes:
        differs: The largest relative difference from what it computes uncompiled.
        compiled_s: Of a pass; infinite where the compiler failed.
        compiling_s: Until it was compiled, or had failed.
        error: Of the compiler in this process; empty without one.
    """

    differs: float
    compiled_s: float
    compiling_s: float
    error: str


def inductor(call: Call) -> Call:
    """The call, compiled for each batch size by itself, with the random numbers that it has uncompiled."""
    compiled: Call = torch.compile(call, dynamic=False, options={"fallback_random": True})
    return compiled


def compile_student(
    loop: Loop, compiler: Callable[[Call], Call] = inductor, clock: Callable[[], float] = time.monotonic
) -> str:
    """Has the student compiled for the steps that are left, if that is faster; returns what was decided and why.

    The time that compiling takes counts before it: it is not tried where what is left of the training could not win it
    back. Afterwards it is spent either way, and the faster form is kept. Several processes decide alike, by the slowest
    of them.

    Args:
        loop: Ready for its first or next step.
        compiler: Compiles a function of images; injected by tests.
        clock: Seconds; injected by tests.
    """
    refusal = _unsuited(loop)
    if refusal is not None:
        return f"The student was not compiled: {refusal}."
    began = clock()
    try:
        with _untouched(loop):
            return _decided(loop, compiler, clock)
    finally:
        loop.seconds += clock() - began


def _unsuited(loop: Loop) -> str | None:
    """Why a compiled student would not do at all."""
    readers = [term.label for term in loop.plan.terms if term.objective.needs & TAPPED]
    if readers:
        return f"{' and '.join(map(repr, readers))} reads what is inside of it, through hooks"
    if loop.outer is not None:
        return "an objective runs it with other weights than its own"
    return None


def _decided(loop: Loop, compiler: Callable[[Call], Call], clock: Callable[[], float]) -> str:
    large, small = _extremes(loop)
    passes = (loop.config.epochs * loop.steps - loop.step) * loop.config.accumulate
    expected = _measured(loop, large, clock)
    # Processes have shares of unequal sizes: what each would wait for differs, and what is decided must not.
    plain_s, cost_s = _slowest(loop, expected.seconds, COST_S * len({len(large), len(small)}))
    if passes * plain_s * MOST_SAVED < cost_s:
        return (
            f"The student was not compiled: what is left of the training takes it {passes * plain_s:.3g} s, of which "
            f"compiling, which takes about {cost_s:g} s, would save half at best."
        )
    loop.reporter.message("Compiles the student, to see whether that makes it faster.")
    trial = _tried(loop, (large, small), expected, compiler, clock)
    took = f"a forward and backward pass of {len(large)} images takes {trial.compiled_s * 1e3:.3g} ms"
    if trial.differs <= TOLERANCE[loop.config.precision] and trial.compiled_s <= (1 - LEAST_SAVED) * plain_s:
        return (
            f"The student was compiled: {took} instead of {plain_s * 1e3:.3g} ms, which saves about "
            f"{passes * (plain_s - trial.compiled_s):.3g} s; compiling took {trial.compiling_s:.3g} s."
        )
    loop.lesson.student.compiled = None
    torch.compiler.reset()
    if trial.compiled_s == math.inf:
        return f"The student was not compiled, for the compiler failed: {trial.error or 'in another process'}."
    if trial.differs > TOLERANCE[loop.config.precision]:
        return (
            f"The student was not compiled, for then it computes something else: {trial.differs:.2g} of a tensor's "
            f"norm apart, where rounding makes up to {TOLERANCE[loop.config.precision]:g}."
        )
    return (
        f"The student was not compiled: {took} compiled and {plain_s * 1e3:.3g} ms as it is. To see that took "
        f"{trial.compiling_s:.3g} s."
    )


def _tried(
    loop: Loop,
    images: Sequence[Tensor],
    expected: _Pass,
    compiler: Callable[[Call], Call],
    clock: Callable[[], float],
) -> _Trial:
    """The student with its compiled form in place, on each batch size, the first of them measured."""
    from torch._dynamo.exc import TorchDynamoException  # imported late: no other training needs the compiler

    torch.compiler.reset()  # what earlier trainings of this process had compiled counts against a limit
    module, source = loop.lesson.student.taps.module, loop.lesson.student
    source.compiled = compiler(lambda batch: module(batch))
    began, error, differs, compiled_s = clock(), "", 0.0, math.inf
    try:
        for batch in images:
            _pass(loop, batch, clock)
        compiling_s = clock() - began
        found = _measured(loop, images[0], clock)
        differs, compiled_s = _difference(found, expected), found.seconds
    except TorchDynamoException as err:
        reason = " ".join(str(err).strip().split("\n\n")[0].split())  # hints on debugging follow
        error, compiling_s = f"{type(err).__name__}: {reason}", clock() - began
    differs, compiled_s, compiling_s = _slowest(loop, differs, compiled_s, compiling_s)
    return _Trial(differs, compiled_s, compiling_s, error)


def _extremes(loop: Loop) -> tuple[Tensor, Tensor]:
    """Images of the largest and the smallest micro-batch; batches differ by one at most, so there are no others."""
    cut = loop.config.accumulate
    first, last = loop.batches.batch(0), loop.batches.batch(loop.steps - 1)
    return first.parts(cut)[0].images, last.parts(cut)[-1].images


@contextmanager
def _untouched(loop: Loop) -> Iterator[None]:
    """Buffers, gradients, modes and random generators are afterwards what they were."""
    student, device = loop.lesson.student, loop.fabric.device
    kept = {name: buffer.clone() for name, buffer in student.named_buffers()}
    modes = [(part, part.training) for part in loop.lesson.modules()]
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if device.type == "cuda" else []):
        loop.lesson.train()
        try:
            yield
        finally:
            _restore_(student, kept)
            for part, training in modes:
                part.training = training


@torch.no_grad()
def _restore_(module: torch.nn.Module, kept: Mapping[str, Tensor]) -> None:
    for name, buffer in module.named_buffers():
        buffer.copy_(kept[name])


def _measured(loop: Loop, images: Tensor, clock: Callable[[], float]) -> _Pass:
    """A pass, with the median time of several behind a first one."""
    passes = [_pass(loop, images, clock) for _ in range(1 + _TIMED)]
    seconds = statistics.median(one.seconds for one in passes[1:])
    return _Pass(passes[0].outputs, passes[0].gradients, passes[0].statistics, seconds)


def _pass(loop: Loop, images: Tensor, clock: Callable[[], float]) -> _Pass:
    """One pass of the student as in a training step, further views included, from equal statistics and generators.

    What the logits are multiplied by runs from -1 to 1, so that the gradient is no accident of what it says now.
    """
    student = loop.lesson.student
    kept = {name: buffer.clone() for name, buffer in student.named_buffers()}
    weights = [term.schedule.at(loop.step, loop.steps) for term in loop.plan.terms]
    parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
    torch.manual_seed(loop.seed)
    _wait(loop)
    began = clock()
    with loop.fabric.autocast():
        logits = loop.lesson.said(images, weights)[0].logits
    slopes = torch.linspace(-1, 1, logits.numel(), device=logits.device).view_as(logits)
    # Not `backward`: that would leave gradients behind, and wake what DDP has attached to the parameters.
    found = torch.autograd.grad((logits.float() * slopes).mean(), parameters, allow_unused=True)
    _wait(loop)
    seconds = clock() - began
    after = [buffer.detach().clone() for buffer in student.buffers() if buffer.is_floating_point()]
    _restore_(student, kept)
    return _Pass([logits.detach()], [x for x in found if x is not None], after, seconds)


def _wait(loop: Loop) -> None:
    if loop.fabric.device.type == "cuda":
        torch.cuda.synchronize(loop.fabric.device)


def _difference(found: _Pass, expected: _Pass) -> float:
    """The largest of all relative differences; infinite where one is not finite or has no counterpart."""
    kinds = ("outputs", "gradients", "statistics")
    return max(_apart(getattr(found, kind), getattr(expected, kind)) for kind in kinds)


def _apart(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    if len(found) != len(expected):
        return math.inf
    norms = [float(x.double().norm()) for x in expected]
    floor = _FLOOR * sum(norm**2 for norm in norms) ** 0.5
    worst = 0.0
    for mine, theirs, norm in zip(found, expected, norms, strict=True):
        apart = float((mine.double() - theirs.double()).norm())
        if apart:
            worst = max(worst, apart / (norm + floor)) if norm + floor else math.inf
        if not math.isfinite(apart):
            return math.inf
    return worst


def _slowest(loop: Loop, *values: float) -> list[float]:
    """The largest of each number over the processes."""
    together: Any = torch.tensor(values, dtype=torch.float64, device=loop.fabric.device)
    found: list[float] = loop.fabric.all_reduce(together, reduce_op="max").tolist()
    return found
