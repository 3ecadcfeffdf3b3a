"""From what was measured and answered to the rows of the table: each with a status, and the reason for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgekd.core.agreement import AnswersReport
from edgekd.core.benchmark import BenchmarkRow, RowStatus
from edgekd.core.plan import NodeReport
from edgekd.core.report import Budget, CandidateLatency, Choice, LatencyReport, ProfileReport
from edgekd.core.stats import paired_loss_interval
from edgekd.core.text import ms, significant
from edgekd.errors import EdgekdError, UserError
from edgekd.gate.candidates import Candidate, Row, limit_missed, rows_from_profile
from edgekd.gate.choose import choose, ratio_to_twin, slowdown, surely_faster, twin_of
from edgekd.pipeline.benchmark.draft import FP32, PYTORCH, Absent, Contest, Contestant
from edgekd.pipeline.benchmark.each import Outcomes

FAMILY = "model"
KERNELS_OF = "onnxruntime"
"""The runtime whose 8-bit kernels were compared with exact rounding when an INT8 graph was made."""
SATURATION_DB = 3.0
"""Less signal to noise with this CPU's 8-bit kernels than with exact rounding by so much is no matter of the last
bit."""
LEAST_DB = 3.0
"""Where there are no images to judge INT8 by: half as much noise as signal is wrong, as it is to a conversion."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Everything that a benchmark found out.

    Attributes:
        contest: What was compared.
        outcomes: Of its nodes.
        answers: By (contestant's name, runtime).
        profile: None where nothing could be measured.
        unmeasured: Why, then.
    """

    contest: Contest
    outcomes: Outcomes
    answers: Mapping[tuple[str, str], AnswersReport]
    profile: ProfileReport | None
    unmeasured: str
    threads: tuple[int, ...]
    budget: Budget


def choice_of(found: Findings) -> tuple[Choice | None, str]:
    """What the guard would deploy at the first thread count, or the reason why nothing may be."""
    if found.profile is None:
        return None, found.unmeasured
    evaluations = [report.evaluation for report in found.answers.values() if report.evaluation is not None]
    right = _right(found)
    entries = tuple(e for e in found.profile.entries if (e.candidate, e.runtime) in right or e.failure)
    try:
        return choose(
            _candidates(found), found.profile.model_copy(update={"entries": entries}), evaluations, found.budget,
            reference=_reference(found), runtimes={},
        ), ""  # fmt: skip
    except UserError as err:
        return None, err.message


def rows_of(found: Findings, choice: Choice | None) -> tuple[BenchmarkRow, ...]:
    """The table, by thread count and latency; what has no latency comes last, what is not installed at the end."""
    timed: list[BenchmarkRow] = []
    for threads in found.threads:
        timed += _at(threads, found, choice)
    lost = [row for contestant in found.contest.contestants for row in _lost(contestant, found)]
    absent = [_absent(entry) for entry in found.contest.absent]
    return (*timed, *lost, *absent)


def _at(threads: int, found: Findings, choice: Choice | None) -> list[BenchmarkRow]:
    """Rows of one thread count that have a latency."""
    if found.profile is None:
        return []
    at = found.profile.model_copy(update={"threads": (threads,)})
    evaluations = [report.evaluation for report in found.answers.values() if report.evaluation is not None]
    contestants = {contestant.name: contestant for contestant in found.contest.contestants}
    candidates = [*_candidates(found), Candidate(name=PYTORCH, precision=FP32, family=PYTORCH)]
    rows = rows_from_profile(candidates, at, evaluations, found.budget, _reference(found), {})
    limits = {row.name: limit_missed(row, found.budget, evaluated=bool(evaluations)) for row in rows}
    judged = {row.name: _judged(row, rows, limits, found) for row in rows}
    right = [row for row in rows if judged[row.name][0] == "measured"]
    fastest = min(right, key=lambda row: _time(row).p50_ms, default=None)
    made = []
    for row in sorted(rows, key=lambda row: _time(row).p50_ms):
        status, reason = judged[row.name]
        best, front = row is fastest, row in right and not any(_beats(other, row, found) for other in right)
        if choice is not None and threads == found.threads[0] and status not in ("reference", "wrong"):
            if (row.candidate.name, row.runtime) == (choice.candidate, choice.runtime):
                status, reason = "chosen", choice.reason
            else:
                reason = reason or choice.rejected.get(row.name, "")
        if status == "measured":
            status = "fastest" if best else "pareto" if front else "measured"
        made.append(_row(row, contestants[row.candidate.name], found, rows, status, reason, best=best, front=front))
    return made


def _judged(row: Row, rows: Sequence[Row], limits: Mapping[str, str | None], found: Findings) -> tuple[RowStatus, str]:
    """Status and reason of a row by itself; `measured` is a right engine that pays."""
    if row.candidate.name == PYTORCH:
        return "reference", "PyTorch itself, for reference: it is never deployed"
    answers = found.answers.get((row.candidate.name, row.runtime))
    wrong = _why_wrong(answers)
    if answers is None:
        return "failed", f"timed, but it could not be checked: {_failure_of_answers(row, found)}"
    if wrong:
        return "wrong", wrong
    if row.accuracy is not None and limits[row.name]:
        return "worse than FP32", f"{limits[row.name]}{_pairs(answers)}{_why_worse(row, found)}"
    twin = twin_of(row, rows)
    theirs = None if twin is None else twin.latency
    if isinstance(theirs, LatencyReport) and surely_faster(theirs, _time(row)):
        return "slower than FP32", f"{ms(_time(row).p50_ms)} against {ms(theirs.p50_ms)} of FP32 in {row.runtime}"
    return "measured", ""


def _why_wrong(answers: AnswersReport | None) -> str:
    if answers is None:
        return ""
    if not answers.finite:
        return "its outputs are NaN or infinite"
    found = answers.agreement
    if found is not None and found.within_tolerance is False:
        return (
            f"it does not compute what {found.reference} computes: outputs differ by up to "
            f"{significant(found.max_error, 2)} of their spread ({significant(found.sqnr_db)} dB), which is beyond "
            "rounding in its precision"
        )
    if found is not None and answers.evaluation is None and found.sqnr_db < LEAST_DB:
        return (
            f"its outputs have {significant(found.sqnr_db)} dB of signal to noise against {found.reference}, which is "
            "no loss of precision; give images to see what it loses: --data"
        )
    return ""


def _pairs(answers: AnswersReport) -> str:
    """The loss image by image, which says far more than two accuracies do, and whether it may be chance."""
    found = answers.agreement
    if found is None or found.lost is None or found.gained is None:
        return ""
    low, high = paired_loss_interval(found.lost, found.gained, answers.images)
    told = (
        f". Image by image, {found.lost} of {answers.images} are lost and {found.gained} gained against "
        f"{found.reference}: {100 * low:.1f} to {100 * high:.1f} points with 95 % confidence"
    )
    return f"{told}, so it may be chance; more images tell (--images)" if low <= 0 else told


def _why_worse(row: Row, found: Findings) -> str:
    """What an INT8 engine loses to this machine's kernels beside what rounding takes; both were measured."""
    node = next(c.node for c in found.contest.contestants if c.name == row.candidate.name)
    report = found.outcomes.get(node)
    metrics = report.metrics if isinstance(report, NodeReport) else {}
    exact, here = metrics.get("sqnr_db"), metrics.get("sqnr_here_db")
    if not isinstance(exact, int | float) or not isinstance(here, int | float) or row.runtime != KERNELS_OF:
        return ""
    numbers = (
        f"signal to noise {significant(exact)} dB with exact rounding, {significant(here)} dB with the kernels here"
    )
    if here < exact - SATURATION_DB:
        return f". The kernels here lose more than rounding does (without VNNI, 8-bit sums saturate): {numbers}"
    return f". Nothing is lost to this CPU's 8-bit kernels: {numbers}"


def _failure_of_answers(row: Row, found: Findings) -> str:
    contestant = next(c for c in found.contest.contestants if c.name == row.candidate.name)
    outcome = found.outcomes.get(contestant.answers(row.runtime))
    return outcome.message if isinstance(outcome, EdgekdError) else "there are no answers"


def _beats(other: Row, row: Row, found: Findings) -> bool:
    """Whether another right engine is at least as good in both, and better in one."""
    mine, theirs = (_time(row).p50_ms, -_quality(row, found)), (_time(other).p50_ms, -_quality(other, found))
    return other is not row and theirs[0] <= mine[0] and theirs[1] <= mine[1] and theirs != mine


def _quality(row: Row, found: Findings) -> float:
    """Accuracy, or what stands for it: the share answered alike; the reference agrees with itself."""
    if row.accuracy is not None:
        return row.accuracy.value
    answers = found.answers.get((row.candidate.name, row.runtime))
    return 1.0 if answers is None or answers.agreement is None else answers.agreement.alike


def _row(
    row: Row, contestant: Contestant, found: Findings, rows: Sequence[Row], status: RowStatus, reason: str,
    *, best: bool, front: bool,
) -> BenchmarkRow:  # fmt: skip
    latency, answers = _time(row), found.answers.get((row.candidate.name, row.runtime))
    agreement = answers.agreement if answers is not None else None
    metric = agreement.alike_means if agreement is not None else None
    why = slowdown(row, rows) or ""
    return BenchmarkRow(
        engine=row.candidate.name,
        runtime=row.runtime,
        precision=contestant.precision,
        scheme=contestant.scheme,
        threads=latency.threads,
        size_mib=row.size_mib,
        p50_ms=latency.p50_ms,
        median_low_ms=latency.median_low_ms,
        median_high_ms=latency.median_high_ms,
        p99_ms=latency.p99_ms,
        memory_peak_mib=latency.memory_peak_mib,
        against_fp32=ratio_to_twin(row, rows),
        metric=row.accuracy.metric if row.accuracy else "agreement" if metric == "top1" else metric,
        value=row.accuracy.value if row.accuracy else agreement.alike if agreement else None,
        value_low=row.accuracy.low if row.accuracy else None,
        value_high=row.accuracy.high if row.accuracy else None,
        images=answers.images if answers else None,
        sqnr_db=agreement.sqnr_db if agreement else None,
        max_error=agreement.max_error if agreement else None,
        status=status,
        fastest=best,
        pareto=front,
        reason=reason.replace(f". {why}", "") if why else reason,
        inconclusive=latency.inconclusive or "",
        why=why,
    )


def _lost(contestant: Contestant, found: Findings) -> list[BenchmarkRow]:
    """A row for each runtime in which the contestant has no latency: it was not made, or failed while it ran."""
    timed = {(e.candidate, e.runtime) for e in found.profile.entries if e.latency} if found.profile else set()
    made = found.outcomes.get(contestant.node)
    rows = []
    for runtime in contestant.runtimes:
        if (contestant.name, runtime) in timed:
            continue
        entry = _entry(found.profile, contestant.name, runtime)
        answered = found.outcomes.get(contestant.answers(runtime))
        if isinstance(made, EdgekdError):
            reason = f"it could not be made: {_told(made)}"
        elif isinstance(answered, EdgekdError):
            reason = _told(answered)
        else:
            reason = (entry.failure if entry is not None else None) or found.unmeasured or "it was not measured"
        rows.append(
            BenchmarkRow(
                engine=contestant.name,
                runtime=runtime,
                precision=contestant.precision,
                scheme=contestant.scheme,
                size_mib=entry.size_mib if entry is not None else None,
                status="failed",
                reason=reason,
            )
        )
    return rows


def _told(err: EdgekdError) -> str:
    return err.message if err.hint is None else f"{err.message} ({err.hint})"


def _absent(entry: Absent) -> BenchmarkRow:
    status: RowStatus = "not installed" if entry.installable else "not supported"
    return BenchmarkRow(runtime=entry.runtime, status=status, reason=entry.reason)


def _entry(profile: ProfileReport | None, name: str, runtime: str) -> CandidateLatency | None:
    entries = profile.entries if profile is not None else ()
    return next((e for e in entries if (e.candidate, e.runtime) == (name, runtime)), None)


def _candidates(found: Findings) -> list[Candidate]:
    """Those that may be deployed, all precisions of one model."""
    return [
        Candidate(name=c.name, precision=c.precision, family=FAMILY)
        for c in found.contest.contestants
        if c.name != PYTORCH
    ]


def _reference(found: Findings) -> str:
    """The engine that losses are counted from."""
    return FP32 if found.contest.reference is None else found.contest.reference[0].name


def _right(found: Findings) -> set[tuple[str, str]]:
    """(engine, runtime) of those whose answers were checked and are those of the function."""
    return {key for key, answers in found.answers.items() if not _why_wrong(answers)}


def _time(row: Row) -> LatencyReport:
    """The latency of a row that has one."""
    if not isinstance(row.latency, LatencyReport):
        raise EdgekdError(f"{row.name} has no measured latency.")
    return row.latency
