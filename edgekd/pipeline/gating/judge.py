"""The verdict on a bundle that is measured now, against limits, accepted numbers, or an accepted bundle."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from edgekd.core.events import Reporter
from edgekd.core.report import Check, Evaluation, EvaluationReport, LatencyReport, ProfileReport
from edgekd.errors import Inconclusive, UserError
from edgekd.gate.baseline import LATENCY_CHECK, Baseline, incomparable, incomparable_check, other_checks, tolerating
from edgekd.gate.questions import (
    BASELINE,
    CANDIDATE,
    LimitQuestion,
    PrecisionQuestion,
    Question,
    RatioQuestion,
    Unit,
)
from edgekd.gate.report import GateReport
from edgekd.gate.trial import Trial, latency_from_units, run_trial
from edgekd.gate.verdict import LATENCY, accuracy_check, judge, size_check, verdict_from_checks
from edgekd.pipeline.gating.board import board_bench
from edgekd.pipeline.gating.device import host_fingerprint, runtime_here, runtime_of, target_of
from edgekd.pipeline.gating.request import DEFAULT_REGRESSION, GateRequest
from edgekd.pipeline.gating.units import EngineUnits, IsolatedOpener, Opener
from edgekd.pipeline.single import Workbench, data_for, workbench
from edgekd.profiling.agent.facts import throttled
from edgekd.profiling.environment import state, warnings_from_states
from edgekd.profiling.isolated import Engine
from edgekd.profiling.stage import MODEL_FILE
from edgekd.targets.schema import Target

LIMIT_TIME_S = 5.0
"""Milliseconds move with what else the machine does, ratios hardly: a limit in ms is not judged before."""
ENOUGH = 0.01
"""Where nothing is limited, the median is measured until it is known this well, as a share of it."""


@dataclass(frozen=True, kw_only=True)
class _Case:
    """A request with everything opened.

    Attributes:
        notes: Grows on the way.
    """

    request: GateRequest
    bench: Workbench
    target: Target
    device: str
    notes: list[str]
    reporter: Reporter

    @property
    def against_bundle(self) -> bool:
        return BASELINE in self.bench.bundles

    @property
    def size_mib(self) -> float:
        bundle = self.bench.bundles[CANDIDATE]
        return float(self.bench.store.blobs.path(bundle.file(MODEL_FILE[bundle.kind])).stat().st_size / 2**20)


def gate_bundle(
    request: GateRequest,
    reporter: Reporter,
    *,
    opener: Opener | None = None,
    clock_s: Callable[[], float] = time.monotonic,
) -> GateReport:
    """Measures the bundle, and the baseline's in turns with it where there is one, and judges.

    Args:
        request: What to judge, by what.
        reporter: Hears of the progress.
        opener: Opens the engines; by default in processes of their own.
        clock_s: Decides when the time is up.

    Raises:
        EdgekdError: A bundle that does not open or run; nothing was judged then.
    """
    notes: list[str] = []
    accepted = request.baseline_bundle or _accepted_bundle(request, notes)
    _require_reference(request, accepted)
    models = [(CANDIDATE, request.target), *([(BASELINE, accepted)] if accepted is not None else [])]
    with workbench(models) as bench:
        target = target_of(bench.cards[CANDIDATE])
        if request.board is not None:
            return _on_board(request, bench, target, notes, reporter)
        device = host_fingerprint(target) if target.measured_here else target.name
        case = _Case(request=request, bench=bench, target=target, device=device, notes=notes, reporter=reporter)
        return _measured(case, opener or IsolatedOpener(), clock_s) if target.measured_here else _elsewhere(case)


def _accepted_bundle(request: GateRequest, notes: list[str]) -> Path | None:
    """The bundle that the baseline's file points to, if it is there and still the one that was accepted."""
    baseline = request.baseline
    if baseline is None or baseline.bundle is None or request.baseline_path is None:
        return None
    path = request.baseline_path.parent / baseline.bundle
    if not path.exists():
        notes.append(f"The baseline's bundle {path} is not here, so only its numbers are compared with.")
        return None
    with workbench([(BASELINE, path)]) as bench:
        if bench.bundles[BASELINE].content != baseline.content:
            notes.append(
                f"{path} is not the bundle that the baseline was set with; only its numbers are compared with."
            )
            return None
    return path


