"""What `edgekd benchmark` was asked, as data."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from edgekd.core.schema import Schema
from edgekd.pipeline.compose import DEFAULT_DROP
from edgekd.pipeline.request import ModelSource
from edgekd.targets.schema import Precision

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")


class BenchmarkRequest(Schema):
    """A model, a device, and how to compare what runs there.

    Attributes:
        model: A model file, a package, or an `.onnx` file of any task.
        target: A card's name or path.
        data: See `edgekd.data.sources.load_dataset`; `synthetic`; or None, which leaves calibrated INT8 out.
        precisions: To build, of a model in FP32.
        runtimes: Registry names; empty means all that this edgekd knows.
        threads: CPU thread counts; the choice is made at the first one.
        max_drop: What an engine may lose and still be chosen, in [0, 1].
        calib_samples: Calibration images; None takes 300, or the card's number.
        images: That every engine answers, at most.
        precision: Stop when the 95 % interval of each median is narrower than this fraction of it.
        limit_s: Time after which an engine that does not answer counts as hung.
        seed: The only source of randomness.
    """

    model: ModelSource
    target: str
    data: str | None = None
    precisions: tuple[Precision, ...] = Field(default=PRECISIONS, min_length=1)
    runtimes: tuple[str, ...] = ()
    threads: tuple[int, ...] = Field(default=(1,), min_length=1)
    max_drop: float = Field(default=DEFAULT_DROP, ge=0, le=1)
    calib_samples: int | None = Field(default=None, ge=1)
    calib_method: Literal["auto", "minmax", "percentile", "entropy", "mse"] = "auto"
    images: int = Field(default=1000, ge=1)
    warmup_s: float = Field(default=0.5, ge=0)
    duration_s: float = Field(default=3.0, gt=0)
    precision: float = Field(default=0.01, gt=0)
    limit_s: float = Field(default=120.0, gt=0)
    seed: int = Field(default=0, ge=0)
