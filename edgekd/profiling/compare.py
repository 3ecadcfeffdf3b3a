"""Which of several engines is faster, by how much, and how sure that is: ratios within the rounds of one run.

Two latencies measured one after the other differ by the hour as much as by the engine. Here all engines take turns in
random order, every ratio is taken within a round, and the interval comes from drawing rounds again (bootstrap). It
answers about this device and this moment; what to do about it is the gate's affair.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from edgekd.core.blobs import Blobs
from edgekd.core.comparison import Answer, ComparisonReport, Ratio
from edgekd.core.report import LatencyReport
from edgekd.core.rounds import median_interval, ratio_interval, round_medians
from edgekd.errors import EdgekdError, UserError
from edgekd.profiling.agent.loop import Enough, Samples
from edgekd.profiling.environment import fingerprint, machine
from edgekd.profiling.isolated import Engine, Extras, measure_isolated
from edgekd.profiling.measure import MeasurePlan
from edgekd.runtimes.session import RUNTIMES

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Contender:
    """An engine with the name of its model."""

    candidate: str
    engine: Engine

    @property
    def label(self) -> str:
        return f"{self.candidate}@{self.engine.runtime}"


def compare(
    contenders: list[Contender],
    blobs: Blobs,
    plan: MeasurePlan,
    *,
    seed: int = 0,
    limit_s: float | None = None,
    on_round: Callable[[float], None] = lambda done: None,
) -> ComparisonReport:
    """The ratio of each engine's time to that of the first.

    Args:
        contenders: Two or more; the first is the reference.
        blobs: Finds the bundles' files.
        plan: How long to measure; its precision is asked of every ratio.
        seed: Of the order within rounds, the inputs and the bootstrap.
        limit_s: Time for one request to a worker.
        on_round: As of `measure_isolated`.

    Raises:
        UserError: Fewer than two engines, or the same one twice.
        EdgekdError: What stands in the reference's place; without it there is nothing to compare with.
    """
    engines = {contender.label: contender.engine for contender in contenders}
    if len(engines) < 2 or len(engines) < len(contenders):
        raise UserError(
            f"There must be two different engines to compare, got {', '.join(c.label for c in contenders) or 'none'}.",
            hint="edgekd compare A B, or edgekd compare A --runtime onnxruntime --runtime openvino",
        )
    first, *others = contenders
    confidence = 1 - (1 - CONFIDENCE) / len(others)  # Bonferroni: all intervals hold together with 95 %
    found = measure_isolated(
        engines,
        blobs,
        plan,
        seed=seed,
        extras=Extras(energy_s=0.5) if limit_s is None else Extras(energy_s=0.5, limit_s=limit_s),
        enough=ratios_precise(first.label, plan.precision, confidence),
        on_round=on_round,
    )
    reference = found.outcomes[first.label]
    if isinstance(reference, EdgekdError):
        raise reference
    ratios = [_ratio(c, found.outcomes[c.label], first, reference, confidence, seed) for c in others]
    versions = {c.engine.runtime: str(RUNTIMES.get(c.engine.runtime).availability().version) for c in contenders}
    return ComparisonReport(
        device=fingerprint(machine(), versions),
        reference=first.label,
        reference_latency=reference,
        ratios=tuple(ratios),
        notes=tuple(found.notes),
    )


def ratios_precise(reference: str, precision: float, confidence: float) -> Enough:
    """The question of a comparison: is every ratio to `reference` known to within `precision`?"""

    def enough(samples: Mapping[str, Samples]) -> bool:
        if reference not in samples:
            return True
        base = round_medians(samples[reference].rounds_ns)
        for name, found in samples.items():
            if name != reference:
                ratios = [mine / theirs for mine, theirs in zip(round_medians(found.rounds_ns), base, strict=True)]
                interval = median_interval(ratios, confidence)
                if not interval.enough or interval.width > precision:
                    return False
        return True

    return enough


def _ratio(
    contender: Contender,
    outcome: LatencyReport | EdgekdError,
    first: Contender,
    reference: LatencyReport,
    confidence: float,
    seed: int,
) -> Ratio:
    name, runtime = contender.candidate, contender.engine.runtime
    if isinstance(outcome, EdgekdError):
        return Ratio(candidate=name, runtime=runtime, sentence=f"{contender.label} was not compared: {outcome.message}")
    if not outcome.took_turns_with(reference):
        text = f"{contender.label} was measured in another group than {first.label}, for want of memory: no ratio."
        return Ratio(candidate=name, runtime=runtime, sentence=text, latency=outcome)
    found = ratio_interval(outcome.rounds_ns, reference.rounds_ns, confidence, seed=seed)
    answer = answer_from_interval(found.low, found.high)
    return Ratio(
        candidate=name,
        runtime=runtime,
        ratio=found.middle,
        low=found.low,
        high=found.high,
        confidence=confidence,
        rounds=len(outcome.rounds_ns),
        answer=answer,
        sentence=sentence(contender.label, first.label, found.middle, found.low, found.high, answer),
        latency=outcome,
    )


def answer_from_interval(low: float, high: float) -> Answer:
    """What an interval of a ratio shows."""
    if high < 1:
        return "faster"
    return "slower" if low > 1 else "no difference shown"


def sentence(name: str, reference: str, ratio: float, low: float, high: float, answer: Answer) -> str:
    """The answer in words, with the interval in percent of the reference's time."""
    if answer == "no difference shown":
        bound = max(abs(low - 1), abs(high - 1))
        return f"No difference shown between {name} and {reference}: if there is one, it is within {bound:.1%}."
    ends = sorted(abs(end - 1) for end in (low, high))
    return f"{name} is {abs(ratio - 1):.1%} {answer} than {reference} ({ends[0]:.1%} to {ends[1]:.1%})."
