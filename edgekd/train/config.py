"""The options of a training, shared by every stage that trains.

All of them enter the key, and all but `teacher_cache_mib`, which trades time for space, change the result.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, JsonValue, model_validator

from edgekd.core.stage import StageConfig
from edgekd.data.augment import Augment
from edgekd.train.terms import TermConfig

Schedule = Literal["cosine", "step", "onecycle"]
Precision = Literal["32-true", "bf16-mixed"]


class TrainConfig(StageConfig):
    """How a student is trained.

    The loss is `supervised_weight * CE + sum of weight * objective`; what is None takes the objective's own default
    (`Objective.default_weights`, of the first objective for the cross-entropy). `objective`, `objective_args`,
    `distill_weight` and `distill_warmup_epochs` are the short form of `objectives` with one term.

    Attributes:
        epochs: Passes over the training split, each of ceil(n / batch_size) batches of nearly equal size.
        batch_size: Largest batch, over all processes together: the images of one step of the optimizer.
        accumulate: Into how many micro-batches a batch is cut, one after another, whose gradients are summed before the
            optimizer's step: a batch that does not fit into memory can be had all the same. `batch_size`, learning
            rate, schedules, mixing and clipping mean what they mean without it, and the gradient of a loss that is a
            mean over images is that of the whole batch. What looks at a batch sees a micro-batch: the statistics of
            BatchNorm, those of layers that an objective trains included, objectives that compare the images of a batch
            with each other (`sp`, `pkt`, `rkd`, `crd`, `dist`, `sinkd`), and state that moves with each pass (`taid`).
            Refused is `tgeo`, which looks back at whole batches.
        optimizer: `sgd` with momentum for convolutional networks, `adamw` for transformers.
        lr: Peak learning rate.
        momentum: Of SGD; the first beta of AdamW.
        weight_decay: On weights; never on biases and normalisation, which have one dimension.
        nesterov: Of SGD.
        schedule: `cosine` to zero; `step`: x0.1 after 62.5, 75 and 87.5 % (150, 180 and 210 of 240 epochs);
            `onecycle`: up from lr / 25 over the first 30 %, then down to zero.
        warmup_epochs: Linear ramp before `cosine` or `step`; `onecycle` has its own.
        label_smoothing: Of the cross-entropy.
        augment: How images vary.
        mixup: Alpha of mixup (0.2 to 0.8 are usual), 0 for none. Each step mixes its images anew, and the teacher sees
            the very mixtures that the student sees, so it is asked live.
        cutmix: Alpha of CutMix (1 is usual), 0 for none; with both, each step has one of them.
        hard: Above 0, images are also warped and recoloured as far as makes the student disagree most with its teacher,
            up to this share of the full range (0.3 to 0.6 are sensible; see `edgekd.train.hard`). Each step varies its
            images anew, so the teacher is asked live. 0 for none.
        grad_clip: Largest norm of the gradient, None for no limit.
        objective: Name of the distillation objective, used when there is a teacher.
        objective_args: Its arguments.
        supervised_weight: Of the cross-entropy; 0 without labels, 1 without a teacher.
        distill_weight: Of the objective.
        distill_warmup_epochs: Epochs over which the objective is faded in.
        objectives: Several objectives with weights and schedules, in place of the four options of the short form.
        teacher_views: With a teacher: number of different views of each image. Its outputs are computed once per view
            and kept, so that later epochs cost the student alone. 0: a new view each epoch, and a live teacher.
        teacher_weights: With several teachers: the share of each in the mean of their probabilities, in their order;
            empty for equal ones. `edgekd teachers` proposes some.
        teacher_lr_share: Of a teacher that an objective trains along (`bdkd-online`, `dml`): its learning rate as a
            share of the student's. As a rule it has learned already, like a student that starts from weights; 1 for one
            that has not.
        teacher_cache_mib: Most that is kept of them; for views that do not fit the teacher is asked in each epoch. None
            keeps all, as long as the disk has room.
        ema_decay: Trains as usual and keeps the exponential moving average of the weights; BatchNorm statistics are
            gathered anew for it. 0.999 for long trainings.
        precision: `bf16-mixed` pays on GPUs, and on CPUs with AMX or AVX512-BF16 instructions.
        channels_last: Memory format of images and convolutions: the faster one on CPUs, and on GPUs with bf16. Networks
            whose gradients would be wrong in it are trained in the contiguous format all the same.
        compile: `auto` compiles the student (torch.compile) where there is time to win back what compiling costs, and
            it was measured to be faster and to compute the same up to rounding; the decision is said. To try it takes
            a minute or two before the training, and on CPUs a C++ compiler; without one, or where an objective reads
            the inside of the student, it is trained as it is. Only with `off` is it certain that an interrupted
            training ends with the very bits of a whole one.
    """

    epochs: int = Field(default=60, ge=1)
    batch_size: int = Field(default=128, ge=2)
    accumulate: int = Field(default=1, ge=1)
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = Field(default=0.1, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=5e-4, ge=0)
    nesterov: bool = True
    schedule: Schedule = "cosine"
    warmup_epochs: int = Field(default=0, ge=0)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    augment: Augment = Field(default_factory=Augment)
    mixup: float = Field(default=0.0, ge=0)
    cutmix: float = Field(default=0.0, ge=0)
    hard: float = Field(default=0.0, ge=0, le=1)
    grad_clip: float | None = Field(default=None, gt=0)
    objective: str | None = "kd"
    objective_args: dict[str, JsonValue] = Field(default_factory=dict)
    supervised_weight: float | None = Field(default=None, ge=0)
    distill_weight: float | None = Field(default=None, ge=0)
    distill_warmup_epochs: int | None = Field(default=None, ge=0)
    objectives: tuple[TermConfig, ...] = ()
    teacher_views: int = Field(default=0, ge=0)
    teacher_weights: tuple[Annotated[float, Field(ge=0)], ...] = ()
    teacher_lr_share: float = Field(default=0.2, gt=0)
    teacher_cache_mib: float | None = Field(default=None, gt=0)
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    precision: Precision = "32-true"
    channels_last: bool = True
    compile: Literal["off", "auto"] = "off"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs ({self.warmup_epochs}) must be smaller than epochs ({self.epochs})")
        if self.accumulate > 1 and 2 * self.accumulate > self.batch_size:
            raise ValueError(
                f"accumulate ({self.accumulate}) leaves micro-batches of less than two images of a batch_size of "
                f"{self.batch_size}, and BatchNorm has no variance over one"
            )
        if self.warmup_epochs and self.schedule == "onecycle":
            raise ValueError("warmup_epochs does not go with the schedule onecycle, which warms up by itself")
        if self.nesterov and not self.momentum and self.optimizer == "sgd":
            raise ValueError("nesterov needs momentum")
        if self.mixes and self.teacher_views:
            raise ValueError("mixup and cutmix mix images anew in each step: teacher_views must be 0")
        if self.hard and self.teacher_views:
            raise ValueError("hard varies images anew in each step: teacher_views must be 0")
        self._check_form()
        return self

    def _check_form(self) -> None:
        short = ("distill_warmup_epochs", "distill_weight", "objective", "objective_args")
        given = {name: type(self).model_fields[name].get_default(call_default_factory=True) for name in short}
        changed = [name for name, default in given.items() if getattr(self, name) != default]
        if self.objectives and changed:
            raise ValueError(f"objectives does not go with {', '.join(changed)}: put them into a term of objectives")

    @property
    def mixes(self) -> bool:
        """Whether images are mixed."""
        return self.mixup > 0 or self.cutmix > 0

    def terms(self) -> tuple[TermConfig, ...]:
        """The objectives with their weights, whichever form they were given in; none without an objective."""
        if self.objectives or self.objective is None:
            return self.objectives
        term = TermConfig(
            name=self.objective,
            weight=self.distill_weight,
            args=self.objective_args,
            warmup_epochs=self.distill_warmup_epochs,
        )
        return (term,)

    @property
    def repeated_views(self) -> int:
        """After how many epochs a training with a teacher sees the same pixels again; 0: never."""
        if self.teacher_views:
            return self.teacher_views
        return 1 if self.augment == Augment(views=self.augment.views) else self.augment.views or 0

    def view(self, epoch: int, *, teacher: bool) -> int:
        """The view of the images that an epoch sees."""
        if teacher and self.repeated_views:
            return epoch % self.repeated_views
        return self.augment.view(epoch)
