"""Which loss a training has, from its config and from what is at hand: a teacher or none, labels or none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgekd.errors import UserError
from edgekd.train.config import TrainConfig
from edgekd.train.objective import OBJECTIVES, Objective, Signal, build_objective, label_free_objectives
from edgekd.train.peer import check_one_teacher_to_train
from edgekd.train.signal import TAPPED
from edgekd.train.terms import TermConfig, WeightSchedule
from edgekd.train.weighing import Weighing


@dataclass(frozen=True, kw_only=True)
class Term:
    """One objective of the sum.

    Attributes:
        label: Its name in reports: the objective's, with a number where it occurs twice.
        objective: Built, not yet bound.
        schedule: Its weight.
    """

    label: str
    objective: Objective[Any]
    schedule: WeightSchedule


@dataclass(frozen=True, kw_only=True)
class LossPlan:
    """`supervised * CE + sum of weight * objective`, with every weight decided.

    Attributes:
        terms: None for supervised training.
        supervised: Weight of the cross-entropy, 0 without labels.
        decisions: What was decided and why, one sentence each.
    """

    terms: tuple[Term, ...]
    supervised: float
    decisions: tuple[str, ...]

    @property
    def needs(self) -> frozenset[Signal]:
        """What some objective reads."""
        return frozenset().union(*(term.objective.needs for term in self.terms))

    @property
    def needs_teacher(self) -> bool:
        """Whether a teacher is asked at all."""
        return any(term.objective.needs_teacher for term in self.terms)

    @property
    def needs_of_teacher(self) -> frozenset[Signal]:
        """What some objective reads of the teacher."""
        return frozenset().union(*(term.objective.needs_of_teacher for term in self.terms))

    @property
    def trains_teacher(self) -> bool:
        """Whether some objective trains the teacher along."""
        return any(term.objective.trains_teacher for term in self.terms)

    def objectives(self) -> tuple[Objective[Any], ...]:
        """Those of the terms."""
        return tuple(term.objective for term in self.terms)

    def weighing(self) -> tuple[int, Weighing[Any]] | None:
        """The objective that learns on held-out images, with its place among the terms; None where there is none."""
        found = [(place, o) for place, o in enumerate(self.objectives()) if isinstance(o, Weighing)]
        return found[0] if found else None

    def concluding(self) -> tuple[Objective[Any], ...]:
        """Those that have a word after the last step."""
        return tuple(objective for objective in self.objectives() if objective.concludes)


def plan_loss(config: TrainConfig, *, teachers: int, labelled: bool, partly: bool = False) -> LossPlan:
    """The loss of a training.

    Args:
        config: The options; the single `objective` is the short form of one term.
        teachers: How many there are.
        labelled: Whether the training images have labels.
        partly: Whether some of them have none all the same.

    Raises:
        UserError: Nothing to learn from, in an epoch or at all, an objective that needs labels where there are none,
            one that reads the inside of a single teacher where there are several, two that learn on held-out images or
            rewrite the student's last layer, one that learns on held-out images where batches are cut, one that trains
            the teacher beside what needs it to stand still, or an unknown objective or argument.
    """
    wanted = config.terms()
    usable = [term for term in wanted if teachers or not OBJECTIVES.get(term.name).needs_teacher]
    if not usable:
        return _supervised(teacher=teachers > 0, labelled=labelled)
    if len(usable) < len(wanted) and len(wanted) > 1:
        lacking = ", ".join(repr(term.name) for term in wanted if term not in usable)
        raise UserError(
            f"Of the objectives, {lacking} need(s) a teacher, and there is none.",
            hint="connect a teacher, or leave these objectives out",
        )
    terms = _terms(usable, config.epochs, labelled=labelled)
    if not labelled:
        _check_label_free(config, terms)
    elif partly:
        _check_unlabelled(terms)
    _check_one_concludes(terms)
    if teachers > 1:
        _check_several(terms)
    if config.mixes:
        _check_mixable(terms)
    _check_one_weighs(terms)
    _check_whole_batches(terms, config)
    default = terms[0].objective.default_weights.supervised
    supervised = (default if config.supervised_weight is None else config.supervised_weight) * labelled
    if not supervised and not any(term.schedule.weight or term.schedule.final_weight for term in terms):
        raise UserError("supervised_weight and distill_weight are both 0: the student has nothing to learn.")
    if not supervised:
        _check_every_epoch(terms, config.epochs, labelled=labelled)
    check_one_teacher_to_train([t.objective for t in terms], config, teachers=teachers, supervised=supervised)
    return LossPlan(
        terms=terms, supervised=supervised, decisions=(_said(terms, supervised, config, labelled=labelled),)
    )


def _terms(configs: Sequence[TermConfig], epochs: int, *, labelled: bool) -> tuple[Term, ...]:
    terms: list[Term] = []
    for config in configs:
        objective = build_objective(config.name, config.args)
        default = objective.default_weights
        own = default.distill if labelled or len(configs) > 1 else 1.0
        weight = own if config.weight is None else config.weight
        until = min(epochs, config.until_epoch or epochs)
        if config.from_epoch >= until:
            raise UserError(
                f"The objective {config.name!r} begins at epoch {config.from_epoch}, but the training has {epochs}.",
                hint="lower from_epoch, or train longer",
            )
        warmup = round(default.warmup * epochs) if config.warmup_epochs is None else config.warmup_epochs
        schedule = WeightSchedule(
            weight=weight,
            final_weight=weight if config.final_weight is None else config.final_weight,
            curve=config.curve,
            from_epoch=config.from_epoch,
            until_epoch=until,
            warmup_epochs=warmup,
        )
        same = sum(other.objective.name == objective.name for other in terms)
        label = objective.name if not same else f"{objective.name}-{same + 1}"
        terms.append(Term(label=label, objective=objective, schedule=schedule))
    return tuple(terms)


def _said(terms: Sequence[Term], supervised: float, config: TrainConfig, *, labelled: bool) -> str:
    sums = " + ".join(f"{term.schedule.amount()} * {term.label}{term.schedule.timing(config.epochs)}" for term in terms)
    alone = not any(term.objective.needs_teacher for term in terms)
    verb = "Trained without a teacher" if alone else "Distilled"
    if labelled:
        return f"{verb} with {supervised:g} * cross-entropy + {sums}."
    return f"{verb} without labels: {sums}."


def _supervised(*, teacher: bool, labelled: bool) -> LossPlan:
    why = "no objective is given" if teacher else "there is no teacher"
    if not labelled:
        raise UserError(f"The data has no labels, and {why}: the student has nothing to learn from.")
    said = f"Trained with labels alone: {why}."
    return LossPlan(terms=(), supervised=1.0, decisions=(said,))


def _check_label_free(config: TrainConfig, terms: Sequence[Term]) -> None:
    hint = f"objectives that do not need labels: {', '.join(label_free_objectives())}"
    for term in terms:
        if term.objective.needs_labels:
            raise UserError(f"The objective {term.objective.name!r} needs labels, and the data has none.", hint=hint)
        if term.objective.concludes:
            raise UserError(
                f"The objective {term.objective.name!r} decides on labelled images what it leaves in the student, and "
                "the data has no labels.",
                hint=hint,
            )
    if not any(term.objective.teaches_classes for term in terms):
        names = " and ".join(repr(term.objective.name) for term in terms)
        raise UserError(
            f"The objective {names} compares features alone, and the data has no labels: nothing would train the "
            "student's classifier.",
            hint=hint,
        )
    if config.supervised_weight:
        raise UserError(
            f"supervised_weight is {config.supervised_weight:g}, but the data has no labels.",
            hint="set supervised_weight=0, or leave it out",
        )


def _check_unlabelled(terms: Sequence[Term]) -> None:
    for objective in (term.objective for term in terms):
        if objective.takes_unlabelled:
            continue
        kinds = {name: OBJECTIVES.get(name) for name in OBJECTIVES}
        fit = [name for name, kind in kinds.items() if kind.takes_unlabelled]
        raise UserError(
            f"The objective {objective.name!r} needs the label of every image, and those that were gathered have none.",
            hint=f"set labels=teacher at the gather node, or choose one that does not: {', '.join(fit)}",
        )


def _check_one_concludes(terms: Sequence[Term]) -> None:
    names = [term.label for term in terms if term.objective.concludes]
    if len(names) > 1:
        raise UserError(
            f"The terms {' and '.join(map(repr, names))} each rewrite the student's last layer after the training, "
            "and the last of them would undo what the others did.",
            hint="keep one of them",
        )


def _check_every_epoch(terms: Sequence[Term], epochs: int, *, labelled: bool) -> None:
    """Without cross-entropy each epoch needs a term, and the last ones a term that trains the classifier.

    Features alone may come first, as the hints of FitNets do (Romero et al. 2015, arXiv 1412.6550); after the last term
    that looks at classes they would take the layers in front of the classifier away from it.
    """
    counting = [[term for term in terms if term.schedule.at(epoch, 1) > 0] for epoch in range(epochs)]
    missing = "the data has no labels" if not labelled else "supervised_weight is 0"
    idle = [epoch for epoch, counted in enumerate(counting) if not counted]
    if idle:
        raise UserError(
            f"In {_epochs(idle)} of {epochs} the student has nothing to learn from: no objective has a weight above 0 "
            f"at the beginning, and {missing}.",
            hint="let the objectives cover every epoch, and begin with a weight above 0",
        )
    taught = [epoch for epoch, counted in enumerate(counting) if any(t.objective.teaches_classes for t in counted)]
    after = range(taught[-1] + 1 if taught else 0, epochs)
    if after:
        names = " and ".join(dict.fromkeys(repr(term.objective.name) for epoch in after for term in counting[epoch]))
        raise UserError(
            f"In {_epochs(after)} of {epochs} nothing trains the student's classifier: {names} reads features alone, "
            f"and {missing}.",
            hint="end with an objective that reads logits, such as kd, or give the labels a supervised_weight",
        )


def _epochs(numbers: Sequence[int]) -> str:
    """`epoch 3`, `epochs 1, 6 to 10`: counted from 1 for people."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and spans[-1][-1] == number - 1:
            spans[-1].append(number)
        else:
            spans.append([number])
    said = [str(span[0] + 1) if len(span) == 1 else f"{span[0] + 1} to {span[-1] + 1}" for span in spans]
    return f"{'epoch' if len(numbers) == 1 else 'epochs'} {', '.join(said)}"


