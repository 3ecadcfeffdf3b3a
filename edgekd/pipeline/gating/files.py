"""The baseline's file: written so that a re-run changes nothing and a change reviews well."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

from edgekd.core.blobs import disk_errors
from edgekd.gate.baseline import Baseline

NUMBERS = ("p50_ms", "median_low_ms", "median_high_ms")


def write_baseline(baseline: Baseline, path: Path) -> None:
    """Writes sorted keys, one a line, with latencies rounded to their noise.

    Raises:
        UserError: It cannot be written.
    """
    text = json.dumps(rounded(baseline).plain(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def rounded(baseline: Baseline) -> Baseline:
    """The baseline without digits that the noise makes up; the interval is rounded outwards, so that it still holds."""
    half = (baseline.median_high_ms - baseline.median_low_ms) / 2
    # A quiet machine still repeats itself to no better than about a thousandth.
    step = 10.0 ** math.floor(math.log10(max(half, 1e-3 * baseline.p50_ms)))
    places = max(0, -round(math.log10(step)))
    accuracy = None if baseline.accuracy is None else round(baseline.accuracy, 4)
    return baseline.model_copy(
        update={
            "p50_ms": round(round(baseline.p50_ms / step) * step, places),
            "median_low_ms": round(math.floor(baseline.median_low_ms / step + 1e-9) * step, places),
            "median_high_ms": round(math.ceil(baseline.median_high_ms / step - 1e-9) * step, places),
            "accuracy": accuracy,
            "size_mib": round(baseline.size_mib, 4),
        }
    )


def is_same_result(old: Baseline, new: Baseline) -> bool:
    """Whether the new result is the old one but for noise: the same bundle, device and setting, and medians that agree.

    Two medians agree when each lies in the other's interval.
    """
    fixed = ("device", "runtime", "precision", "threads", "metric", "accuracy", "size_mib", "bundle", "content")
    ours, theirs = rounded(old), rounded(new)
    if any(getattr(ours, name) != getattr(theirs, name) for name in fixed):
        return False
    return (
        ours.median_low_ms <= theirs.p50_ms <= ours.median_high_ms
        and theirs.median_low_ms <= ours.p50_ms <= theirs.median_high_ms
    )


def relative_bundle(bundle: Path, baseline_file: Path) -> str:
    """The bundle's path as the baseline's file notes it: relative to that file, with forward slashes."""
    return Path(os.path.relpath(bundle.resolve(), baseline_file.resolve().parent)).as_posix()
