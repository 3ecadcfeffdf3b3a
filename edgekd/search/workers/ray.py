"""Scoring on a Ray cluster, for searches that outgrow one machine.

Ray places the tasks and watches the machines. Whether a task is repeated is decided here, for Ray would repeat one that
fills the memory without end. Scoring changes nothing, so that it does no harm when a task that seemed lost ran after
all: each candidate gets the one result that is taken.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Sequence
from typing import Any

import torch

import edgekd
from edgekd.core.ray_cluster import RayConnection, brief
from edgekd.core.recipe import ModelRecipe
from edgekd.errors import EdgekdError, UserError
from edgekd.search.scorer_spec import ScorerSpec
from edgekd.search.scoring import Score, Scorer
from edgekd.search.workers.cores import usable_cores

ATTEMPTS = 3
"""A candidate may lose its worker twice: machines of a cluster come and go without any fault of its own."""

_log = logging.getLogger(__name__)
_scorers: dict[str, Scorer] = {}
"""In a process of the cluster: the scorer of the search that it last worked for."""


class RayWorkers:
    """Scores one candidate at a time on each core of a cluster, which may grow and shrink meanwhile.

    The machines need the same versions of edgekd and torch, and whatever `module:` recipes import.

    Args:
        spec: Of the scorer; it is sent to each machine once.
        address: What stands behind `ray://`; see `workers_from_text`. A connection of this process is used as it is.

    Raises:
        DeviceUnavailable: No cluster answers.
    """

    def __init__(self, spec: ScorerSpec, *, address: str) -> None:
        self._connection = RayConnection(address, cores=usable_cores())
        self._ray: Any = self._connection.ray
        self._search = uuid.uuid4().hex
        # Wrapped in a list it is fetched by a process that has no scorer yet, not sent along with each candidate.
        self._spec = [self._ray.put(spec)]
        self._score = self._ray.remote(num_cpus=1, max_retries=0)(_score)

    @property
    def width(self) -> int:
        return max(1, int(self._ray.cluster_resources().get("CPU", 1)))

    def scores(self, recipes: Sequence[ModelRecipe]) -> list[Score]:
        found: dict[int, Score] = {}
        lost = [0] * len(recipes)
        running = {self._start(recipe): number for number, recipe in enumerate(recipes)}
        while running:
            for task in self._ray.wait(list(running), num_returns=1)[0]:
                number = running.pop(task)
                try:
                    found[number] = self._ray.get(task)
                except self._connection.losses() as err:
                    lost[number] += 1
                    _log.warning("candidate %d (%s) lost its worker: %s", number, recipes[number].builder, brief(err))
                    if lost[number] < ATTEMPTS:
                        running[self._start(recipes[number])] = number
                    else:
                        reason = f"It lost its worker {ATTEMPTS} times, probably out of memory: {brief(err)}"
                        found[number] = Score(values=(), spreads=(), skipped=reason)
                except self._ray.exceptions.RayError as err:
                    raise _unwrapped(err) from err
        return [found[number] for number in range(len(recipes))]

    def close(self) -> None:
        self._connection.close()

    def _start(self, recipe: ModelRecipe) -> Any:
        return self._score.remote(self._spec, self._search, _versions(), recipe)


def _score(spec: list[Any], search: str, versions: str, recipe: ModelRecipe) -> Score:
    """Runs on the cluster: the score of one recipe."""
    if versions != _versions():
        raise UserError(
            f"The search runs on {versions}, this machine of the cluster on {_versions()}: scores would not compare.",
            hint="install the same versions on all machines",
        )
    if search not in _scorers:
        import ray

        _scorers.clear()
        described: ScorerSpec = ray.get(spec[0])
        _scorers[search] = described.scorer()
    return _scorers[search].score(recipe)


def _versions() -> str:
    return f"edgekd {edgekd.__version__} with torch {torch.__version__}"


def _unwrapped(err: Exception) -> EdgekdError:
    cause = getattr(err, "cause", None)
    return cause if isinstance(cause, EdgekdError) else EdgekdError(f"Scoring failed on the cluster: {err}")