def _check_mixable(terms: Sequence[Term]) -> None:
    """A mixture of two images has no class of its own, and is no sample that could be remembered."""
    for objective in (term.objective for term in terms):
        if objective.needs & {Signal.LABELS, Signal.IDS}:
            kinds = {name: OBJECTIVES.get(name) for name in OBJECTIVES}
            fit = [name for name, kind in kinds.items() if not kind.needs & {Signal.LABELS, Signal.IDS}]
            raise UserError(
                f"The objective {objective.name!r} asks for the class or the place of each image, and mixed images "
                "have two.",
                hint=f"set mixup=0 and cutmix=0, or choose an objective that does not: {', '.join(fit)}",
            )


def _check_one_weighs(terms: Sequence[Term]) -> None:
    """What one objective holds out the other would train on."""
    names = [repr(term.objective.name) for term in terms if isinstance(term.objective, Weighing)]
    if len(names) > 1:
        raise UserError(
            f"The objectives {' and '.join(names)} each hold out training images to learn on, and one training has one "
            "such part.",
            hint="give one of them, beside any objectives that hold none out",
        )


def _check_whole_batches(terms: Sequence[Term], config: TrainConfig) -> None:
    """One who learns on held-out images goes back over the whole batch of the step before."""
    for objective in (term.objective for term in terms):
        if config.accumulate > 1 and isinstance(objective, Weighing):
            raise UserError(
                f"The objective {objective.name!r} learns how to weigh its terms from what one step on a whole batch "
                f"changes, and accumulate={config.accumulate} cuts batches.",
                hint="set accumulate=1 with a smaller batch_size, or choose another objective, such as kd",
            )


def _check_several(terms: Sequence[Term]) -> None:
    """Several teachers are combined in their probabilities; there is no combination of what is inside of them."""
    for objective in (term.objective for term in terms):
        inner = sorted(objective.needs_of_teacher & TAPPED)
        if not inner:
            continue
        kinds = {name: OBJECTIVES.get(name) for name in OBJECTIVES}
        fit = [name for name, kind in kinds.items() if not kind.needs_of_teacher & TAPPED]
        raise UserError(
            f"The objective {objective.name!r} reads the {' and '.join(inner)} of one teacher, and there are several.",
            hint=f"give one teacher, or choose an objective that takes several: {', '.join(fit)}",
        )
