"""Chooses the engine that is deployed, and says of every other one why not.

The rule: of the engines that keep every limit but latency, the fastest one; within the noise of the measurement, the
more accurate one. INT8 has to earn its place: it is chosen only when it is measurably faster than its full-precision
twin and not worse than it, whatever the limits say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgekd.core.report import METRIC_NAMES, Budget, Choice, Evaluation, LatencyReport, PredictedLatency, ProfileReport
from edgekd.core.rounds import ratio_interval
from edgekd.core.text import mib, ms, percent, significant
from edgekd.errors import UserError
from edgekd.gate.budget import BETTER, loss_from_evaluations, loss_text
from edgekd.gate.candidates import FP32, INT8, Candidate, Row, limit_missed, rows_from_profile
from edgekd.gate.reasons import why_from_layers

FEWEST_ROUNDS = 20
"""Rounds in common from which engines are compared round by round."""


def choose(
    candidates: Sequence[Candidate],
    profile: ProfileReport,
    evaluations: Sequence[Evaluation],
    budget: Budget,
    *,
    reference: str,
    runtimes: Mapping[str, str],
) -> Choice:
    """The engine to deploy.

    Args:
        candidates: Everything that could be deployed.
        profile: Latencies of all of them; decisions are taken at its first thread count.
        evaluations: On the `select` split, per candidate and runtime; none at all where there is no data.
        budget: Limits.
        reference: Candidate that the drop is counted from (the teacher's FP32 engine).
        runtimes: The target's runtime for each precision it runs, `{"fp16": "tensorrt"}`; decides where the choice runs
            when nothing was measured.

    Raises:
        UserError: Nothing can be deployed: every candidate failed; the message lists the failures.
    """
    rows = rows_from_profile(candidates, profile, evaluations, budget, reference, runtimes)
    against = _left_out(candidates, profile, runtimes)
    limits = {row.name: limit_missed(row, budget, evaluated=bool(evaluations)) for row in rows}
    unfit = {row.name: unfit_int8(row, rows, limits, budget) for row in rows}
    deployable = [row for row in rows if unfit[row.name] is None]
    if not deployable:
        reasons = {**against, **{name: why for name, why in unfit.items() if why is not None}}
        listed = "; ".join(f"{name}: {why}" for name, why in reasons.items())
        raise UserError(f"No engine can be deployed ({listed or 'there are no candidates'}).")
    against |= {row.name: why for row in rows if (why := unfit[row.name] or limits[row.name])}
    keeping = [row for row in rows if row.name not in against]
    if not keeping:
        # An INT8 engine whose twin is better stays out even now: shipping it would help nobody.
        winner = min(deployable, key=lambda row: row.badness)
        reason = f"no engine keeps every limit; {winner.name} comes nearest ({against.pop(winner.name)})"
        return _choice(winner, reason, against, within_budget=False)
    winner = _fastest(keeping, budget) if profile.measured else min(keeping, key=_expected)
    against |= {row.name: _why_not(row, winner, rows) for row in keeping if row is not winner}
    return _choice(winner, _why(winner, keeping, budget), against, within_budget=_in_time(winner, budget))


def unfit_int8(row: Row, rows: Sequence[Row], limits: Mapping[str, str | None], budget: Budget) -> str | None:
    """Why an INT8 row must not be deployed beside its twins; None when it may, or is not INT8.

    Slower and faster are meant beyond the noise (`surely_faster`). Within it, the twin goes first unless it misses a
    limit that the INT8 engine keeps.
    """
    if row.candidate.precision != INT8:
        return None
    mine = _measured(row)
    if mine is None:
        return "INT8 was not measured on the target, so it is not known to be faster there than full precision"
    family = [other for other in rows if other.candidate.family == row.candidate.family]
    twins = [(twin, time) for twin in family if twin.candidate.precision != INT8 and (time := _measured(twin))]
    if not twins:
        return None
    twin, theirs = min(twins, key=lambda pair: pair[1].p50_ms)
    pair = f"{ms(mine.p50_ms)} against {ms(theirs.p50_ms)} of its {twin.candidate.precision} twin {twin.name}"
    if surely_faster(theirs, mine):
        return f"INT8 is slower: {pair}{_because(row, rows)}"
    if not surely_faster(mine, theirs) and limits[twin.name] is None:
        return f"INT8 is not measurably faster: {pair}{_because(row, rows)}"
    return _worse_than_twin(row, [twin for twin, _ in twins], budget)


def _worse_than_twin(row: Row, twins: Sequence[Row], budget: Budget) -> str | None:
    """Why an INT8 row is too inaccurate beside its best twin; where no drop was limited, clearly worse is too much."""
    best = max(twins, key=lambda twin: twin.value)
    if row.accuracy is None or best.accuracy is None:
        return None
    gap = loss_from_evaluations(row.accuracy, best.accuracy, budget)
    if gap is None or (gap.keeps(budget.max_drop) if budget.max_drop is not None else gap.low <= 0):
        return None
    return f"INT8 is worse than its {best.candidate.precision} twin {best.name}: {loss_text(gap, budget)}"


def _left_out(candidates: Sequence[Candidate], profile: ProfileReport, runtimes: Mapping[str, str]) -> dict[str, str]:
    """Why a candidate, or a candidate in a runtime, has no row."""
    names = {candidate.name: candidate for candidate in candidates}
    found = dict.fromkeys(names.keys() - {entry.candidate for entry in profile.entries}, "it was not profiled")
    for entry in profile.entries:
        if entry.candidate in names and profile.measured and entry.failure is not None:
            found[f"{entry.candidate}@{entry.runtime}"] = f"no latency: {entry.failure}"
        elif entry.candidate in names and not profile.measured:
            candidate = names[entry.candidate]
            if candidate.runtime is None and candidate.precision not in runtimes:
                found[entry.candidate] = f"no runtime of the target runs {candidate.precision}"
    return dict(sorted(found.items()))


def _measured(row: Row) -> LatencyReport | None:
    return row.latency if isinstance(row.latency, LatencyReport) else None


def _expected(row: Row) -> tuple[float, bool, float]:
    """Order by latency, measured or predicted, then by size; rows without a latency come last.

    A prediction does not tell runtimes apart, so of equal ones a graph, which several runtimes read, goes before the
    engine of a single one: a few bytes are no reason.
    """
    if row.latency is None:
        return (float("inf"), False, row.size_mib)
    return (row.latency.median_ms, row.candidate.runtime is not None, row.size_mib)


def surely_faster(one: LatencyReport, other: LatencyReport) -> bool:
    """Whether one engine's median is below the other's with 95 % confidence.

    Engines that took turns in the same rounds are compared by their ratio in each round, from which cancels what slowed
    the whole round; others by whether the intervals of their medians lie apart.
    """
    if one.took_turns_with(other) and len(one.rounds_ns) >= FEWEST_ROUNDS:
        return ratio_interval(one.rounds_ns, other.rounds_ns).high < 1
    return one.median_high_ms < other.median_low_ms


def _fastest(rows: Sequence[Row], budget: Budget) -> Row:
    """The most accurate of the rows that the fastest one is not surely faster than.

    Where that one has a twin among them that computes the same from packed weights, and no limit of the latency is
    given up for it, the twin: its file is smaller.
    """
    timed = [(row, latency) for row in rows if (latency := _measured(row)) is not None]
    fastest = min(timed, key=lambda pair: pair[1].p50_ms)[1]
    near = [(row, latency) for row, latency in timed if not surely_faster(fastest, latency)]
    best = max(near, key=lambda pair: (pair[0].value, -pair[1].p50_ms))[0]
    same = (
        row
        for row, _ in near
        if _packs(row, best)
        and row.value >= best.value
        and row.size_mib < best.size_mib
        and (_in_time(row, budget) or not _in_time(best, budget))
    )
    return min(same, key=lambda row: (row.runtime != best.runtime, row.size_mib), default=best)


def _packs(row: Row, other: Row) -> bool:
    """Whether a row holds the very weights of another as codes."""
    one, two = row.candidate, other.candidate
    return one.packed and not two.packed and (one.family, one.precision) == (two.family, two.precision)


def _why(winner: Row, keeping: Sequence[Row], budget: Budget) -> str:
    kept = [
        *([METRIC_NAMES[winner.accuracy.metric]] if winner.accuracy is not None else []),
        *(["size"] if budget.max_size_mib is not None else []),
    ]
    many = len(keeping) > 1
    rivals = f"one of {len(keeping)} engines" if many else "the one engine"
    measured = _measured(winner) is not None
    if kept and measured:
        rivals += f" that {'keep' if many else 'keeps'} {' and '.join(kept)}"
    latency = winner.latency
    if latency is None:
        return (
            f"{rivals} that may be chosen without a measurement, which INT8 may not; the smallest file was taken "
            f"({mib(winner.size_mib)}), as nothing was measured on the target"
        )
    if isinstance(latency, PredictedLatency):
        return (
            f"{rivals} that may be chosen without a measurement, which INT8 may not; nothing was measured on the "
            f"target, so the lowest predicted latency was taken ({ms(latency.median_ms)} predicted)"
        )
    low, high = significant(latency.median_low_ms), significant(latency.median_high_ms)
    fast = f"median {ms(latency.p50_ms)} (95 % interval {low} to {high})"
    place = ", the fastest of them" if many else ""
    if any(row.latency is not None and row.latency.median_ms < latency.p50_ms for row in keeping):
        better = "a smaller file of the same weights" if winner.candidate.packed else _better(winner)
        place = f", as fast as the fastest of them within the noise and {better}"
    return f"{rivals}{place}: {fast}; {_accuracy_text(winner, budget)}"


def _accuracy_text(row: Row, budget: Budget) -> str:
    if row.accuracy is None:
        return "accuracy was not evaluated"
    text = f"{percent(row.accuracy.value)} {METRIC_NAMES[row.accuracy.metric]} on {row.accuracy.n} images"
    return text if row.loss is None else f"{text}, {loss_text(row.loss, budget)}"


def slowdown(row: Row, rows: Sequence[Row]) -> str | None:
    """Why a low-precision row does not gain on its FP32 twin in the same runtime, with what its layers tell.

    `INT8 takes 1.4 times as long as FP32 in onnxruntime: 11 of 52 convolutions run in float ...`; None where there is
    no such twin, or where it is surely slower than the row.
    """
    mine, twin = _measured(row), twin_of(row, rows)
    theirs = None if twin is None else _measured(twin)
    ratio = ratio_to_twin(row, rows)
    if mine is None or twin is None or theirs is None or ratio is None or surely_faster(mine, theirs):
        return None
    name = row.candidate.precision.upper()
    told = why_from_layers(row.layers, twin.layers, int8=row.candidate.precision == INT8)
    if ratio < 1:
        return (
            f"{name} is not surely faster than FP32 in {row.runtime} ({significant(ratio, 2)} times its time): {told}"
        )
    return f"{name} takes {significant(ratio, 2)} times as long as FP32 in {row.runtime}: {told}"


def twin_of(row: Row, rows: Sequence[Row]) -> Row | None:
    """The FP32 row of the same model in the same runtime; None for FP32 itself, and where there is none."""
    wanted = (row.candidate.family, FP32, row.runtime)
    if row.candidate.precision == FP32:
        return None
    return next((r for r in rows if (r.candidate.family, r.candidate.precision, r.runtime) == wanted), None)


def ratio_to_twin(row: Row, rows: Sequence[Row]) -> float | None:
    """The row's time divided by its FP32 twin's: by rounds, where both took part in the same ones."""
    twin = twin_of(row, rows)
    one, other = _measured(row), None if twin is None else _measured(twin)
    if one is None or other is None:
        return None
    if one.took_turns_with(other) and len(one.rounds_ns) >= FEWEST_ROUNDS:
        return ratio_interval(one.rounds_ns, other.rounds_ns).middle
    return one.p50_ms / other.p50_ms


def _because(row: Row, rows: Sequence[Row]) -> str:
    told = slowdown(row, rows)
    return "" if told is None else f". {told}"


def _why_not(row: Row, winner: Row, rows: Sequence[Row]) -> str:
    """Why a row that keeps every limit was not taken."""
    if row.latency is None or winner.latency is None:
        return f"larger than the chosen one: {mib(row.size_mib)}"
    pair = f"{ms(row.latency.median_ms)} against {ms(winner.latency.median_ms)}"
    if _packs(winner, row) and row.latency.median_ms >= winner.latency.median_ms:
        return f"not faster ({pair}), and a larger file of the same weights: {mib(row.size_mib)}"
    if isinstance(row.latency, PredictedLatency) or isinstance(winner.latency, PredictedLatency):
        return f"predicted to be slower: {pair}"
    if surely_faster(winner.latency, row.latency):
        return f"slower: {pair}{_because(row, rows)}"
    if _packs(winner, row):
        return f"not measurably faster ({pair}), and a larger file of the same weights: {mib(row.size_mib)}"
    return f"not measurably faster ({pair}), and not {_better(winner)}{_because(row, rows)}"


def _better(row: Row) -> str:
    """What a row with a larger value of the metric is called."""
    return "more accurate" if row.accuracy is None else BETTER[row.accuracy.metric]


def _in_time(winner: Row, budget: Budget) -> bool:
    if budget.max_latency_ms is None:
        return True
    latency = _measured(winner)
    return latency is not None and latency.percentile_ms(budget.percentile) <= budget.max_latency_ms


def _choice(winner: Row, reason: str, against: Mapping[str, str], *, within_budget: bool) -> Choice:
    return Choice(
        candidate=winner.candidate.name,
        runtime=winner.runtime,
        precision=winner.candidate.precision,
        reason=reason,
        rejected=dict(against),
        within_budget=within_budget,
    )
