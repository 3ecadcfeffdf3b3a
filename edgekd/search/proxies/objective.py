"""Any distillation objective as a proxy: the loss between a random student and a random teacher, negated."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from edgekd.errors import UserError
from edgekd.nn.mode import evaluating
from edgekd.search.proxies.network import batch_statistics, check_alive
from edgekd.search.proxies.views import check_classes
from edgekd.search.proxy import Batch, Proxy, ScoreStudent, Unscorable
from edgekd.train.objective import OBJECTIVES, Objective, Signals, SignalSpec, build_objective, present
from edgekd.train.signals import SignalSource

_SEED = 0


class ObjectiveProxy(Proxy):
    """`-objective(student, teacher)` with the objective's default arguments, on the batch and its labels.

    Adapters between unequal widths are drawn from one fixed seed, and class means are those of the batch.

    Attributes:
        objective: A name in `OBJECTIVES`.
    """

    uses_weights: ClassVar[bool] = True
    uses_teacher: ClassVar[bool] = True
    objective: ClassVar[str]

    def bind(self, teacher: nn.Module, batch: Batch) -> ScoreStudent:
        kind = OBJECTIVES.get(self.objective)
        labels = batch.labels if kind.needs_labels else None
        target, target_spec = _signals(teacher, batch, kind)
        means = None
        if kind.needs_class_means:
            means = _class_means(present(target.embedding, "embedding"), batch.labels, target_spec.classes)

        def score(student: nn.Module) -> float:
            try:
                found, spec = _signals(student, batch, kind)
            except UserError as err:
                # A search goes on without a student that lacks the signal; the teacher's lack ends it.
                raise Unscorable(err.message) from err
            check_classes(found.logits.T, target.logits.T)
            objective = _bound(self.objective, spec, target_spec, means)
            with evaluating(objective), torch.no_grad():
                return -float(objective(found, target, labels))

        return score


def objective_proxy(name: str) -> ObjectiveProxy:
    """The proxy of a registered objective.

    Raises:
        UserError: No such objective; the message suggests the near one.
    """
    kind = OBJECTIVES.get(name)

    class Named(ObjectiveProxy):
        objective = name
        formula = f"-({kind.formula})"
        source = kind.source

    return Named()


def _signals(module: nn.Module, batch: Batch, kind: type[Objective[Any]]) -> tuple[Signals, SignalSpec]:
    source = SignalSource(module, kind.needs, batch.input_shape)
    spec = source.spec()
    with batch_statistics(module), torch.no_grad():
        signals: Signals = source(batch.images)
    check_alive(signals.logits)
    return signals, spec


def _bound(name: str, student: SignalSpec, teacher: SignalSpec, means: Tensor | None) -> Objective[Any]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        objective = build_objective(name, {})
        objective.bind(student, teacher)
    if means is not None:
        objective.prepare(means)
    return objective


def _class_means(embedding: Tensor, labels: Tensor, classes: int) -> Tensor:
    """(K, D): the mean embedding of each class in the batch; 0 for a class that is not in it."""
    sums = torch.zeros(classes, embedding.shape[1], dtype=torch.float64).index_add_(0, labels, embedding.double())
    return (sums / torch.bincount(labels, minlength=classes).clamp_min(1)[:, None]).float()
