"""Judges INT8 graphs against their FP32 twin on samples, with exact rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from pydantic import Field

from edgekd.core.schema import Schema
from edgekd.core.text import percent
from edgekd.runtimes.compare import Comparison, compare_logits, logits_of
from edgekd.runtimes.onnxruntime import RUNTIME, emulated
from edgekd.runtimes.session import FloatArray

DropType = Literal["absolute", "relative"]


class Score(Schema):
    """How near an INT8 graph comes to its FP32 twin.

    Attributes:
        n: Samples.
        sqnr_db: Signal to noise of the logits, in decibels.
        agreement: Share of samples with the same top-1 class, in [0, 1].
        top1: Accuracy of the INT8 graph; None without labels.
        top1_fp32: Of its twin.
    """

    n: int = Field(ge=1)
    sqnr_db: float
    agreement: float
    top1: float | None = None
    top1_fp32: float | None = None

    def drop(self, drop_type: DropType = "absolute") -> float:
        """What INT8 loses: top-1 where there are labels, else the share of samples with another answer.

        Args:
            drop_type: `relative` counts in shares of the twin's accuracy.
        """
        if self.top1 is None or self.top1_fp32 is None:
            return 1 - self.agreement
        lost = self.top1_fp32 - self.top1
        return lost / max(self.top1_fp32, 1e-9) if drop_type == "relative" else lost

    @property
    def said(self) -> str:
        """The figures, for a sentence."""
        accuracy = "" if self.top1 is None else f", top-1 {percent(self.top1)}"
        return f"{self.sqnr_db:.1f} dB, {percent(self.agreement)} agreement{accuracy}"


class Judge:
    """Knows the FP32 answers, and asks INT8 graphs for theirs.

    Args:
        source: The FP32 graph.
        images: (N, C, H, W) float32, N >= 1.
        labels: (N,) in the numbering of the logits, or None.
        scratch: Holds a graph while it runs.
    """

    def __init__(self, source: Path, images: FloatArray, labels: NDArray[np.int64] | None, scratch: Path) -> None:
        self.images, self.labels = images, labels
        self._path = scratch / "trial.onnx"
        with RUNTIME.open(source) as session:
            self.expected = logits_of(session, images)

    def score(self, model: onnx.ModelProto, part: slice = slice(None)) -> Score:
        """The score of a graph on some of the samples.

        Args:
            model: With Q/DQ nodes or without.
            part: Which samples; all of them by default.
        """
        expected, found = self.expected[part], self._logits(model, part)
        comparison = compare_logits(expected, found)
        labels = None if self.labels is None else self.labels[part]
        return Score(
            n=comparison.n,
            sqnr_db=comparison.sqnr_db,
            agreement=comparison.agreement,
            top1=None if labels is None else float((found.argmax(axis=1) == labels).mean()),
            top1_fp32=None if labels is None else float((expected.argmax(axis=1) == labels).mean()),
        )

    def compare(self, model: onnx.ModelProto, other: onnx.ModelProto) -> Comparison:
        """How far two graphs lie apart on all samples."""
        return compare_logits(self._logits(model), self._logits(other))

    def _logits(self, model: onnx.ModelProto, part: slice = slice(None)) -> FloatArray:
        self._path.write_bytes(model.SerializeToString())
        try:
            with emulated(self._path) as session:
                return logits_of(session, self.images[part])
        finally:
            self._path.unlink()
