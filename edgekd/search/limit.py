"""What a student may cost: the predicted latency, or the multiply-accumulates where no device is known."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from edgekd.core.text import ms, significant
from edgekd.nn.build import module_from_recipe
from edgekd.nn.count import count_params, layer_costs
from edgekd.nn.reparam import reparameterised
from edgekd.search.space import Arch, SearchSpace
from edgekd.targets.latency import LatencyModel
from edgekd.targets.schema import Precision


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one network at batch 1; `predicted_ms` is None without a latency model."""

    predicted_ms: float | None
    params: int
    macs: int

    @property
    def compared(self) -> float:
        """What limits are about: milliseconds where they are known, else multiply-accumulates."""
        return float(self.macs) if self.predicted_ms is None else self.predicted_ms


_BEYOND = 2**62
"""More than any limit admits."""


class Costs:
    """Costs of architectures, each counted once.

    One that does not fit into the memory of this machine costs more than any limit admits.

    Args:
        space: Builds them.
        input_shape: (C, H, W).
        model: Of the device; None counts only.
        precision: Of the deployed network.

    Attributes:
        too_large: Architectures that did not fit into memory.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        input_shape: tuple[int, int, int],
        model: LatencyModel | None,
        precision: Precision,
    ) -> None:
        self._space = space
        self._shape = input_shape
        self._model = model
        self._precision: Precision = precision
        self._known: dict[Arch, Cost] = {}
        self.too_large = 0

    def of(self, arch: Arch) -> Cost:
        """The cost of an architecture of the space."""
        if arch not in self._known:
            try:
                self._known[arch] = self.of_module(module_from_recipe(self._space.recipe(arch)))
            except (MemoryError, RuntimeError) as err:
                # PyTorch's CPU allocator reports a full memory as a plain RuntimeError.
                if not isinstance(err, MemoryError) and "memory" not in str(err):
                    raise
                self.too_large += 1
                self._known[arch] = Cost(
                    predicted_ms=None if self._model is None else float(_BEYOND), params=_BEYOND, macs=_BEYOND
                )
        return self._known[arch]

    def of_module(self, module: nn.Module) -> Cost:
        """The cost of any network on images of the same shape, in the form it is deployed in."""
        deployed = reparameterised(module)
        costs = layer_costs(deployed, self._shape)
        predicted = None if self._model is None else self._model.predict_ms(costs, self._precision)
        return Cost(predicted_ms=predicted, params=count_params(deployed), macs=sum(cost.macs for cost in costs))


@dataclass(frozen=True, kw_only=True)
class Limit:
    """The largest cost a student may have.

    Attributes:
        value: In the unit of `Cost.compared`.
        params: Parameters.
        reason: One sentence on where they come from.
        kept: Whether some student keeps what was asked for; otherwise the limit admits the cheapest one alone.
    """

    value: float
    params: int
    reason: str
    kept: bool = True

    def admits(self, cost: Cost) -> bool:
        """Whether a network keeps the limit."""
        return cost.compared <= self.value and cost.params <= self.params


def student_limit(
    teacher: Cost, cheapest: Cost, *, budget_ms: float | None, teacher_share: float, relative_error: float | None
) -> Limit:
    """The limit of a search.

    With a budget, a prediction plus the median error of its model must keep it. Without one, students cost at most
    `teacher_share` of the teacher, or half way from the cheapest one to the teacher where that share is out of reach.
    In no case is a student slower than its teacher or does it have more parameters.

    Args:
        teacher: Its cost, in the precision of the students.
        cheapest: Cost of the cheapest student.
        budget_ms: Asked for; needs a latency model.
        teacher_share: Used without a budget.
        relative_error: Median relative error of the latency model, if known.
    """
    if budget_ms is None:
        unit = "multiply-accumulates" if teacher.predicted_ms is None else "ms"
        value, what = teacher_share * teacher.compared, f"{teacher_share:g} of the teacher"
        if value < cheapest.compared < teacher.compared:
            value = (cheapest.compared + teacher.compared) / 2
            what = f"half way from the cheapest one to the teacher, for none costs {teacher_share:g} of it"
        reason = f"No latency budget was given: students cost at most {what}: {significant(value)} {unit}, predicted."
        return Limit(value=value, params=teacher.params, reason=reason)
    value = budget_ms / (1 + (relative_error or 0.0))
    if teacher.compared <= value:
        return Limit(
            value=teacher.compared,
            params=teacher.params,
            reason=f"The teacher itself is predicted to keep {ms(budget_ms)}: students cost at most what it costs, "
            f"{ms(teacher.compared)}.",
        )
    margin = "" if not relative_error else f", the model's median error of {100 * relative_error:.0f} % left as margin"
    reason = f"Students are predicted to take at most {ms(value)} of {ms(budget_ms)}{margin}."
    return Limit(value=value, params=teacher.params, reason=reason)


def reachable_limit(limit: Limit, cheapest: Cost, *, teacher: Cost, budget_ms: float | None, space: str) -> Limit:
    """`limit` where some architecture of the space keeps it, else one that admits the cheapest alone and says so.

    A prediction may be wrong, and other branches of a run may deliver: what misses a limit is judged by the
    measurement, not refused here. The reason holds what the cheapest one costs, and which budget admits it where one
    does.
    """
    if limit.admits(cheapest):
        return limit
    if budget_ms is None or cheapest.compared > teacher.compared or cheapest.params > teacher.params:
        shortfall = (
            f"No student of the space {space!r} is small enough: the smallest one has {cheapest.macs:,} "
            f"multiply-accumulates and {cheapest.params:,} parameters, the teacher {teacher.macs:,} and "
            f"{teacher.params:,}. The teacher is small already: leave the search out, and prune or quantize it."
        )
    else:
        admitting = budget_ms * cheapest.compared / limit.value
        shortfall = (
            f"No student of the space {space!r} keeps {ms(budget_ms)}: the fastest one is predicted to take "
            f"{ms(cheapest.compared)}. A budget of {significant(1.01 * admitting)} ms admits one."
        )
    return Limit(
        value=cheapest.compared,
        params=max(cheapest.params, limit.params),
        reason=f"{limit.reason} {shortfall} The cheapest one goes on all the same.",
        kept=False,
    )
