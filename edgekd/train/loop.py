"""The loop over epochs and steps. What a step does is decided elsewhere; here it is done in order, watched and saved.

Each step seeds the generator from (seed, step, rank), and batches, views and learning rates are pure functions of the
step, so a training that is resumed at any step ends with the same bits as one that never stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from edgekd.core.events import Reporter
from edgekd.data.counter import hashed
from edgekd.train.averaging import WeightAverage
from edgekd.train.batches import TrainBatch, TrainBatches
from edgekd.train.checkpoint import Checkpoints
from edgekd.train.config import TrainConfig
from edgekd.train.divergence import Collapse, divergence
from edgekd.train.engine import Fabric
from edgekd.train.hard import HardAugment
from edgekd.train.lesson import HITS, IMAGES, LABELLED, LOSS, SUPERVISED, TEACHER, Lesson
from edgekd.train.loss_plan import LossPlan
from edgekd.train.outer import InnerStep, OuterStep
from edgekd.train.projection import WeightProjection
from edgekd.train.schedule import learning_rate
from edgekd.train.teacher import Teacher
from edgekd.train.timm import Mixing

_REPORT_EVERY_S = 0.5
_STEP_STREAM = 0x57E9


@dataclass
class _Shown:
    """What a batch's passes leave beside its gradients.

    Attributes:
        statistics: Their sums, in the order of the lesson's names.
        teacher: What it said of the last micro-batch, or None.
        answers: The student's and the teacher's logits of each micro-batch, where the lesson keeps them.
    """

    statistics: Tensor
    teacher: Mapping[str, Tensor] | None = None
    answers: list[tuple[Tensor, Tensor]] = field(default_factory=list)


@dataclass
class Loop:
    """A training in progress.

    Attributes:
        fabric: Device, precision, processes.
        lesson: Student and objective, without the wrapper of Fabric.
        wrapped: The same, wrapped: what a step calls.
        optimizer: Over the lesson's parameters.
        batches: Where the images come from.
        teacher: None for supervised training; one that is trained along is asked in the lesson.
        projection: Maps the weights for the length of a step; None for ordinary training.
        average: Moving average of the weights, or None.
        config: The options.
        plan: The loss.
        checkpoints: Where the state is saved.
        reporter: Where progress goes.
        seed: Of every step.
        mixing: Mixes the images of a batch, or None.
        hard: Varies them as far as student and teacher disagree, or None.
        outer: Teaches an objective on held-out images how to weigh its terms, or None.
        collapse: Notices a training that diverged and stays finite; None without a cross-entropy to tell by.
        keeps_end: Whether the state after the last step is saved too, because something follows that can be cut off.
        clock: Seconds; injected by tests.
    """

    fabric: Fabric
    lesson: Lesson
    wrapped: nn.Module
    optimizer: torch.optim.Optimizer
    batches: TrainBatches
    teacher: Teacher | None
    projection: WeightProjection | None
    average: WeightAverage | None
    config: TrainConfig
    plan: LossPlan
    checkpoints: Checkpoints
    reporter: Reporter
    seed: int
    mixing: Mixing | None = None
    hard: HardAugment | None = None
    outer: OuterStep | None = None
    collapse: Collapse | None = None
    keeps_end: bool = False
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self.steps = self.batches.steps_per_epoch
        self.step = 0
        self.seconds = 0.0
        self.totals = torch.zeros(len(self.lesson.statistics), dtype=torch.float64, device=self.fabric.device)
        self._first_step = 0
        self._finite_sums: dict[str, float] = {}
        self._began = self._reported = self.clock()
        self._on_cpu = self.fabric.device.type == "cpu"
        self.lesson.keeps_answers = self.hard is not None

    def resume(self) -> bool:
        """Takes over the newest checkpoint; False when there is none that can be used."""
        state = self.checkpoints.load()
        if state is None:
            return False
        if self.teacher is not None and self.teacher.cache is not None and not self.teacher.cache.exists():
            self.reporter.message("Starts anew: the teacher's stored outputs are gone.", level="warning")
            self.checkpoints.give_up()
            return False
        self.lesson.load_state_dict(state["lesson"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load(state["average"])
        if self.hard is not None:
            self.hard.load(state["hard"])
        if self.outer is not None:
            self.outer.load(state["outer"])
        if self.collapse is not None:
            self.collapse.load(state["collapse"])
        self.totals.copy_(state["totals"])
        self.step, self.seconds = state["step"], state["seconds"]
        return True

    def run(self) -> dict[str, float]:
        """Trains to the end; returns the last epoch's means of what the lesson reports.

        Raises:
            BuildFailed: The loss is not finite, or the student has collapsed.
        """
        self._first_step = self.step
        self._began = self.clock()
        self.lesson.train()
        for epoch in range(self.step // self.steps, self.config.epochs):
            first = self.step - epoch * self.steps
            if not first:
                self.totals.zero_()
                self.fabric.barrier()  # the cache's next view is whole before anyone reads it
            view = self.config.view(epoch, teacher=self.teacher is not None)
            for batch in self.batches.epoch(epoch, view, first):
                self._train_on(batch, epoch)
                self.step += 1
                self._after_step(epoch)
        return self._means(self.fabric.all_reduce(self.totals, reduce_op="sum"))

    def _train_on(self, batch: TrainBatch, epoch: int) -> None:
        config, plan = self.config, self.plan
        seed = self._seed_step()
        draws = None
        if self.hard is not None:
            draws = self.hard.draw(len(batch.images), seed)
            batch = TrainBatch(self.hard(batch.images, draws), batch.labels, batch.ids)
        if self.mixing is not None:
            batch = TrainBatch(*self.mixing(batch.images, batch.labels, seed), batch.ids)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, self.step, self.steps) * group["lr_share"]
        for term in plan.terms:
            if (progress := term.schedule.progress(self.step, self.steps)) is not None:
                term.objective.advance(progress)
        weights = [term.schedule.at(self.step, self.steps) for term in plan.terms]
        outer = self.outer if self.outer is not None and self.outer.due(weights) else None
        with self._projected():
            if outer is not None:
                outer.begin()
            shown = self._backward(batch, epoch, weights)
        self._learn_hardness(draws, shown.answers)
        self.lesson.forget_idle_gradients_(weights)
        if config.grad_clip is not None:
            for parameters in self.lesson.networks():
                nn.utils.clip_grad_norm_(parameters, config.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if outer is not None:
            rate, labels, ids = self.optimizer.param_groups[0]["lr"], batch.labels, self._on_device(batch.ids)
            said = shown.teacher
            inner = InnerStep(images=batch.images, labels=labels, ids=ids, teacher=said, weights=weights, rate=rate)
            with self._projected():
                outer.finish(inner)
        if self.average is not None:
            self.average.update(self.step)
        self.totals += shown.statistics

    def _backward(self, batch: TrainBatch, epoch: int, weights: Sequence[float]) -> _Shown:
        """Sums up the batch's gradients, micro-batch by micro-batch."""
        parts = batch.parts(self.config.accumulate)
        shown = _Shown(torch.zeros_like(self.totals))
        density = self.lesson.labels_expected(batch.labels) if len(parts) > 1 else None
        for number, part in enumerate(parts, 1):
            shown.teacher = self._answers(part, epoch, weights)
            expected = None if density is None else density * len(part.ids)
            with self.fabric.no_backward_sync(self.wrapped, enabled=number < len(parts)):
                given = (part.images, part.labels, self._on_device(part.ids), shown.teacher)
                loss, statistics = self.wrapped(*given, self.plan.supervised, weights, expected)
                self.fabric.backward(loss if len(parts) == 1 else loss * (len(part.ids) / len(batch.ids)))
            shown.statistics += statistics
            if self.lesson.answers is not None:
                shown.answers.append(self.lesson.answers)
        return shown

    def _answers(self, part: TrainBatch, epoch: int, weights: Sequence[float]) -> Mapping[str, Tensor] | None:
        """What the teacher says; None where nobody reads it in this step, nor will in a later epoch."""
        if self.teacher is None or self.lesson.peer is not None:
            return None
        asked = self.lesson.reads_teacher(part.labels, weights) or self.teacher.keeps(epoch)
        return self.teacher.answer(part, epoch) if asked else None

    def _on_device(self, ids: npt.NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(ids).to(self.fabric.device)

    def _projected(self) -> AbstractContextManager[None]:
        """The weights are at their projection inside of the block, where there is one."""
        return self.projection.applied() if self.projection is not None else nullcontext()

    def _learn_hardness(self, draws: Tensor | None, answers: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Moves the augmentation by the answers that the step has just computed; alike in every process."""
        if self.hard is None or draws is None or not answers:
            return
        student, teacher = (torch.cat(said) for said in zip(*answers, strict=True))
        gradient = self.hard.gradient(draws, student, teacher).to(self.fabric.device)
        self.hard.step_(self.fabric.all_reduce(gradient, reduce_op="mean").cpu())

    def _seed_step(self) -> int:
        words = hashed(np.array([self.step], dtype=np.int64), self.seed, self.fabric.global_rank, _STEP_STREAM)
        # `torch.manual_seed` would do, but on a machine without a GPU it formats a stack trace each time: 0.5 ms.
        torch.default_generator.manual_seed(int(words[0]))
        if not self._on_cpu:
            torch.cuda.manual_seed_all(int(words[0]))
        return int(words[0])

    def _after_step(self, epoch: int) -> None:
        ended = self.step % self.steps == 0
        # Reading a total waits for the device: free on a CPU, so there a bad loss is caught at its step.
        if self._on_cpu:
            self._check_finite(epoch)
        if ended:
            self._check_collapsed(epoch)
        now = self.clock()
        if ended or now - self._reported >= _REPORT_EVERY_S:
            self._reported = now
            self._report(epoch)
        over = self.step == self.config.epochs * self.steps
        due = self.keeps_end if over else self.checkpoints.due(epoch_ended=ended)
        if due:
            self._save(epoch)

    def _report(self, epoch: int) -> None:
        self._check_finite(epoch)
        if not self.fabric.is_global_zero:
            return
        means = self._means(self.totals)
        values = {
            "epoch": epoch + 1,
            "epochs": self.config.epochs,
            "loss": means[LOSS],
            "accuracy": means[HITS],
            "images_per_s": self.images_per_s(),
        }
        if len(self.plan.terms) > 1:
            values |= {f"loss_{term.label}": means[term.label] for term in self.plan.terms}
        task = "train" if self.teacher is None else "distil"
        self.reporter.progress(task, self.step, self.config.epochs * self.steps, values)

    def _check_finite(self, epoch: int) -> None:
        sums = dict(zip(self.lesson.statistics, self.totals.tolist(), strict=True))
        if math.isfinite(sums[LOSS]):
            self._finite_sums = sums
            return
        step = f"step {(self.step - 1) % self.steps + 1} of {self.steps}, "
        raise divergence(self._place(epoch, step), sums, self._finite_sums, self._counted(), self.checkpoints.kept())

    def _check_collapsed(self, epoch: int) -> None:
        if self.collapse is None:
            return
        means = self._means(self.fabric.all_reduce(self.totals.clone(), reduce_op="sum"))
        if self.collapse.after_epoch(means[SUPERVISED], means[HITS]):
            raise self.collapse.error(self._place(epoch), means, self._counted(), self.checkpoints.kept())

    def _place(self, epoch: int, step: str = "") -> str:
        rate = self.optimizer.param_groups[0]["lr"]
        return f"in epoch {epoch + 1} of {self.config.epochs}, {step}at learning rate {rate:.3g}"

    def _counted(self) -> dict[str, float]:
        """The weight of each term that counted in the last step, by its label."""
        weights = {term.label: term.schedule.at(self.step - 1, self.steps) for term in self.plan.terms}
        weights = {SUPERVISED: self.plan.supervised, **weights}
        if self.lesson.peer is not None:
            weights[TEACHER] = 1.0
        return {label: weight for label, weight in weights.items() if weight}

    def elapsed_s(self) -> float:
        """Seconds of training so far, those before an interruption included."""
        return self.seconds + self.clock() - self._began

    def images_per_s(self) -> float:
        """Training images per second since this process began to train; 0 before its first step."""
        images = (self.step - self._first_step) * self.batches.samples / self.steps
        return images / max(1e-9, self.clock() - self._began)

    def _save(self, epoch: int) -> None:
        if not self.fabric.is_global_zero:
            return
        self._check_finite(epoch)
        if not all(bool(torch.isfinite(x).all()) for x in self.lesson.parameters()):
            return  # the step after this one will fail, and the checkpoint before it is the last good one
        if self.teacher is not None and self.teacher.cache is not None:
            self.teacher.cache.flush()
        state: dict[str, Any] = {
            "step": self.step,
            "seconds": self.elapsed_s(),
            "totals": self.totals,
            "lesson": self.lesson.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": None if self.average is None else self.average.values,
            "hard": None if self.hard is None else self.hard.log_magnitudes,
            "outer": None if self.outer is None else self.outer.state(),
            "collapse": None if self.collapse is None else self.collapse.state(),
        }
        self.checkpoints.save(state)

    def _means(self, totals: Tensor) -> dict[str, float]:
        sums = dict(zip(self.lesson.statistics, totals.tolist(), strict=True))
        images = max(1.0, sums[IMAGES])
        per = dict.fromkeys((SUPERVISED, HITS), max(1.0, sums.get(LABELLED, images)))
        return {name: value / per.get(name, images) for name, value in sums.items()}