def _measured(case: _Case, opener: Opener, clock_s: Callable[[], float]) -> GateReport:
    request = case.request
    engines = {
        name: Engine(bundle=bundle, runtime=runtime_of(bundle, case.target, request.runtime), threads=request.threads)
        for name, bundle in case.bench.bundles.items()
    }
    before = state()
    units = EngineUnits(engines, case.bench.store.blobs, seed=request.seed or 0, opener=opener, clock_s=clock_s)
    with closing(units):
        trial = _tried(case, units, clock_s)
    after = state()
    heat = throttled(before, after)
    if heat is not None:
        raise Inconclusive(f"{heat} Nothing was judged.", hint="cool it, lower its clocks, or measure for less long")
    case.notes.extend(warnings_from_states(before, after, trial.seconds))
    return _report(case, trial, units.reports)


def _on_board(
    request: GateRequest, bench: Workbench, target: Target, notes: list[str], reporter: Reporter
) -> GateReport:
    """The same on a board: its units, its clock, its fingerprint."""
    assert request.board is not None
    place = board_bench(
        request.board,
        bench,
        target=target if bench.cards[CANDIDATE] is not None else None,
        asked=request.runtime,
        threads=request.threads,
        seed=request.seed or 0,
        reporter=reporter,
    )
    case = _Case(request=request, bench=bench, target=target, device=place.device, notes=notes, reporter=reporter)
    units = place.units(reporter, request.time_limit_s)
    trial = _tried(case, units, units.clock_s)
    case.notes.extend(units.notes)
    return _report(case, trial, units.reports)


def _tried(case: _Case, units: Callable[[], Unit], clock_s: Callable[[], float]) -> Trial:
    """Units until the questions are answered or the time is up."""
    questions, task = _questions(case), "gate, percent of the time"
    limited = any(isinstance(question, LimitQuestion) for question in questions)
    trial = run_trial(
        units,
        questions,
        time_limit_s=case.request.time_limit_s,
        min_time_s=LIMIT_TIME_S if limited else 0.0,
        clock_s=clock_s,
        on_unit=lambda done: case.reporter.progress(task, round(100 * done), 100),
    )
    case.reporter.progress(task, 100, 100)
    return trial


def _questions(case: _Case) -> list[Question]:
    request, budget, baseline = case.request, case.request.budget, case.request.baseline
    found: list[Question] = []
    if budget.max_latency_ms is not None:
        found.append(LimitQuestion(LATENCY, budget.max_latency_ms, budget.percentile))
    if case.against_bundle:
        own = DEFAULT_REGRESSION if baseline is None else baseline.latency_tolerance
        found.append(RatioQuestion(own if request.max_regression is None else request.max_regression))
    elif baseline is not None and incomparable(baseline, case.device, request.threads) is None:
        found.append(_numbers_question(tolerating(baseline, max_regression=request.max_regression)))
    return found or [PrecisionQuestion(ENOUGH)]


def _numbers_question(baseline: Baseline) -> LimitQuestion:
    """The baseline's median has an interval of its own: a FAIL takes a median above all of it, a PASS one below it."""
    factor = 1 + baseline.latency_tolerance
    return LimitQuestion(
        LATENCY_CHECK,
        baseline.p50_ms * factor,
        50,
        fail_above_ms=baseline.median_high_ms * factor,
        about=f" (the baseline's median of {baseline.p50_ms:.4g} ms and {100 * baseline.latency_tolerance:g} %)",
    )


def _report(case: _Case, trial: Trial, reports: Mapping[str, LatencyReport]) -> GateReport:
    """The verdict of a trial.

    Args:
        reports: Of one unit, by engine.
    """
    request, baseline = case.request, case.request.baseline
    latencies = {name: latency_from_units(trial.units, name, report) for name, report in reports.items()}
    checks = [check for check in trial.checks if check.name != "precision"]
    if baseline is not None and not case.against_bundle:
        reason = incomparable(baseline, case.device, request.threads)
        if reason is not None:
            checks.append(incomparable_check(baseline, reason))
    accuracy = _evaluated(case, CANDIDATE)
    verdict = verdict_from_checks([*checks, *_other_checks(case, accuracy)], request.budget)
    latency = latencies[CANDIDATE]
    return GateReport.of(verdict, subject=str(request.target), device=case.device, latency=latency).model_copy(
        update={
            "content": case.bench.bundles[CANDIDATE].content,
            "accuracy": accuracy,
            "size_mib": case.size_mib,
            "baseline_latency": latencies.get(BASELINE),
            "seconds": round(trial.seconds, 2),
            "notes": tuple(case.notes),
        }
    )


