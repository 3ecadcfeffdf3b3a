"""From what a board measured to the reports of this house: the same numbers, made by the same lines, as locally."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import JsonValue

from edgekd.core.layers import LayerReport, layer_report
from edgekd.core.packing import unpacked
from edgekd.core.report import CandidateLatency, Energy, LatencyReport, ProfileReport
from edgekd.errors import DeviceUnavailable, Inconclusive
from edgekd.profiling.agent.facts import throttled, warnings_from_states
from edgekd.profiling.agent.loop import Samples
from edgekd.profiling.environment import fingerprint
from edgekd.profiling.measure import device_time, latency_report, new_turns
from edgekd.profiling.remote.request import BoardPlan, Trial
from edgekd.runtimes.onnxruntime_layers import layers_from_events
from edgekd.runtimes.openvino import COUNTERS, layers_from_counters
from edgekd.runtimes.session import computes_in_int8
from edgekd.runtimes.tensorrt_layers import layers_from_information


def report_from_result(
    result: Mapping[str, Any], trials: Sequence[Trial], *, board: str, plan: BoardPlan
) -> tuple[ProfileReport, list[str]]:
    """The report of a job, and sentences on what was done and what may have disturbed it.

    Args:
        result: As the agent wrote it; its entries are in the order of `trials`.
        trials: What was asked for.
        board: Its name or address.
        plan: How it was measured.
    """
    entries, said = [], [f"On {board}: {sentence}." for sentence in result["clocks"]]
    runs = result["runs"]
    turns = [new_turns() for _ in runs]
    if len(runs) > result["groups"]:
        said.append(
            f"The memory of {board} did not suffice for all engines at once: they were measured in {len(runs)} runs, "
            "and only engines of one run took turns with each other."
        )
    for trial, found in zip(trials, result["entries"], strict=True):
        run = runs[found["run"]] if "run" in found else {}
        context: dict[str, JsonValue] = {
            "board": board,
            "machine": result["machine"],
            "measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(result["finished_s"])),
            **{key: run.get(key) for key in ("before", "after")},
        }
        entry = _entry(trial, found, run, context, plan.precision)
        if entry.latency is not None:
            took = entry.latency.model_copy(update={"turns": turns[found["run"]]})
            entry = entry.model_copy(update={"latency": took})
        entries.append(entry)
        said += [f"{trial.candidate} in {trial.runtime}: {why}" for why in found.get("failed", ())]
    for run in runs:
        said += [text for text in _circumstances(run) if text not in said]
    device = board_fingerprint(result, plan.runtimes)
    report = ProfileReport(device=device, measured=True, threads=plan.threads, entries=tuple(entries), board=board)
    return report, said


def board_fingerprint(known: Mapping[str, Any], runtimes: Sequence[str]) -> str:
    """One line that two measurements on boards must share before their milliseconds may be compared.

    Args:
        known: `machine` and `runtimes`, as the agent says them.
        runtimes: That were asked for; empty for all that the board has.
    """
    offers: Mapping[str, Any] = known["runtimes"]
    there = [name for name in offers if offers[name].get("ok", True) and name in (runtimes or offers)]
    return fingerprint(known["machine"], {name: str(offers[name]["version"]) for name in there})


def _circumstances(run: Mapping[str, Any]) -> list[str]:
    return warnings_from_states(run["before"], run["after"], float(run["took_s"])) if run else []


def _entry(
    trial: Trial, found: Mapping[str, Any], run: Mapping[str, Any], context: Mapping[str, JsonValue], asked: float
) -> CandidateLatency:
    failure, code = found.get("failure"), DeviceUnavailable.exit_code
    if failure is None and (heat := throttled(run["before"], run["after"])) is not None:
        failure, code = f"{heat} Nothing is recorded.", Inconclusive.exit_code
    return CandidateLatency(
        candidate=trial.candidate,
        runtime=trial.runtime,
        precision=trial.precision,
        size_mib=trial.size_mib,
        latency=None if failure else _latency(trial, found, run, context, asked),
        failure=None if failure is None else str(failure),
        failure_code=None if failure is None else code,
        layers=None if failure else _layers(trial, found),
    )


def _layers(trial: Trial, found: Mapping[str, Any]) -> LayerReport | None:
    """The layers of an engine; None where they were not asked for, or its runtime does not tell them."""
    told = found.get("layers")
    if told is None:
        return None
    provider = str(found["facts"]["provider"])
    if "events" in told:
        layers = layers_from_events(told["events"], int(told["calls"]))
        source = "ONNX Runtime profile"
    elif "counters" in told:
        layers, source = layers_from_counters(told["counters"], provider), COUNTERS
    else:
        layers = layers_from_information(told["information"], told["times_ms"], provider)
        source = "TensorRT's inspector and profiler"
    quantized = computes_in_int8(trial.bundle)
    return layer_report(layers, source=source, calls=int(told["calls"]), provider=provider, quantized=quantized)


def _latency(
    trial: Trial, found: Mapping[str, Any], run: Mapping[str, Any], context: Mapping[str, JsonValue], asked: float
) -> LatencyReport:
    samples = Samples(warmup_n=int(found["warmup_n"]), rounds_ns=unpacked(str(found["timings"])))
    facts = dict(found["facts"])
    load_ms = float(facts.pop("load_ms"))
    report = latency_report(
        samples,
        runtime=trial.runtime,
        precision=trial.precision,
        threads=trial.threads,
        batch=1,
        session=facts,
        asked=asked,
    )
    reasons = " ".join(text for text in (report.inconclusive, run["floating"]) if text) or None
    return report.model_copy(
        update={
            "environment": {**report.environment, **context},
            "inconclusive": reasons,
            "load_ms": load_ms,
            "compute_only": device_time(unpacked(str(found["compute"]))) if "compute" in found else None,
            "energy": None if found["energy"] is None else Energy.parse(found["energy"], trial.candidate),
        }
    )
