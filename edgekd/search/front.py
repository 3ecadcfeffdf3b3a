"""Which candidates no other one beats: non-dominated sorting and crowding (Deb et al. 2002, NSGA-II).

Written here and not taken from a library: pymoo resumes from pickles, and Optuna keeps no sampler state but a pickled
one, while a search of ours goes on from plain JSON. All objectives are minimised; negate what is to be large.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Objectives = npt.NDArray[np.float64]
"""(candidates, objectives), finite, lower is better."""


def front_numbers(objectives: Objectives) -> npt.NDArray[np.int64]:
    """(candidates,): 0 for those that none dominates, 1 for those that only these dominate, and so on.

    One candidate dominates another when it is nowhere worse and somewhere better; equal ones share a front.
    """
    count = len(objectives)
    numbers = np.full(count, -1, dtype=np.int64)
    waits_for = np.zeros(count, dtype=np.int64)
    dominates = np.zeros((count, count), dtype=np.bool_)
    for place, own in enumerate(objectives):
        dominates[place] = (own <= objectives).all(1) & (own < objectives).any(1)
        waits_for += dominates[place]
    number = 0
    while (numbers < 0).any():
        free = (numbers < 0) & (waits_for == 0)
        numbers[free] = number
        waits_for -= dominates[free].sum(0)
        number += 1
    return numbers


def front_places(objectives: Objectives) -> list[int]:
    """Positions of the candidates that none dominates, in the order given."""
    return [place for place, number in enumerate(front_numbers(objectives)) if number == 0]


def crowding(objectives: Objectives) -> npt.NDArray[np.float64]:
    """(candidates,): how far apart the neighbours of each candidate are, summed over the objectives.

    Measured in shares of each objective's range; infinite at its ends, so that these survive. Meant for one front.
    """
    distances = np.zeros(len(objectives), dtype=np.float64)
    for column in objectives.T:
        order = np.argsort(column, kind="stable")
        ordered = column[order]
        span = ordered[-1] - ordered[0]
        if span > 0:
            distances[order[1:-1]] += (ordered[2:] - ordered[:-2]) / span
        distances[order[[0, -1]]] = np.inf
    return distances


def survivors(objectives: Objectives, count: int) -> list[int]:
    """Positions of the best `count` candidates: front by front, the least crowded of the last one; best first."""
    numbers = front_numbers(objectives)
    kept: list[int] = []
    for number in range(int(numbers.max(initial=-1)) + 1):
        members = np.flatnonzero(numbers == number)
        apart = crowding(objectives[members])
        kept += [int(place) for place in members[np.argsort(-apart, kind="stable")]]
        if len(kept) >= count:
            break
    return kept[:count]
