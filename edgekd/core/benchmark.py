"""The table of a benchmark as plain data: one model in every runtime, precision and thread count, and its outcome.

A row stands for everything that was asked for, also for what failed or is not installed: a table that leaves those out
looks as if they had been tried. Rows repeat the numbers that people compare; all others are in `profile`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from edgekd.core.agreement import AnswersReport
from edgekd.core.report import Choice, Metric, ProfileReport
from edgekd.core.schema import Schema

BENCHMARK_SCHEMA_VERSION = 1

RowStatus = Literal[
    "chosen",
    "fastest",
    "pareto",
    "measured",
    "reference",
    "slower than FP32",
    "worse than FP32",
    "wrong",
    "failed",
    "not installed",
    "not supported",
]
"""What a row came to. `chosen`: what the guard would deploy. `fastest`: of the right engines at this thread count.
`pareto`: no right engine is both faster and more accurate (or nearer). `measured`: right, and beaten in both.
`reference`: PyTorch itself, which is never deployed. `slower than FP32`: surely slower than FP32 in the same runtime.
`worse than FP32`: loses more than the limit. `wrong`: does not compute the function. The last three have no numbers."""


class BenchmarkRow(Schema):
    """One engine in one runtime at one thread count, or why there is none.

    Attributes:
        engine: Name of the engine; empty for a runtime that nothing was tried in.
        precision: `fp32`, `fp16` or `int8`; empty as above.
        scheme: Form of INT8.
        threads: None where nothing was measured.
        size_mib: Of the model's files.
        median_low_ms: Lower end of the 95 % interval of the median.
        median_high_ms: Upper end.
        memory_peak_mib: Highest resident memory of the engine's own process above what the loaded library takes.
        against_fp32: Its time divided by that of the FP32 engine in the same runtime at the same thread count, the
            median over rounds that both took part in; below 1 is faster.
        metric: What `value` is.
        value: Accuracy with labels, else the share of images answered as the reference does, in [0, 1].
        value_low: Lower end of its 95 % interval; None on images that say nothing of accuracy.
        value_high: Upper end.
        images: That `value` was counted on.
        sqnr_db: Signal to noise of the worst output against the reference's.
        max_error: Largest difference of an output to the reference's, in standard deviations of it.
        fastest: Of the right engines at this thread count.
        pareto: See `RowStatus`.
        reason: Why it has this status; for failures what to do.
        inconclusive: Why its latency is known less well than asked; empty when it is.
        why: For low precision that does not pay: what its layers say, counted and timed.
    """

    engine: str = ""
    runtime: str
    precision: str = ""
    scheme: str = ""
    threads: int | None = None
    size_mib: float | None = None
    p50_ms: float | None = None
    median_low_ms: float | None = None
    median_high_ms: float | None = None
    p99_ms: float | None = None
    memory_peak_mib: float | None = None
    against_fp32: float | None = None
    metric: Metric | None = None
    value: float | None = Field(default=None, ge=0, le=1)
    value_low: float | None = None
    value_high: float | None = None
    images: int | None = None
    sqnr_db: float | None = None
    max_error: float | None = None
    status: RowStatus
    fastest: bool = False
    pareto: bool = False
    reason: str = ""
    inconclusive: str = ""
    why: str = ""


class BenchmarkReport(Schema):
    """A finished benchmark.

    Attributes:
        model: The file, and what it is.
        target: Name of the device.
        device: Fingerprint of the machine that measured, runtime versions included.
        data: What answers were compared on.
        reference: `candidate@runtime` that answers were compared with; empty without one.
        max_drop: How much accuracy an engine may lose.
        rows: By thread count and latency; what has no latency comes last.
        choice: What the guard would deploy at the first thread count, and why not each other engine; None when no
            engine may be deployed, for the reason in `no_choice`.
        decisions: What was substituted, left out or assumed.
        notes: What may have disturbed the measurement.
        profile: The measurement itself; None when nothing could be measured.
        answers: What each engine answered.
    """

    schema_version: int = BENCHMARK_SCHEMA_VERSION
    model: str
    target: str
    device: str
    data: str
    reference: str = ""
    threads: tuple[int, ...]
    max_drop: float
    seed: int
    versions: dict[str, str] = Field(default_factory=dict)
    rows: tuple[BenchmarkRow, ...]
    choice: Choice | None = None
    no_choice: str = ""
    decisions: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    profile: ProfileReport | None = None
    answers: tuple[AnswersReport, ...] = ()
