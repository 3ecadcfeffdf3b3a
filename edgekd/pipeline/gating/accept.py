"""From a result to the baseline that later results are held to."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from edgekd.core.events import Reporter
from edgekd.core.report import LatencyReport
from edgekd.errors import DeviceUnavailable
from edgekd.gate.artifacts import baseline_of_run, read_run
from edgekd.gate.baseline import Baseline, baseline_from_results
from edgekd.pipeline.gating.files import is_same_result, relative_bundle
from edgekd.pipeline.gating.judge import gate_bundle
from edgekd.pipeline.gating.request import GateRequest
from edgekd.pipeline.gating.units import Opener
from edgekd.pipeline.single import workbench


def accepted_bundle(
    request: GateRequest,
    file: Path,
    reporter: Reporter,
    *,
    opener: Opener | None = None,
    clock_s: Callable[[], float] = time.monotonic,
) -> Baseline:
    """The baseline that a bundle sets, measured now.

    Args:
        request: The bundle and how to measure it; without limits.
        file: Where the baseline will be written, which the bundle's path is noted relative to.
        opener: Opens the engine; by default in a process of its own.
        clock_s: Decides when the time is up.

    Raises:
        DeviceUnavailable: The bundle is for another device than this one.
        EdgekdError: It does not open or run.
    """
    report = gate_bundle(request, reporter, opener=opener, clock_s=clock_s)
    if not isinstance(report.latency, LatencyReport):
        raise DeviceUnavailable(
            f"A baseline needs a measured latency, and {request.target} is for {report.device}, which is not here.",
            hint="run this on the device",
        )
    found = baseline_from_results(report.device, report.latency, report.accuracy, report.size_mib or 0.0)
    return _bound(found, request.target, file, report.content)


def accepted_run(out: Path, file: Path) -> Baseline:
    """The baseline that a finished run sets, bound to its bundle where that is still there.

    Raises:
        UserError: Not a finished run, or one that measured nothing.
    """
    found, bundle = baseline_of_run(read_run(out)), out / "bundle"
    if not bundle.is_dir():
        return found
    with workbench([("accepted", bundle)]) as bench:
        return _bound(found, bundle, file, bench.bundles["accepted"].content)


def successor(old: Baseline | None, new: Baseline, given: Mapping[str, float], reason: str | None) -> Baseline | None:
    """What to write in the place of `old`; None when the new result differs by noise alone and nothing was asked.

    Args:
        given: Tolerances that were asked for, by field; the others stay as they were.
        reason: Why it is accepted.
    """
    kept = (
        {}
        if old is None
        else {n: getattr(old, n) for n in ("latency_tolerance", "accuracy_tolerance", "size_tolerance")}
    )
    wanted = new.model_copy(update={**kept, **given, "reason": reason or ""})
    if old is None or not is_same_result(old, new):
        return wanted
    if all(getattr(old, name) == value for name, value in given.items()) and reason in (None, old.reason):
        return None
    return old.model_copy(update={**given, "reason": old.reason if reason is None else reason})


def _bound(baseline: Baseline, bundle: Path, file: Path, content: str | None) -> Baseline:
    return baseline.model_copy(update={"bundle": relative_bundle(bundle, file), "content": content})
