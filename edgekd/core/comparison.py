"""The answer of a comparison as plain data: ratios to the first engine, each with an interval and a sentence."""

from __future__ import annotations

from typing import Literal

from edgekd.core.report import REPORT_SCHEMA_VERSION, LatencyReport
from edgekd.core.schema import Schema

Answer = Literal["faster", "slower", "no difference shown"]


class Ratio(Schema):
    """One engine against the first one, measured in the same rounds.

    Attributes:
        candidate: The model.
        runtime: Registry name.
        ratio: Median over rounds of its time divided by the reference's time in the same round; below 1 is faster.
        low: Lower end of the interval of the ratio.
        high: Upper end.
        confidence: Of the interval; raised where several engines are compared, so that all intervals hold together.
        rounds: That both took part in.
        answer: What the interval shows; an interval that holds 1 shows no difference, and does not show that there is
            none.
        sentence: The same in words.
    """

    candidate: str
    runtime: str
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    confidence: float | None = None
    rounds: int = 0
    answer: Answer | None = None
    sentence: str
    latency: LatencyReport | None = None


class ComparisonReport(Schema):
    """Engines measured against each other in one run.

    Attributes:
        device: Fingerprint of the device.
        reference: The first engine, `candidate@runtime`, with its own latency.
        ratios: Of the others, in the order given; an engine that failed has a sentence and no ratio.
        notes: What may have disturbed the measurement.
    """

    schema_version: int = REPORT_SCHEMA_VERSION
    device: str
    reference: str
    reference_latency: LatencyReport
    ratios: tuple[Ratio, ...]
    notes: tuple[str, ...] = ()
