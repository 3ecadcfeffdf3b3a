"""`distil_`: trains a student in place, with or without a teacher, resumable at any step.

Assembles the pieces (loss, batches, teacher, optimizer, checkpoints) and leaves the order of events to `loop.py`. It
evaluates nothing: choosing an epoch by its score would leak the split that the score is taken on, so the last epoch is
the result. Objectives that conclude (`edgekd.train.conclude`) decide on `select` how, and say so.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from edgekd.core.digest import Json
from edgekd.core.preprocess import Preprocessing
from edgekd.core.stage import Context
from edgekd.data.batches import epoch_order
from edgekd.data.dataset import Dataset
from edgekd.data.transform import preprocess
from edgekd.errors import BuildFailed, UserError
from edgekd.tasks.classification import guesses
from edgekd.train.answers import Answers
from edgekd.train.assemble import Job, assemble
from edgekd.train.averaging import gather_statistics_
from edgekd.train.checkpoint import Rhythm
from edgekd.train.compilation import compile_student
from edgekd.train.conclude import conclude_
from edgekd.train.config import TrainConfig
from edgekd.train.engine import start_fabric, torch_settings
from edgekd.train.evaluate_torch import module_accuracy
from edgekd.train.group import TeacherGroup
from edgekd.train.lesson import TEACHER
from edgekd.train.loop import Loop
from edgekd.train.loss_plan import LossPlan, plan_loss
from edgekd.train.memory_format import placed
from edgekd.train.peer import trainable_copy, what_became_of_it
from edgekd.train.projection import WeightProjection
from edgekd.train.signal import Signal

_STATISTICS_BATCHES = 100
"""Batches over which BatchNorm statistics are gathered for averaged weights."""

_CHECKED_IMAGES = 256
"""Images of `select` on which a live teacher is compared with the labels before anything learns from it."""

_SLOWER_FORMAT = (
    "Trained in the contiguous memory format: there are strided 1x1 convolutions of few channels, whose gradients CPU "
    "kernels compute wrongly in channels-last."
)


@dataclass(frozen=True, kw_only=True)
class TaughtTeacher:
    """A teacher that was trained along.

    Attributes:
        loss: Mean of its own loss over the last epoch; None where no objective trained it then.
        accuracy_before: On the `select` split, in [0, 1].
        accuracy_after: The same after the training.
    """

    loss: float | None
    accuracy_before: float
    accuracy_after: float


@dataclass(frozen=True, kw_only=True)
class FitReport:
    """What a training did; all means are over the last epoch's augmented training images.

    Attributes:
        epochs: Passes over the training split.
        steps: Updates of the weights.
        seconds: Of training, those before an interruption included.
        images_per_s: Training images per second, in this process.
        loss: Mean of what was minimised.
        supervised_loss: Mean cross-entropy with the labels, None without labels.
        distill_losses: Mean of each objective that counted, unweighted; empty for supervised training.
        teacher: Of a teacher that was trained along: what it lowered, and what became of it; None for any other.
        train_accuracy: Share of images classified as labelled or, without labels, as by the teacher; in [0, 1]. Of
            images with a label, where some have none; the same holds for `supervised_loss`.
        resumed_at_step: Where a checkpoint was taken up, None for a training in one go.
        leads: Whether this process is the one whose files count.
        decisions: What was decided and why, one sentence each.
        outer_seconds: Of `seconds`, those of learning on held-out images; None where no objective does that.
        concluded: Numbers of the objectives that concluded, by their labels.
    """

    epochs: int
    steps: int
    seconds: float
    images_per_s: float
    loss: float
    supervised_loss: float | None
    distill_losses: Mapping[str, float]
    teacher: TaughtTeacher | None
    train_accuracy: float
    resumed_at_step: int | None
    leads: bool
    decisions: tuple[str, ...]
    outer_seconds: float | None = None
    concluded: Mapping[str, Mapping[str, Json]] = field(default_factory=dict)

    @property
    def distill_loss(self) -> float | None:
        """Mean of the only objective, unweighted; None where there is none, or several."""
        return next(iter(self.distill_losses.values())) if len(self.distill_losses) == 1 else None


def distil_(
    student: nn.Module,
    teacher: nn.Module | None,
    dataset: Dataset,
    preprocessing: Preprocessing,
    config: TrainConfig,
    ctx: Context,
    *,
    projection: WeightProjection | None = None,
    answers: Answers | None = None,
    rhythm: Rhythm | None = None,
) -> FitReport:
    """Trains `student` on `dataset.train`; afterwards it is in evaluation mode, on the CPU, with its final weights.

    A checkpoint in `ctx.scratch` is taken up when it belongs to the same training, and the result has the same bits as
    without the interruption (on one machine, with one number of threads, and the student not compiled).

    Args:
        student: Images (N, C, H, W) to logits (N, K).
        teacher: Of the same inputs and classes, several as a `TeacherGroup`; None trains on labels alone, or on
            `answers`. Where an objective trains it along, a copy of it is trained.
        dataset: Its training split is used.
        preprocessing: Of student and teacher: both see the same tensor.
        config: The options.
        ctx: Scratch folder, seed, reporter, device and threads.
        projection: The weights are trained at their projection, and end on it.
        answers: The teacher's logits on these very views; used when the objectives read nothing else of it, or when
            there is no teacher beside them.
        rhythm: How often checkpoints are written.

    Raises:
        UserError: Networks, labels and options that do not belong together.
        BuildFailed: The training diverged.
    """
    partly = dataset.train.partly_labelled
    plan = plan_loss(config, teachers=_teachers(teacher, answers), labelled=dataset.labelled, partly=partly)
    _weigh_(teacher, config)
    taught = _taught(teacher, answers, plan)
    job = Job(
        student=student,
        teacher=taught,
        dataset=dataset,
        preprocessing=preprocessing,
        config=config,
        plan=plan,
        ctx=ctx,
        projection=projection,
        answers=answers,
        rhythm=rhythm or Rhythm(),
    )
    with torch_settings(ctx.execution, ctx.seed), ExitStack() as places:
        fabric = start_fabric(ctx.execution, config.precision, ctx.reporter)
        fingerprint = job.fingerprint(fabric.world_size)
        channels_last = job.channels_last(fabric.device)
        for module in job.modules():
            places.enter_context(placed(module, fabric.device, channels_last=channels_last))
        loop = assemble(job, fabric, fingerprint)
        doubt = _teacher_guesses(loop, job)
        resumed_at = _start(loop, job)
        compiled = (compile_student(loop),) if config.compile == "auto" else ()
        means = loop.run()
        _finish_(student, loop)
        concluded, last_words = conclude_(loop, dataset.select)
        if concluded:  # what each process computed may differ in its last bits
            _share_(loop, student.parameters())
        _check_finite(student)
    student.eval()
    met, change = _judged(teacher, job, means) if fabric.is_global_zero else (None, ())
    return FitReport(
        epochs=config.epochs,
        steps=loop.step,
        seconds=loop.elapsed_s(),
        images_per_s=loop.images_per_s(),
        loss=means["loss"],
        supervised_loss=means["supervised"] if dataset.labelled else None,
        distill_losses={
            term.label: means[term.label] for term in plan.terms if term.schedule.until_epoch == config.epochs
        },
        teacher=met,
        train_accuracy=means["hits"],
        resumed_at_step=resumed_at,
        leads=fabric.is_global_zero,
        decisions=(
            *plan.decisions,
            *(loop.teacher.decisions if loop.teacher is not None else ()),
            *((doubt,) if doubt is not None else ()),
            *change,
            *((loop.hard.said(),) if loop.hard is not None else ()),
            *((loop.outer.said(),) if loop.outer is not None else ()),
            *compiled,
            *((_SLOWER_FORMAT,) if channels_last != config.channels_last else ()),
            *last_words,
        ),
        outer_seconds=None if loop.outer is None else loop.outer.seconds,
        concluded=concluded,
    )


def _teachers(teacher: nn.Module | None, answers: Answers | None) -> int:
    if isinstance(teacher, TeacherGroup):
        return len(teacher.members)
    return int(teacher is not None or answers is not None)


def _taught(teacher: nn.Module | None, answers: Answers | None, plan: LossPlan) -> nn.Module | None:
    """The teacher of the training: none, the given one, or a copy to be trained along."""
    if not plan.trains_teacher:
        return teacher if plan.needs_teacher else None
    if teacher is None or answers is not None:
        raise UserError(
            "An objective trains the teacher along, and stored answers are those of a teacher that stands still.",
            hint="give the teacher alone, or choose an objective that takes it as it is: bdkd or kd",
        )
    return trainable_copy(teacher)


def _judged(
    teacher: nn.Module | None, job: Job, means: Mapping[str, float]
) -> tuple[TaughtTeacher | None, tuple[str, ...]]:
    """What became of a teacher that was trained along, and a sentence on it; a warning where it was spoiled."""
    if teacher is None or job.teacher is None or not job.plan.trains_teacher:
        return None, ()
    split = job.dataset.select
    before, after = (module_accuracy(m, split, job.preprocessing, job.ctx.execution) for m in (teacher, job.teacher))
    sentence, spoiled = what_became_of_it(before, after, len(split))
    if spoiled:
        job.ctx.reporter.message(sentence, level="warning")
    last = [t for t in job.plan.terms if t.objective.trains_teacher and t.schedule.until_epoch == job.config.epochs]
    loss = means[TEACHER] if last else None
    return TaughtTeacher(loss=loss, accuracy_before=before, accuracy_after=after), (sentence,)


def _weigh_(teacher: nn.Module | None, config: TrainConfig) -> None:
    if not config.teacher_weights:
        return
    if not isinstance(teacher, TeacherGroup):
        raise UserError(
            "teacher_weights are the shares of several teachers, and there are not several.",
            hint="leave it out, or connect more teachers",
        )
    teacher.weigh_(config.teacher_weights)


def _start(loop: Loop, job: Job) -> int | None:
    """Takes up the checkpoint, or makes ready for the first step; returns the step to go on from, if resumed."""
    cache = loop.teacher.cache if loop.teacher is not None else None
    resumed = loop.resume()
    loop.fabric.barrier()  # the first process writes nothing before all have looked for a checkpoint and a cache
    if not resumed:
        if cache is not None and loop.fabric.is_global_zero:
            cache.check_space()
            loop.checkpoints.discard()  # its training would take the new cache, still full of zeros, for its own
            cache.create()
        _prepare_objectives(loop, job)
        _share_(loop, loop.lesson.buffers())  # what each computed of the teacher may differ in its last bits
    loop.fabric.barrier()
    if cache is not None:
        cache.open()
    return loop.step if resumed else None


def _teacher_guesses(loop: Loop, job: Job) -> str | None:
    """Warns of a live teacher that guesses; one whose answers are stored was looked at where they were made.

    On `select`, whose labels nobody made up: gathered images of the training split have those of the teacher itself.
    """
    split, teacher = job.dataset.select, loop.teacher
    if teacher is None or job.teacher is None or split.labels is None or job.answers is not None:
        return None
    if job.plan.trains_teacher:
        return None  # it learns what it lacks, and what became of it is said in the end
    rows = epoch_order(len(split), job.ctx.seed, 0)[:_CHECKED_IMAGES]
    images = torch.from_numpy(preprocess(split.images(rows, job.preprocessing), job.preprocessing))
    said = teacher.outputs(images.to(loop.fabric.device))[Signal.LOGITS]
    doubt = guesses(said.cpu().numpy(), split.labels[rows])
    if doubt is not None and loop.fabric.is_global_zero:
        job.ctx.reporter.message(doubt, level="warning")
    return doubt


def _prepare_objectives(loop: Loop, job: Job) -> None:
    if loop.teacher is None:
        return
    survey = loop.teacher.survey(
        job.dataset.train,
        job.preprocessing,
        job.config.batch_size // job.config.accumulate,
        loop.reporter,
        loop.batches.rows,
    )
    for objective in job.plan.objectives():
        if objective.needs_teacher:
            objective.prepare(survey)


@torch.no_grad()
def _finish_(student: nn.Module, loop: Loop) -> None:
    """Final weights: the average if there is one, projected if there is a projection, with statistics that fit them."""
    if loop.average is not None:
        loop.average.write_()
    if loop.projection is not None:
        loop.projection.project_()
    if loop.average is not None:
        last = loop.config.epochs - 1
        batches = loop.batches.epoch(last, loop.config.view(last, teacher=loop.teacher is not None))
        first = itertools.islice(batches, _STATISTICS_BATCHES)
        cut = loop.config.accumulate
        gather_statistics_(student, (part.images for batch in first for part in batch.parts(cut)))
    _share_(loop, student.buffers())


def _check_finite(student: nn.Module) -> None:
    for name, parameter in student.named_parameters():
        if not torch.isfinite(parameter).all():
            raise BuildFailed(
                f"The training ended with weights that are not finite, first in {name!r}.",
                hint="lower lr, add warmup_epochs, or limit the gradient with grad_clip=1",
            )


@torch.no_grad()
def _share_(loop: Loop, tensors: Iterable[Tensor]) -> None:
    """Gives every process these tensors of the first one: buffers, which DDP leaves alone, and what concluded."""
    if loop.fabric.world_size > 1:
        for tensor in tensors:
            torch.distributed.broadcast(tensor, src=0)
