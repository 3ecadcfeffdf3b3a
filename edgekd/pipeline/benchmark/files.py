"""What a benchmark writes, the place it may write it to, and the exit code that goes with it."""

from __future__ import annotations

import json
from pathlib import Path

from edgekd.core.benchmark import BenchmarkReport
from edgekd.core.blobs import write_whole
from edgekd.errors import DeviceUnavailable, GateFailed, Inconclusive, UserError

BENCHMARK_FILE = "benchmark.json"
PAGE_FILE = "report.html"


def exit_code_of(report: BenchmarkReport) -> int:
    """0 measured as precisely as asked, 5 less precisely, 1 when no engine is right, 3 without a latency."""
    timed = [row for row in report.rows if row.p50_ms is not None and row.status != "reference"]
    if not timed:
        return DeviceUnavailable.exit_code
    if all(row.status in ("wrong", "failed") for row in timed):
        return GateFailed.exit_code
    return Inconclusive.exit_code if any(row.inconclusive for row in timed) else 0


def write_json(report: BenchmarkReport, path: Path) -> None:
    """Writes the report without the thinned samples, which its packed rounds hold in full.

    Raises:
        UserError: The disk is full or the folder cannot be written.
    """
    write_whole(path, (json.dumps(slim(report).plain(), indent=1) + "\n").encode())


def slim(report: BenchmarkReport) -> BenchmarkReport:
    """The report without single timings by call."""
    if report.profile is None:
        return report
    entries = tuple(
        entry
        if entry.latency is None
        else entry.model_copy(update={"latency": entry.latency.model_copy(update={"samples_ms": ()})})
        for entry in report.profile.entries
    )
    return report.model_copy(update={"profile": report.profile.model_copy(update={"entries": entries})})


def check_benchmark_output(out: Path) -> None:
    """Refuses a folder whose files of these names no benchmark wrote; changes nothing.

    Raises:
        UserError: There are such files, or `out` is a file.
    """
    if out.is_file():
        raise UserError(f"{out} is a file, and the results are a folder.", hint="choose another folder with -o")
    taken = [name for name in (BENCHMARK_FILE, PAGE_FILE) if (out / name).exists()]
    if taken and not _is_benchmark(out / BENCHMARK_FILE):
        raise UserError(
            f"{out / taken[0]} was not written by a benchmark; it is left as it is.",
            hint="choose another folder with -o",
        )


def _is_benchmark(path: Path) -> bool:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and {"schema_version", "rows", "reference"} <= found.keys()
