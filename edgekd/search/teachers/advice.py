"""Advice from pilots: what short trainings of one student under several teachers say, and how surely.

All pilots are judged on the same images of the `select` split, so two of them are compared image by image; that tells
more than two separate intervals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydantic import Field

from edgekd.core.schema import Schema
from edgekd.core.text import percent, points
from edgekd.search.teachers.shortlist import TeacherFacts
from edgekd.tasks.classification import wilson_interval

_Z = 1.96
"""Normal quantile of a 95 % interval."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Pilot:
    """The students of one teacher.

    Attributes:
        name: Of the teacher.
        correct: (S, N) bool: whether the student of each seed is right on each image.
    """

    name: str
    correct: npt.NDArray[np.bool_]


class PilotResult(Schema):
    """What a pilot gave.

    Attributes:
        name: Of the teacher.
        accuracy: The student's top-1 on `select`, mean over the seeds.
        low: Lower end of its 95 % interval (Wilson) for so many images.
        high: Upper end.
        by_seed: Accuracy of each seed.
        behind: How much less accurate than the best pilot, in [0, 1]; 0 for the best.
        behind_low: Lower end of the 95 % interval of `behind`.
        behind_high: Upper end.
        tied: Whether no difference from the best was seen: that interval holds 0.
    """

    name: str
    accuracy: float
    low: float
    high: float
    by_seed: tuple[float, ...]
    behind: float
    behind_low: float
    behind_high: float
    tied: bool


class Advice(Schema):
    """Which teacher to take.

    Attributes:
        teacher: Its name.
        reason: Why, in one or two sentences.
        pilots: Best first.
        labels_alone: The same training without a teacher; None when it was not made.
    """

    teacher: str
    reason: str
    pilots: tuple[PilotResult, ...] = Field(min_length=1)
    labels_alone: PilotResult | None = None


def advise(pilots: Sequence[Pilot], teachers: Sequence[TeacherFacts], labels_alone: Pilot | None = None) -> Advice:
    """The teacher of the best pilot; among pilots without a difference the one with more to offer.

    That is a teacher that exists rather than an assistant that would have to be trained; of those the strongest, since
    a short training shows least of what a strong teacher gives in a long one (Beyer et al. 2022, arXiv 2106.05237); and
    among teachers as accurate as the lower end of its interval the cheapest to run.

    Args:
        pilots: At least one; all with the same seeds and images.
        teachers: The facts of each piloted teacher.
        labels_alone: The same training without a teacher.
    """
    ranked = sorted(pilots, key=lambda pilot: -float(pilot.correct.mean()))
    results = tuple(_result(pilot, ranked[0]) for pilot in ranked)
    baseline = None if labels_alone is None else _result(labels_alone, ranked[0])
    facts = {teacher.name: teacher for teacher in teachers}
    tied = [result for result in results if result.tied]
    name, reason = _only(results) if len(tied) == 1 else _among(tied, facts)
    if baseline is not None:
        reason += _beside(baseline)
    return Advice(teacher=name, reason=reason, pilots=results, labels_alone=baseline)


def paired_difference(a: npt.NDArray[np.bool_], b: npt.NDArray[np.bool_]) -> tuple[float, float, float]:
    """Mean of `a - b` and its 95 % interval, normal approximation, in [-1, 1].

    The variance is that of the images, and with two or more seeds that of the seeds on top. The first holds a part of
    the second, so the interval is rather too wide.

    Args:
        a: (S, N), right or wrong by seed and image.
        b: (S, N), of the same seeds and images.
    """
    difference = a.astype(np.float64) - b.astype(np.float64)
    by_image, by_seed = difference.mean(0), difference.mean(1)
    if len(by_image) < 2:
        return float(difference.mean()), -1.0, 1.0
    variance = by_image.var(ddof=1) / len(by_image)
    if len(by_seed) > 1:
        variance += by_seed.var(ddof=1) / len(by_seed)
    mean, half = float(difference.mean()), _Z * math.sqrt(float(variance))
    return mean, max(-1.0, mean - half), min(1.0, mean + half)


def _result(pilot: Pilot, best: Pilot) -> PilotResult:
    images = pilot.correct.shape[1]
    accuracy = float(pilot.correct.mean())
    low, high = wilson_interval(round(accuracy * images), images)
    behind, behind_low, behind_high = paired_difference(best.correct, pilot.correct)
    return PilotResult(
        name=pilot.name,
        accuracy=accuracy,
        low=low,
        high=high,
        by_seed=tuple(float(value) for value in pilot.correct.mean(1)),
        behind=behind,
        behind_low=behind_low,
        behind_high=behind_high,
        tied=behind_low <= 0 <= behind_high,
    )


def _beside(baseline: PilotResult) -> str:
    """What labels alone gave, where they gave no less than the best teacher."""
    value = percent(baseline.accuracy)
    if baseline.behind_high < 0:
        return f" But labels alone gave more, {value}: no teacher helped in so short a training."
    return (
        ""
        if baseline.behind_low > 0
        else f" No teacher was seen to help in so short a training: labels alone gave {value}."
    )


def _only(results: Sequence[PilotResult]) -> tuple[str, str]:
    best = results[0]
    if len(results) == 1:
        return best.name, f"{best.name} was the only pilot: its student has {percent(best.accuracy)}."
    near = results[1]
    interval = f"95 % interval {points(near.behind_low)} to {points(near.behind_high)}"
    return best.name, f"{best.name} has the best pilot; {near.name} is {points(near.behind)} behind ({interval})."


def _among(tied: Sequence[PilotResult], facts: dict[str, TeacherFacts]) -> tuple[str, str]:
    """The choice among pilots without a difference."""
    candidates = [facts[result.name] for result in tied]
    candidates = [teacher for teacher in candidates if not teacher.made] or candidates
    strongest = max(candidates, key=lambda teacher: teacher.accuracy)
    equals = [teacher for teacher in candidates if teacher.accuracy >= strongest.low]
    chosen = min(equals, key=lambda teacher: teacher.size.macs_m)
    if len(equals) > 1:
        why = f"{chosen.name} is the cheapest to run of those about as accurate as the strongest"
    else:
        why = f"{chosen.name} is the most accurate of them, and a longer training profits from that"
    names = ", ".join(result.name for result in tied)
    return chosen.name, f"No difference was seen between the pilots of {names}; {why}."
