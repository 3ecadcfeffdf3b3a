"""From a training's ingredients to a loop that is ready to run; every mismatch between them is found here."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from edgekd.core.digest import Digest, digest
from edgekd.core.preprocess import Preprocessing
from edgekd.core.stage import Context
from edgekd.data.augment import Augment
from edgekd.data.dataset import Dataset
from edgekd.errors import UserError
from edgekd.train.answers import Answers, views_that_fit
from edgekd.train.averaging import WeightAverage
from edgekd.train.batches import TrainBatches
from edgekd.train.checkpoint import Checkpoints, Rhythm
from edgekd.train.conclude import check_conclusion
from edgekd.train.config import TrainConfig
from edgekd.train.divergence import Collapse
from edgekd.train.engine import Fabric
from edgekd.train.group import teacher_source
from edgekd.train.hard import HardAugment
from edgekd.train.held_out import HeldOut, held_out
from edgekd.train.lesson import Lesson
from edgekd.train.loop import Loop
from edgekd.train.loss_plan import LossPlan
from edgekd.train.memory_format import trains_in_channels_last
from edgekd.train.objective import TAPPED, Objective, Signal, SignalSpec, TrainingData
from edgekd.train.outer import OuterStep
from edgekd.train.peer import Peer
from edgekd.train.projection import WeightProjection
from edgekd.train.reconcile import order_of
from edgekd.train.signals import SignalSource
from edgekd.train.teacher import Teacher
from edgekd.train.teacher_cache import TeacherCache
from edgekd.train.timm import Mixing


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that a training depends on; see `edgekd.train.fit.distil_`. A teacher that is trained is a copy."""

    student: nn.Module
    teacher: nn.Module | None
    dataset: Dataset
    preprocessing: Preprocessing
    config: TrainConfig
    plan: LossPlan
    ctx: Context
    projection: WeightProjection | None
    rhythm: Rhythm
    answers: Answers | None = None

    def modules(self) -> Iterator[nn.Module]:
        """Student and, if there is one, teacher."""
        yield self.student
        if self.teacher is not None:
            yield self.teacher

    def channels_last(self, device: torch.device) -> bool:
        """Whether the training runs in channels-last: where it is wanted and gives right gradients."""
        trained = self.modules() if self.plan.trains_teacher else (self.student,)
        return self.config.channels_last and all(trains_in_channels_last(module, device) for module in trained)

    def fingerprint(self, world: int) -> Digest:
        """Of all that the result depends on; computed before the first step."""
        weights = hashlib.sha256()
        for module in self.modules():
            for name, value in module.state_dict().items():
                weights.update(name.encode())
                weights.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest(
            "training",
            self.config.plain(),
            self.ctx.seed,
            world,
            self.dataset.digest,
            self.preprocessing.plain(),
            weights.hexdigest(),
            None if self.projection is None else self.projection.plain(),
            self.answers is not None,
            [order_of(module) for module in self.modules()],
        )


def assemble(job: Job, fabric: Fabric, fingerprint: Digest) -> Loop:
    """The loop of a job whose modules are on the training device.

    Raises:
        UserError: Student, teacher and labels have different classes, nothing can be trained, a signal that the
            objective needs is missing, or too few images can be held out.
    """
    config = job.config
    if not any(parameter.requires_grad for parameter in job.student.parameters()):
        raise UserError("The student has no trainable parameter: a frozen program can be quantized, not trained.")
    student = SignalSource(job.student, job.plan.needs, job.preprocessing.input_shape)
    check_conclusion(job.plan, job.student, job.preprocessing.input_shape, job.projection)
    teacher = _teacher(job, job.plan.needs_of_teacher, fabric)
    _check_classes(job, student, teacher)
    for objective in job.plan.objectives():
        _bind(objective, job, student.spec(), teacher)
        objective.to(fabric.device)
    if job.projection is not None:
        job.projection.bind(job.student)
    joint = fabric.world_size > 1
    peer = _peer(job, teacher, joint=joint)
    lesson = Lesson(
        student,
        job.plan.terms,
        config.label_smoothing,
        joint=joint,
        peer=peer,
        partly=job.dataset.train.partly_labelled,
    )
    parts = _held_out(job, fabric)
    batches = TrainBatches(
        split=job.dataset.train,
        preprocessing=job.preprocessing,
        augment=config.augment,
        seed=job.ctx.seed,
        batch_size=config.batch_size,
        device=fabric.device,
        channels_last=job.channels_last(fabric.device),
        rank=fabric.global_rank,
        world=fabric.world_size,
        accumulate=config.accumulate,
        rows=None if parts is None else parts.kept,
    )
    return Loop(
        fabric=fabric,
        lesson=lesson,
        wrapped=fabric.setup_module(lesson),
        optimizer=optimizer_for(lesson, config, peer),
        batches=batches,
        teacher=teacher,
        projection=job.projection,
        average=_average(job),
        config=config,
        plan=job.plan,
        checkpoints=Checkpoints(job.ctx.scratch, fingerprint, job.ctx.reporter, job.rhythm),
        reporter=job.ctx.reporter,
        seed=job.ctx.seed,
        mixing=_mixing(config, student.spec().classes),
        hard=_hard(job, teacher, fabric),
        outer=_outer(job, lesson, batches, parts, fabric),
        collapse=Collapse(student.spec().classes) if job.plan.supervised else None,
        keeps_end=bool(job.plan.concluding()),
    )


