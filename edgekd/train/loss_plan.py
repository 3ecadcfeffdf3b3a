"""Which loss a training has, from its config and from what is at hand: a teacher or none, labels or none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgekd.errors import UserError
from edgekd.train.config import TrainConfig
from edgekd.train.objective import OBJECTIVES, Objective, build_objective, label_free_objectives


@dataclass(frozen=True, kw_only=True)
class LossPlan:
    """`supervised * CE + distill * fade * objective`, with every weight decided.

    Attributes:
        objective: None for supervised training.
        supervised: Weight of the cross-entropy, 0 without labels.
        distill: Weight of the objective, 0 without a teacher.
        warmup_epochs: Epochs over which the objective is faded in.
        decisions: What was decided and why, one sentence each.
    """

    objective: Objective[Any] | None
    supervised: float
    distill: float
    warmup_epochs: int
    decisions: tuple[str, ...]

    @property
    def needs_teacher(self) -> bool:
        """Whether a teacher is asked at all."""
        return self.objective is not None and self.objective.needs_teacher


def plan_loss(config: TrainConfig, *, teacher: bool, labelled: bool) -> LossPlan:
    """The loss of a training.

    Raises:
        UserError: Nothing to learn from, an objective that needs labels where there are none, or an unknown objective
            or argument.
    """
    if config.objective is None:
        return _supervised(teacher=teacher, labelled=labelled)
    if not teacher and OBJECTIVES.get(config.objective).needs_teacher:
        return _supervised(teacher=teacher, labelled=labelled)
    objective = build_objective(config.objective, config.objective_args)
    default = objective.default_weights
    if not labelled:
        _check_label_free(config, objective)
    supervised = (default.supervised if config.supervised_weight is None else config.supervised_weight) * labelled
    given = config.distill_weight
    distill = given if given is not None else (default.distill if labelled else 1.0)
    if not supervised and not distill:
        raise UserError("supervised_weight and distill_weight are both 0: the student has nothing to learn.")
    warmup = config.distill_warmup_epochs
    warmup = round(default.warmup * config.epochs) if warmup is None else warmup
    if labelled:
        said = f"Distilled with {supervised:g} * cross-entropy + {distill:g} * {objective.name}"
    else:
        said = f"Distilled without labels: {distill:g} * {objective.name}"
    said += f", faded in over {warmup} epochs." if warmup else "."
    return LossPlan(
        objective=objective, supervised=supervised, distill=distill, warmup_epochs=warmup, decisions=(said,)
    )


def _supervised(*, teacher: bool, labelled: bool) -> LossPlan:
    why = "no objective is given" if teacher else "there is no teacher"
    if not labelled:
        raise UserError(f"The data has no labels, and {why}: the student has nothing to learn from.")
    said = f"Trained with labels alone: {why}."
    return LossPlan(objective=None, supervised=1.0, distill=0.0, warmup_epochs=0, decisions=(said,))


def _check_label_free(config: TrainConfig, objective: Objective[Any]) -> None:
    if objective.needs_labels:
        raise UserError(
            f"The objective {objective.name!r} needs labels, and the data has none.",
            hint=f"objectives that do not need labels: {', '.join(label_free_objectives())}",
        )
    if not objective.teaches_classes:
        raise UserError(
            f"The objective {objective.name!r} compares features alone, and the data has no labels: nothing would "
            "train the student's classifier.",
            hint=f"objectives that do not need labels: {', '.join(label_free_objectives())}",
        )
    if config.supervised_weight:
        raise UserError(
            f"supervised_weight is {config.supervised_weight:g}, but the data has no labels.",
            hint="set supervised_weight=0, or leave it out",
        )
