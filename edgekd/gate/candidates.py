"""What is known of each engine that could be deployed: one row per candidate and runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgekd.core.layers import LayerReport
from edgekd.core.report import Budget, CandidateLatency, Evaluation, Latency, ProfileReport
from edgekd.core.text import mib
from edgekd.gate.budget import Loss, amount_text, evaluation_of, loss_from_evaluations, loss_text

FP32, INT8 = "fp32", "int8"
DECIDES_ON = "select"
"""The split that choices are made on; the verdict is given on `test`."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A model that may be deployed.

    Attributes:
        name: Of the node that made it.
        precision: `fp32`, `fp16` or `int8`.
        family: Equal for the precisions of one trained model, and for nothing else: these are each other's twins.
        runtime: The only one that runs it, for an engine; None for a graph, which several runtimes read.
        packed: It stores its weights as codes, and computes what its twin of the same precision does.
    """

    name: str
    precision: str
    family: str
    runtime: str | None = None
    packed: bool = False


@dataclass(frozen=True, kw_only=True)
class Row:
    """One candidate in one runtime.

    Attributes:
        latency: At the first thread count of the profile; None where it could be neither measured nor predicted.
        accuracy: On the `select` split, in this runtime if it was measured, in any otherwise; None if not evaluated.
        loss: Against the reference.
        layers: Times of its layers, where its runtime told them.
    """

    candidate: Candidate
    runtime: str
    size_mib: float
    latency: Latency | None
    accuracy: Evaluation | None
    loss: Loss | None
    layers: LayerReport | None = None

    @property
    def name(self) -> str:
        return f"{self.candidate.name}@{self.runtime}"

    @property
    def value(self) -> float:
        """The accuracy as a number to sort by; unknown counts as nothing."""
        return self.accuracy.value if self.accuracy is not None else 0.0

    @property
    def badness(self) -> tuple[float, float]:
        """Order when no row keeps every limit: least loss, then size; an unknown loss comes last."""
        return (self.loss.value if self.loss is not None else 2.0, self.size_mib)


def rows_from_profile(
    candidates: Sequence[Candidate],
    profile: ProfileReport,
    evaluations: Sequence[Evaluation],
    budget: Budget,
    reference: str,
    runtimes: Mapping[str, str],
) -> list[Row]:
    """One row per entry of a measured profile that has a latency; per candidate that the target runs otherwise."""
    known = {candidate.name: candidate for candidate in candidates}

    def row(entry: CandidateLatency, runtime: str, evaluated_in: str | None) -> Row:
        accuracy = evaluation_of(evaluations, entry.candidate, DECIDES_ON, evaluated_in)
        teacher = evaluation_of(evaluations, reference, DECIDES_ON, evaluated_in)
        teacher = teacher or evaluation_of(evaluations, reference, DECIDES_ON)
        return Row(
            candidate=known[entry.candidate],
            runtime=runtime,
            size_mib=entry.size_mib,
            latency=entry.known,
            accuracy=accuracy,
            loss=None if accuracy is None else loss_from_evaluations(accuracy, teacher, budget),
            layers=entry.layers,
        )

    entries = [entry for entry in profile.entries if entry.candidate in known]
    if not profile.measured:
        # Engines cannot run here, so accuracy comes from the runtime that this machine has for the same graph.
        named = [(entry, known[entry.candidate]) for entry in entries]
        places = [(entry, candidate.runtime or runtimes.get(candidate.precision)) for entry, candidate in named]
        return [row(entry, place, None) for entry, place in places if place is not None]
    timed = [entry for entry in entries if entry.latency and entry.latency.threads == profile.threads[0]]
    # A board ran the same graphs, and their accuracy was counted on this machine.
    return [row(entry, entry.runtime, None if profile.board else entry.runtime) for entry in timed]


def limit_missed(row: Row, budget: Budget, *, evaluated: bool) -> str | None:
    """Which limit other than latency the row misses, as a reason; None when it keeps them all.

    Args:
        evaluated: Whether accuracies were measured in this run at all. Without any, full precision passes (its export
            was compared with the model), INT8 does not.
    """
    if row.accuracy is None and (evaluated or row.candidate.precision == INT8):
        return f"its accuracy in {row.runtime} was not evaluated"
    if budget.max_drop is not None and row.loss is not None and not row.loss.keeps(budget.max_drop):
        return f"{loss_text(row.loss, budget)}, the limit is {amount_text(budget.max_drop, budget)}"
    if budget.max_size_mib is not None and row.size_mib > budget.max_size_mib:
        return f"too large: {mib(row.size_mib)}, the limit is {mib(budget.max_size_mib)}"
    return None