def _average(job: Job) -> WeightAverage | None:
    """Over the student, and over the layers of an objective that concludes, for it reads the averaged student."""
    if job.config.ema_decay is None:
        return None
    return WeightAverage(nn.ModuleList([job.student, *job.plan.concluding()]), job.config.ema_decay)


def _peer(job: Job, teacher: Teacher | None, *, joint: bool) -> Peer | None:
    if teacher is None or not job.plan.trains_teacher:
        return None
    source = teacher.source
    assert isinstance(source, SignalSource), "several teachers are refused where the loss is planned"
    return Peer(source, job.plan.objectives(), job.config.label_smoothing, joint=joint)


def _mixing(config: TrainConfig, classes: int) -> Mixing | None:
    return Mixing(mixup=config.mixup, cutmix=config.cutmix, classes=classes) if config.mixes else None


def _hard(job: Job, teacher: Teacher | None, fabric: Fabric) -> HardAugment | None:
    if not job.config.hard:
        return None
    if teacher is None or job.teacher is None:
        raise UserError(
            "hard varies images by how far student and teacher disagree on them, and there is no teacher to ask.",
            hint="connect a teacher that can be run and give an objective that reads it (kd), or set hard=0",
        )
    return HardAugment(job.config.hard, job.preprocessing, fabric.device)


def _held_out(job: Job, fabric: Fabric) -> HeldOut | None:
    found = job.plan.weighing()
    if found is None:
        return None
    return held_out(job.dataset, found[1].config.held_out, job.ctx.seed, processes=fabric.world_size)


def _outer(job: Job, lesson: Lesson, batches: TrainBatches, parts: HeldOut | None, fabric: Fabric) -> OuterStep | None:
    found = job.plan.weighing()
    if found is None or parts is None:
        return None
    return OuterStep(lesson, found[0], replace(batches, rows=parts.rows, augment=Augment()), fabric)


def _bind(objective: Objective[Any], job: Job, student: SignalSpec, teacher: Teacher | None) -> None:
    # An objective without a teacher widens the type of `bind` to None, which the base class cannot know.
    spec: Any = teacher.spec() if teacher is not None and objective.needs_teacher else None
    objective.bind(student, spec)
    split = job.dataset.train
    labels = None if split.labels is None else torch.from_numpy(split.labels)
    objective.bind_data(TrainingData(samples=len(split), classes=student.classes, labels=labels))


def optimizer_for(module: nn.Module, config: TrainConfig, peer: nn.Module | None = None) -> torch.optim.Optimizer:
    """The configured optimizer over what is trainable; weight decay on tensors of two and more dimensions only.

    Args:
        module: What is trained.
        config: The options.
        peer: The part of it that is the teacher: its groups have another `lr_share`, by which the loop multiplies the
            learning rate.
    """
    slower = set() if peer is None else {id(parameter) for parameter in peer.parameters()}
    groups: list[dict[str, Any]] = []
    for is_peer, share in ((False, 1.0), (True, config.teacher_lr_share)):
        trainable = [p for p in module.parameters() if p.requires_grad and (id(p) in slower) == is_peer]
        for decays, decay in ((True, config.weight_decay), (False, 0.0)):
            own = [p for p in trainable if (p.ndim > 1) == decays]
            groups.append({"params": own, "weight_decay": decay, "lr_share": share})
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=(config.momentum, 0.999), fused=True)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, fused=True)


