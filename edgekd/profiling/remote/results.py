"""From what a board measured to the reports of this house: the same numbers, made by the same lines, as locally."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import JsonValue

from edgekd.core.packing import unpacked
from edgekd.core.report import CandidateLatency, LatencyReport, ProfileReport
from edgekd.core.rounds import median_interval, round_medians
from edgekd.core.stats import quantile, thinned
from edgekd.profiling.agent.facts import throttled, warnings_from_states
from edgekd.profiling.environment import fingerprint
from edgekd.profiling.measure import KEPT_SAMPLES, REGION
from edgekd.profiling.remote.request import Trial


def report_from_result(
    result: Mapping[str, Any], trials: Sequence[Trial], *, board: str, threads: tuple[int, ...]
) -> tuple[ProfileReport, list[str]]:
    """The report of a job, and sentences on what was done and what may have disturbed it.

    Args:
        result: As the agent wrote it; its entries are in the order of `trials`.
        trials: What was asked for.
        board: Its name or address.
        threads: CPU thread counts of the job.
    """
    # A thread count is one run; each run has its own circumstances.
    counts = list(dict.fromkeys(trial.threads for trial in trials))
    runs = dict(zip(counts, result["runs"], strict=True))
    entries, said = [], [f"On {board}: {sentence}." for sentence in result["clocks"]]
    for trial, found in zip(trials, result["entries"], strict=True):
        context: dict[str, JsonValue] = {
            "board": board,
            "machine": result["machine"],
            "measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(result["finished_s"])),
            **{key: runs[trial.threads].get(key) for key in ("before", "after", "precise")},
        }
        entries.append(_entry(trial, found, context))
    for run in runs.values():
        said += [text for text in _circumstances(run) if text not in said]
    versions = {name: str(result["runtimes"][name]["version"]) for name in {trial.runtime for trial in trials}}
    report = ProfileReport(
        device=fingerprint(result["machine"], versions), measured=True, threads=threads, entries=tuple(entries)
    )
    return report, said


def _circumstances(run: Mapping[str, Any]) -> list[str]:
    if not run:
        return []
    before, after = run["before"], run["after"]
    found = warnings_from_states(before, after, float(run["took_s"]))
    if (slowed := throttled(before, after)) is not None:
        found.append(slowed)
    if run["floating"] is not None:
        found.append(str(run["floating"]))
    if not run["precise"]:
        found.append(
            "The time was up before every median was known as precisely as asked; the intervals say how precisely."
        )
    return found


def _entry(trial: Trial, found: Mapping[str, Any], context: Mapping[str, JsonValue]) -> CandidateLatency:
    failure = found.get("failure")
    return CandidateLatency(
        candidate=trial.candidate,
        runtime=trial.runtime,
        precision=trial.precision,
        size_mib=trial.size_mib,
        latency=None if failure else _latency(trial, found, context),
        failure=None if failure is None else str(failure),
    )


def _latency(trial: Trial, found: Mapping[str, Any], context: Mapping[str, JsonValue]) -> LatencyReport:
    facts = dict(found["facts"])
    rounds_ns = unpacked(str(found["timings"]))
    samples = [value / 1e6 for values in rounds_ns for value in values]
    interval = median_interval([value / 1e6 for value in round_medians(rounds_ns)])
    p50, mean = statistics.median(samples), statistics.fmean(samples)
    return LatencyReport(
        origin="measured",
        runtime=trial.runtime,
        provider=str(facts.get("provider", trial.runtime)),
        precision=trial.precision,
        threads=trial.threads,
        batch=1,
        region=REGION,
        n=len(samples),
        warmup_n=int(found["warmup_n"]),
        mean_ms=mean,
        p50_ms=p50,
        p90_ms=quantile(samples, 0.90),
        p95_ms=quantile(samples, 0.95),
        p99_ms=quantile(samples, 0.99),
        min_ms=min(samples),
        max_ms=max(samples),
        std_ms=statistics.pstdev(samples),
        # The median of all samples can fall just outside the interval of the rounds' medians; it is an estimate of it.
        median_low_ms=min(interval.low, p50),
        median_high_ms=max(interval.high, p50),
        throughput_per_s=1000 / mean,
        samples_ms=thinned(samples, KEPT_SAMPLES),
        environment={
            "session": facts,
            "rounds": len(rounds_ns),
            "load_ms": float(found["load_ms"]),
            **context,
        },
    )
