"""Any distillation objective as a proxy: the loss between a random student and a random teacher, negated."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

from edgekd.errors import UserError
from edgekd.nn.mode import evaluating
from edgekd.search.proxies.network import batch_statistics, check_alive
from edgekd.search.proxies.views import check_classes
from edgekd.search.proxy import Batch, Proxy, ScoreStudent, Unscorable
from edgekd.train.objective import (
    OBJECTIVES,
    Objective,
    Signal,
    Signals,
    SignalSpec,
    Survey,
    TrainingData,
    build_objective,
)
from edgekd.train.signals import SignalSource
from edgekd.train.survey import SurveyBatch
from edgekd.train.weighing import Weighing

_SEED = 0


class ObjectiveProxy(Proxy):
    """`-objective(student, teacher)` with the objective's default arguments, on the batch and its labels.

    Class means are those of the batch. A student that the objective would compare with its teacher through layers that
    must learn first, as `kdpp` does where the widths differ, has no score.

    Attributes:
        objective: A name in `OBJECTIVES`.
    """

    uses_weights: ClassVar[bool] = True
    uses_teacher: ClassVar[bool] = True
    objective: ClassVar[str]

    def bind(self, teacher: nn.Module, batch: Batch) -> ScoreStudent:
        kind = OBJECTIVES.get(self.objective)
        labels = batch.labels if kind.needs_labels else None
        target, target_spec = _signals(teacher, batch, kind.needs_of_teacher)
        survey = Survey(batches=lambda: iter([SurveyBatch(target, labels, torch.arange(len(batch.images)))]))
        data = TrainingData(samples=len(batch.images), classes=target_spec.classes, labels=labels)

        def score(student: nn.Module) -> float:
            try:
                found, spec = _signals(student, batch, kind.needs)
            except UserError as err:
                # A search goes on without a student that lacks the signal; the teacher's lack ends it.
                raise Unscorable(err.message) from err
            check_classes(found.logits.T, target.logits.T)
            objective = _bound(self.objective, spec, target_spec, data, survey)
            if objective.adapts:
                raise Unscorable(
                    f"Its sizes are not its teacher's, so {self.objective!r} would compare it through layers that must "
                    "learn first."
                )
            with evaluating(objective), torch.no_grad():
                return -float(objective(found, target, labels))

        return score


def objective_proxy(name: str) -> ObjectiveProxy:
    """The proxy of a registered objective.

    Raises:
        UserError: No such objective; the message suggests the near one. Or it compares a student with its own past or
            its own depths, or through layers that must learn first, or has a teacher that learns too, which says
            nothing of a network that never was trained.
    """
    kind = OBJECTIVES.get(name)
    if not _scores(kind):
        raise UserError(
            f"The objective {name!r} compares a student with itself, remembers samples or trains layers of its own or "
            "the teacher, which says nothing of a student that was never trained.",
            hint=f"objectives that can score: {', '.join(scoring_objectives())}",
        )

    class Named(ObjectiveProxy):
        objective = name
        formula = f"-({kind.formula})"
        source = kind.source

    return Named()


def scoring_objectives() -> tuple[str, ...]:
    """Names of the objectives that compare an untrained student with its teacher on one batch."""
    return tuple(name for name in OBJECTIVES if _scores(OBJECTIVES.get(name)))


def _scores(kind: type[Objective[Any]]) -> bool:
    learns = kind.adapts or kind.trains_teacher or issubclass(kind, Weighing)
    return kind.needs_teacher and not learns and Signal.IDS not in kind.needs


def _signals(module: nn.Module, batch: Batch, needs: frozenset[Signal]) -> tuple[Signals, SignalSpec]:
    source = SignalSource(module, needs, batch.input_shape)
    spec = source.spec()
    with batch_statistics(module), torch.no_grad():
        signals: Signals = source(batch.images)
    check_alive(signals.logits)
    return signals, spec


def _bound(name: str, student: SignalSpec, teacher: SignalSpec, data: TrainingData, survey: Survey) -> Objective[Any]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        objective = build_objective(name, {})
        objective.bind(student, teacher)
        objective.bind_data(data)
    objective.prepare(survey)
    return objective