def _teacher(job: Job, needs: frozenset[Signal], fabric: Fabric) -> Teacher | None:
    if not job.plan.needs_teacher:
        return None
    answers, said = _usable_answers(job, needs)
    source = None
    if job.teacher is not None:
        source = teacher_source(job.teacher, needs, job.preprocessing.input_shape).eval()
    views = job.config.teacher_views
    teacher = Teacher(source, needs, fabric, answers, views)
    teacher.decisions = said
    if job.plan.trains_teacher:
        return teacher  # what it says changes with every step, so there is nothing to keep
    nothing_fits = job.answers is not None and not job.answers.stored
    # A view that is seen once has no use for a cache.
    if answers is None and not nothing_fits and 0 < views < job.config.epochs:
        samples, shapes = len(job.dataset.train), teacher.shapes()
        kept = views_that_fit(shapes, samples, views, job.config.teacher_cache_mib)
        if kept:
            teacher.cache = TeacherCache(job.ctx.scratch, views=kept, samples=samples, shapes=shapes)
        if kept < views:
            teacher.decisions += (
                f"The teacher's outputs on {kept} of {views} views fit into {job.config.teacher_cache_mib:g} MiB; for "
                "the others it is asked in each epoch.",
            )
    return teacher


def _usable_answers(job: Job, needs: frozenset[Signal]) -> tuple[Answers | None, tuple[str, ...]]:
    """The stored answers that serve in this training, and what is to be said where they do not serve wholly."""
    answers = job.answers
    if answers is None:
        return None, ()
    if job.config.mixes or job.config.hard:
        what = "mixup and cutmix mix" if job.config.mixes else "hard varies"
        raise UserError(
            f"{what} images anew in each step, and nobody can have stored the teacher's answers to that.",
            hint="disconnect 'answers', so that the teacher is asked live",
        )
    if job.teacher is None:
        _check_sufficient(job, answers, needs)
        return answers, ()
    if not answers.stored:
        return None, ("None of the teacher's answers is stored, so it is asked in each epoch.",)
    lacking = answers.lacks(needs)
    if lacking:
        return None, (
            f"The teacher's stored answers are not used, for they lack what the objectives read, its "
            f"{' and '.join(lacking)}: it is asked in the training.",
        )
    if answers.stored < min(answers.views, job.config.epochs):
        return answers, (
            f"Of {answers.views} views, {answers.stored} are stored; for the others the teacher is asked in each "
            "epoch.",
        )
    return answers, ()


def _check_sufficient(job: Job, answers: Answers, needs: frozenset[Signal]) -> None:
    """Without a live teacher everything that is asked must be stored."""
    if needs & TAPPED:
        raise UserError(
            f"An objective reads the teacher's {' and '.join(sorted(needs & TAPPED))}, and there are only stored "
            "answers: inner signals that were stored serve beside the teacher, which gives their sizes.",
            hint="connect the teacher too, or choose an objective that needs logits only: edgekd objectives",
        )
    asked = min(answers.views, job.config.epochs)
    if answers.stored < asked:
        raise UserError(
            f"The training asks the teacher about {asked} views, of which {answers.stored} are stored, and there is no "
            "teacher to ask about the others.",
            hint="connect the teacher too, or store all views: raise capacity_mib of the teach node",
        )


def _check_classes(job: Job, student: SignalSource, teacher: Teacher | None) -> None:
    classes = student.spec().classes
    of_teacher = classes if teacher is None else teacher.spec().classes
    if of_teacher != classes:
        raise UserError(
            f"The student has {classes} classes and the teacher {of_teacher}: their logits cannot be compared.",
            hint="give the student as many outputs as the teacher has",
        )
    labels = job.dataset.train.labels
    highest = -1 if labels is None else int(labels.max())
    if highest >= classes:
        raise UserError(
            f"The data has labels up to {highest}, but the student has {classes} outputs, for 0 to {classes - 1}.",
            hint="give the data that the model was trained for, with class folders in the same order",
        )