def _elsewhere(case: _Case) -> GateReport:
    """The bundle is for a device that is not this machine: what its card predicts is all there is."""
    request = case.request
    profile, _ = case.bench.run(
        [CANDIDATE], "profile", {}, "candidates", ProfileReport,
        resources={"target": case.target}, reporter=case.reporter,
    )  # fmt: skip
    latency = profile.entries[0].known
    first = judge(
        device=case.device,
        latency=latency,
        accuracy=None,
        reference=None,
        size_mib=case.size_mib,
        budget=request.budget.model_copy(update={"max_drop": None, "max_size_mib": None}),
        allow_predicted=request.allow_predicted,
    )
    checks = [*first.checks]
    if request.baseline is not None or case.against_bundle:
        text = f"not measured: this machine is not {case.device}"
        checks.append(Check(name=LATENCY_CHECK, status="INCONCLUSIVE", reason=text))
    accuracy = _evaluated(case, CANDIDATE)
    verdict = verdict_from_checks([*checks, *_other_checks(case, accuracy)], request.budget)
    return GateReport.of(
        verdict, subject=str(request.target), device=case.device, latency=latency, notes=tuple(case.notes)
    )


def _other_checks(case: _Case, accuracy: Evaluation | None) -> list[Check]:
    """Accuracy and size: against the budget, the accepted bundle, and the baseline's numbers."""
    budget, baseline = case.request.budget, case.request.baseline
    checks: list[Check] = []
    if budget.max_drop is not None and (case.against_bundle or baseline is None or baseline.accuracy is None):
        reference = _evaluated(case, BASELINE) if case.against_bundle else None
        check = accuracy_check(accuracy, reference, budget, budget.max_drop)
        if accuracy is None:
            check = check.model_copy(update={"reason": "accuracy was not evaluated: add --data"})
        checks.append(check)
    if budget.max_size_mib is not None:
        checks.append(size_check(case.size_mib, budget.max_size_mib))
    if baseline is not None:
        checks += other_checks(_comparable(case, baseline, accuracy), accuracy, case.size_mib)
    return checks


def _comparable(case: _Case, baseline: Baseline, accuracy: Evaluation | None) -> Baseline:
    """The baseline with the drop that was asked for; without its accuracy where nobody asked and there is no data."""
    budget = case.request.budget
    if accuracy is None and budget.max_drop is None and baseline.accuracy is not None:
        case.notes.append("Accuracy is not compared with the baseline: no --data was given.")
        return baseline.model_copy(update={"metric": None, "accuracy": None})
    scale = baseline.accuracy if budget.drop_type == "relative" and baseline.accuracy is not None else 1.0
    return tolerating(baseline, max_drop=None if budget.max_drop is None else budget.max_drop * scale)


def _require_reference(request: GateRequest, accepted: Path | None) -> None:
    """A drop needs something to count from; better said before a minute of measuring than after it.

    Raises:
        UserError: There is data, but neither an accepted bundle nor an accepted accuracy.
    """
    known = accepted is not None or (request.baseline is not None and request.baseline.accuracy is not None)
    if request.budget.max_drop is not None and request.data is not None and not known:
        raise UserError(
            "--max-drop counts from an accepted accuracy, and none was given.",
            hint="add --baseline-bundle, or a --baseline that has one; the folder of a run knows its teacher",
        )


def _evaluated(case: _Case, name: str) -> Evaluation | None:
    """The accuracy of a bundle on the test split; None where no data was given."""
    request = case.request
    if request.data is None:
        return None
    bundle = case.bench.bundles[name]
    dataset, warning = data_for(bundle, case.bench.origins[name], request.data, request.seed)
    if warning:
        case.notes.append(f"{name}: {warning}")
    if request.board is None:
        runtime = runtime_of(bundle, case.target, request.runtime)
    else:
        runtime = runtime_here(bundle, case.target, request.runtime)
        case.notes.append(f"{name}: accuracy was counted on this machine, in {runtime}.")
    report, _ = case.bench.run(
        [name], "evaluate", {"candidate": name, "runtimes": [runtime], "splits": ["test"]}, "model", EvaluationReport,
        resources={"data": dataset}, reporter=case.reporter,
    )  # fmt: skip
    found: Sequence[Evaluation] = report.evaluations
    return found[0] if found else None
