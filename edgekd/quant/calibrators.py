"""Chooses the method that finds activation ranges: all are tried on samples that no range was found on.

Which method is best differs from network to network, and a wrong one costs more than most other choices. One pass
gathers histograms, each method reads them, and the graphs are compared on the held-out part.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgekd.errors import BuildFailed
from edgekd.quant.form import Int8Form
from edgekd.quant.observe import Observations
from edgekd.quant.ranges import RANGE_METHODS, CalibMethod, Range, RangeMethod, range_of
from edgekd.quant.trial import Judge, Score

HELD_OUT = 3
"""One in so many samples is held out."""
FEWEST = 12
"""Samples below which none are held out: graphs are then compared on those that they were calibrated on."""
SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Which samples ranges are found on, and which graphs are compared on."""

    calibrated: slice
    compared: slice

    @property
    def held_out(self) -> bool:
        """Whether they differ."""
        return self.calibrated != self.compared

    @property
    def where(self) -> str:
        """What figures are taken on, for a sentence."""
        count = self.compared.stop - self.compared.start
        if self.held_out:
            return f"{count} held-out samples"
        return f"the {count} calibration samples themselves, too few to hold some out"


def parts_of(samples: int, *, hold_out: bool) -> Parts:
    """The last third is held out where that is asked for and there are enough samples.

    Args:
        samples: In all.
        hold_out: Graphs will be compared: by methods, or with and without what was fitted to the samples.
    """
    if not hold_out or samples < FEWEST:
        return Parts(calibrated=slice(0, samples), compared=slice(0, samples))
    cut = samples - samples // HELD_OUT
    return Parts(calibrated=slice(0, cut), compared=slice(cut, samples))


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """Ranges, and why they are these.

    Attributes:
        method: That found them.
        ranges: By value name.
        scores: Of each method that was tried.
        decisions: Sentences.
    """

    method: RangeMethod
    ranges: dict[str, Range]
    scores: dict[RangeMethod, Score]
    decisions: tuple[str, ...]


def calibrated(form: Int8Form, seen: Observations, method: CalibMethod, judge: Judge, parts: Parts) -> Calibrated:
    """Ranges by the method asked for, or by the one whose graph comes nearest to FP32.

    "Nearest" is the highest signal to noise ratio of the logits: agreement of answers moves in steps of one sample, and
    on a hundred of them tells close methods apart only by luck. It is reported beside it.

    Args:
        form: That is built.
        seen: On the samples to calibrate on.
        method: `auto` compares.
        judge: Knows all samples.
        parts: Which to compare on.
    """
    wanted = RANGE_METHODS if method == "auto" else (method,)
    tried = {name: _ranges(seen, name, form.symmetric) for name in wanted}
    scores = {name: judge.score(form.build(ranges), parts.compared) for name, ranges in tried.items()}
    best = max(scores, key=lambda name: scores[name].sqnr_db)
    said = list(_warnings(seen))
    if method == "auto":
        figures = "; ".join(f"{name} {score.said}" for name, score in scores.items())
        said.append(f"Ranges are found by {best}, compared on {parts.where}: {figures}.")
    return Calibrated(method=best, ranges=tried[best], scores=scores, decisions=tuple(said))


def _ranges(seen: Observations, method: RangeMethod, symmetric: bool) -> dict[str, Range]:
    return {name: range_of(values, method, symmetric=symmetric) for name, values in seen.histograms.items()}


def _warnings(seen: Observations) -> list[str]:
    """What the samples show of layers that are dead.

    Raises:
        BuildFailed: Nothing varies: the samples are all alike, or the network is dead.
    """
    constant = seen.constant
    if len(constant) == len(seen.histograms):
        raise BuildFailed(
            f"All values of the graph are constant over the {seen.samples} calibration samples.",
            hint="give samples that differ from each other; all-black images calibrate nothing",
        )
    if not constant:
        return []
    shown = ", ".join(repr(name) for name in constant[:SHOWN])
    more = f" and {len(constant) - SHOWN} more" if len(constant) > SHOWN else ""
    return [
        f"Constant on all {seen.samples} samples: {shown}{more}. A dead layer, or samples that do not reach it; its "
        "range holds this value only."
    ]
