"""What an engine answered, as plain data: whether it is right, beside how fast it is.

A latency of wrong answers is worth nothing, so every engine that is timed also answers the same images, in a process of
its own, and is held against the reference. Reports only; `edgekd.profiling.answers_stage` fills it in.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from edgekd.core.report import REPORT_SCHEMA_VERSION, Evaluation
from edgekd.core.schema import Schema


class Agreement(Schema):
    """How near an engine's answers are to the reference's.

    Attributes:
        reference: `candidate@runtime` that it was compared with.
        max_error: Largest absolute difference of any output, in standard deviations of the reference's output.
        sqnr_db: Signal to noise of the worst output, in decibels, at most 200.
        alike: Share of images answered as the reference does, in [0, 1].
        alike_means: `top1`: the same class. `outputs`: all outputs near, for models that do not classify.
        lost: Images whose label the reference gives and this engine does not; None without labels.
        gained: The other way round.
        within_tolerance: Whether the outputs are as near as their precision lets one expect; None for INT8, which is
            judged by what it loses.
    """

    reference: str
    max_error: float
    sqnr_db: float
    alike: float = Field(ge=0, le=1)
    alike_means: Literal["top1", "outputs"]
    lost: int | None = None
    gained: int | None = None
    within_tolerance: bool | None = None


class AnswersReport(Schema):
    """What one engine answered.

    Attributes:
        images: That it answered, one at a time, as they are timed.
        origin: What the images are: `real`, `synthetic` (made from a model's statistics) or `random` noise, on which an
            agreement says that an engine computes the same function and nothing of its accuracy.
        finite: Whether all outputs are numbers; False leaves nothing to compare.
        agreement: None for the reference itself, without one, and for outputs that are not finite.
        evaluation: Accuracy with labels; without, the share of `agreement` under its own name. None on noise.
    """

    schema_version: int = REPORT_SCHEMA_VERSION
    candidate: str
    runtime: str
    images: int = Field(ge=1)
    origin: Literal["real", "synthetic", "random"]
    finite: bool
    agreement: Agreement | None = None
    evaluation: Evaluation | None = None
