"""What an objective is: a scalar loss between a student's and a teacher's signals, with everything declared.

An objective says which signals it reads, whether it needs labels or a teacher, which weights and warm-up its authors
use, and gives its formula and source. It knows nothing of loops, devices or files; the loop knows nothing of any single
objective.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, TypeVar

import torch
from pydantic import JsonValue
from torch import Tensor, nn

from edgekd.core.registry import Registry
from edgekd.core.schema import Schema
from edgekd.errors import EdgekdError
from edgekd.train.review import Conclusion, Review, ReviewBatch
from edgekd.train.signal import TAPPED, Classifier, Progress, Signal, Signals, SignalSpec
from edgekd.train.survey import Survey, TrainingData

__all__ = [
    "OBJECTIVES",
    "TAPPED",
    "Classifier",
    "Conclusion",
    "LossWeights",
    "Objective",
    "Progress",
    "Review",
    "ReviewBatch",
    "Signal",
    "SignalSpec",
    "Signals",
    "Survey",
    "TrainingData",
    "build_objective",
    "full_precision",
    "label_free_objectives",
    "present",
]


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

    The order of calls: construction from a config; `bind` and `bind_data`, once each, at every start, resumed ones
    included; `prepare`, once, at a fresh start; then per training step `advance` and `forward`; `conclude`, after the
    last one. Parameters that `bind` creates are trained with the student and never exported.

    State that a checkpoint must hold (a moving average, a memory bank, an adaptive temperature) is a buffer, created in
    `bind` or `bind_data` at its final size. `forward` may change it only while `self.training`; with several processes
    it changes it alike in each (`edgekd.train.gather.gathered` collects what the others saw).

    Contract, held by `edgekd.testing.conformance_objective`: the value is a finite scalar of at least float32 for any
    finite float16, bfloat16 or float32 signals; it does not depend on the order of the batch; it reduces by the mean
    over samples, so that the gradient does not depend on K or N by accident; a pass in evaluation mode leaves its state
    as it was. The teacher gets no gradient of it; one that is trained along learns from `teacher_loss` alone, which in
    turn sends none into the student. Whoever calls sees to that: it gives each loss the other network's signals
    detached.

    What a class declares holds with its default arguments; what differs with others, or between certain networks, an
    object says by `declare`.

    Attributes:
        name: Registry key.
        Config: Its arguments.
        needs: Signals it reads, of the student and of the teacher, and whether it reads labels or sample ids.
        needs_of_teacher: Signals it reads of the teacher, where these are others than it reads of the student; derived
            from `needs` where a class does not say. The fewer, the more teachers will do: one that is asked for logits
            alone may be a frozen program, or stored answers.
        needs_labels: Whether it cannot train without labels: `needs` holds `Signal.LABELS`, or `trains_teacher` is set;
            derived.
        takes_unlabelled: Whether it learns from images of which some have no label; derived: those that need no labels
            do. One that does reads `UNLABELLED` in the place of a label.
        pool_labels: What images gathered from a pool are best given when it trains: the class that the `teacher` takes
            them for, or `none`, where labels and teacher teach different parts of the student.
        concludes: Whether it has a `conclude`; derived.
        teaches_classes: Whether it trains the student's classifier; as a rule, whether `needs` holds `Signal.LOGITS`.
            One that does not leaves the classifier to the cross-entropy, so it cannot train without labels either.
        needs_teacher: False for self-distillation: then `bind` and `forward` get None for the teacher, even where
            another objective of the same training has one. Such a class widens the type of these parameters.
        trains_teacher: Whether the teacher learns too, from its own cross-entropy with the labels and `teacher_loss`,
            with the weights that the student's loss has. It must then be one network with weights. It is copied for the
            training, and the copy is thrown away with it. The labels keep the teacher right: without them two networks
            would only pull at each other.
        adapts: Whether layers that it trains along stand between the networks, so that its value says nothing before
            they have learned: a student that equals its teacher has the least loss only then. Final once it is bound,
            for some need such layers only where the sizes of the networks differ.
        t_squared: Whether the temperature's square multiplies the loss, which keeps gradients comparable across T.
        default_weights: Used where a training config leaves the weights open.
        formula: One line.
        source: Authors, year, arXiv id.
        progress: Where it stands in its own epochs: set by `advance`; the very start before its first call.
    """

    name: ClassVar[str]
    Config: ClassVar[type[Schema]]
    needs: ClassVar[frozenset[Signal]]
    needs_of_teacher: ClassVar[frozenset[Signal]]
    needs_labels: ClassVar[bool]
    takes_unlabelled: ClassVar[bool]
    pool_labels: ClassVar[Literal["teacher", "none"]] = "teacher"
    concludes: ClassVar[bool]
    teaches_classes: ClassVar[bool]
    needs_teacher: ClassVar[bool] = True
    trains_teacher: ClassVar[bool] = False
    adapts: ClassVar[bool] = False
    t_squared: ClassVar[bool]
    default_weights: ClassVar[LossWeights]
    formula: ClassVar[str]
    source: ClassVar[str]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.needs_labels = Signal.LABELS in cls.needs or cls.trains_teacher
        cls.concludes = cls.conclude is not Objective.conclude
        if "takes_unlabelled" not in vars(cls):
            cls.takes_unlabelled = not cls.needs_labels
        if "needs_of_teacher" not in vars(cls):
            cls.needs_of_teacher = cls.needs if cls.needs_teacher else frozenset()
        if "teaches_classes" not in vars(cls):
            cls.teaches_classes = Signal.LOGITS in cls.needs

    def __init__(self, config: C) -> None:
        super().__init__()
        self.config = config
        self.progress = Progress.start()

    def declare(self, *, needs: frozenset[Signal] | None = None, adapts: bool | None = None) -> None:
        """Says of this object what its class says otherwise: `needs` before it is bound, and `adapts` in `bind`.

        What is derived follows. `needs` are then also those of the teacher, unless the class names these itself.
        """
        said = vars(self)
        if adapts is not None:
            said["adapts"] = adapts
        if needs is not None:
            said["needs"] = needs
            said["needs_labels"] = Signal.LABELS in needs or self.trains_teacher
            said["takes_unlabelled"] = type(self).takes_unlabelled and not said["needs_labels"]
            if type(self).needs_of_teacher == type(self).needs:
                said["needs_of_teacher"] = needs

    def bind(self, student: SignalSpec, teacher: SignalSpec) -> None:
        """Creates what depends on the sizes of the networks, such as an adapter. Called once."""
        return None

    def bind_data(self, data: TrainingData) -> None:
        """Creates what depends on the training data, such as a memory of every sample. Called once, after `bind`."""
        return None

    def prepare(self, survey: Survey) -> None:
        """Fills state from the teacher's signals on the training images without augmentation.

        Called once, after `bind_data`, on the device of the training, unless a checkpoint restores the state. Not
        called where there is no teacher. One pass over `survey.batches()` costs one pass of the teacher over the
        training split, and nothing where it is not iterated.
        """
        return None

    def advance(self, progress: Progress) -> None:
        """Takes where it stands in its own epochs, before each training step of them: schedules are functions of it."""
        self.progress = progress

    def more_images(self, images: Tensor) -> tuple[Tensor, ...]:
        """Further views of the images, (N, C, H, W) each, that the student sees in the same pass of a training step.

        What it says of them is `student.more`, view by view. The teacher does not see them.
        """
        return ()

    @abstractmethod
    def forward(self, student: Signals, teacher: Signals, labels: Tensor | None) -> Tensor:
        """The loss, a scalar of at least float32.

        Args:
            student: With gradients; `student.ids` where `needs` holds `Signal.IDS`.
            teacher: Without gradients; None where `needs_teacher` is False.
            labels: (N,) int64; never None where `needs` holds `Signal.LABELS`, but for others where images are mixed.
                `UNLABELLED` for an image without one, which only those meet that take unlabelled images.
        """

    def teacher_loss(self, student: Signals, teacher: Signals, labels: Tensor | None) -> Tensor:
        """What a teacher that is trained along lowers beside its cross-entropy, a scalar of at least float32.

        Only where `trains_teacher` is set; called after `forward`, in each step in which the objective counts.

        Args:
            student: Without gradients.
            teacher: With gradients.
            labels: As in `forward`.
        """
        raise EdgekdError(f"The objective {self.name!r} does not train its teacher, and was asked for its loss.")

    def conclude(self, review: Review) -> Conclusion:
        """Leaves in the student's last layer what it learned beside it, and says what it did.

        Called once, after the last step, if the objective counted in it: on the final weights, its own layers averaged
        with the student's where those are, in evaluation mode. It writes the parameters of `review.classifier` in place
        and nothing else. What it writes follows from its arguments alone: a run that is cut off here and resumed ends
        with the same bits. Several processes call it alike and go on with what the first one wrote.

        The `select` split has labels then: data without any is refused before the training.
        """
        return Conclusion()


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
        "soft": "edgekd.distill.objectives.soft:Soft",
        "first": "edgekd.distill.objectives.first:FIRST",
        "bdkd": "edgekd.distill.objectives.bdkd:BDKD",
        "bdkd-online": "edgekd.distill.objectives.bdkd_online:BDKDOnline",
        "dml": "edgekd.distill.objectives.dml:DML",
        "sinkd": "edgekd.distill.objectives.sinkd:SinKD",
        "taid": "edgekd.distill.objectives.taid:TAID",
        "dhkd": "edgekd.distill.objectives.dhkd:DHKD",
        "dho": "edgekd.distill.objectives.dho:DHO",
        "lelp": "edgekd.distill.objectives.lelp:LELP",
        "trg": "edgekd.distill.objectives.trg:TRG",
        "crd": "edgekd.distill.objectives.crd:CRD",
        "ofa": "edgekd.distill.objectives.ofa:OFA",
        "reviewkd": "edgekd.distill.objectives.reviewkd:ReviewKD",
        "pskd": "edgekd.distill.objectives.pskd:PSKD",
        "sla": "edgekd.distill.objectives.sla:SLA",
        "exits": "edgekd.distill.objectives.exits:Exits",
        "tgeo": "edgekd.distill.objectives.tgeo:TGeo",
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
