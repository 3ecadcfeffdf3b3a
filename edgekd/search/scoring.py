"""Scores recipes: draws the random networks, averages over draws, and shares everything that can be shared.

For every seed the teacher is drawn once and serves all students; every student sees the same batch.
"""

from __future__ import annotations

import copy
import logging
import math
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgekd.core.recipe import ModelRecipe
from edgekd.errors import UserError
from edgekd.nn.build import module_from_recipe
from edgekd.nn.shapes import class_count
from edgekd.search.proxy import Batch, Proxy, ScoreStudent, Unscorable, batch_from_images
from edgekd.search.proxy_names import proxy_from_name
from edgekd.search.ranking import ranking_from_name
from edgekd.search.sharing import unchanged

SEEDS = (0, 1, 2, 3, 4)
"""Five draws keep chance from deciding."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Score:
    """What the proxies say about one student.

    Attributes:
        values: Mean over the seeds, in the order of the proxies; higher is better. Empty when it was skipped.
        spreads: Standard deviation over the seeds; 0 for proxies that do not depend on the weights.
        skipped: Why nothing can be said about it; None for a scored student.
    """

    values: tuple[float, ...]
    spreads: tuple[float, ...]
    skipped: str | None = None


class Scorer:
    """Scores any number of students against one teacher.

    Args:
        teacher: Its architecture counts, its weights do not: they are drawn anew for every seed. Left as it was.
        batch: What every network sees.
        proxies: Names in `PROXIES`.
        seeds: Of the random weights of teacher and students.
    """

    def __init__(self, teacher: nn.Module, batch: Batch, *, proxies: Sequence[str], seeds: Sequence[int]) -> None:
        self.names = tuple(proxies)
        chosen = [proxy_from_name(name) for name in proxies]
        self._scorers: dict[int, list[ScoreStudent | None]] = {}
        """By seed and proxy; a proxy that does not depend on the weights is asked at the first seed only."""
        with _one_thread(), unchanged():
            for seed in seeds if any(proxy.uses_weights for proxy in chosen) else seeds[:1]:
                drawn = with_random_weights(teacher, seed) if any(proxy.uses_teacher for proxy in chosen) else teacher
                self._scorers[seed] = [
                    _checked(proxy.bind(drawn, batch), proxy) if proxy.uses_weights or seed == seeds[0] else None
                    for proxy in chosen
                ]

    def score(self, recipe: ModelRecipe) -> Score:
        """The score of the network that the recipe builds; a network that cannot be scored gets a reason instead."""
        drawn: list[list[float]] = [[] for _ in self.names]
        try:
            with _one_thread():
                for seed, scorers in self._scorers.items():
                    student = _student(recipe, seed)
                    if not drawn[0]:
                        _check_input_reaches_output(student, recipe)
                    with unchanged():
                        for values, score in zip(drawn, scorers, strict=True):
                            if score is not None:
                                values.append(score(student))
        except Unscorable as err:
            return Score(values=(), spreads=(), skipped=str(err))
        except (MemoryError, RuntimeError) as err:
            if not _out_of_memory(err):
                raise
            return Score(values=(), spreads=(), skipped="It does not fit into memory.")
        return Score(
            values=tuple(statistics.fmean(values) for values in drawn),
            spreads=tuple(statistics.stdev(values) if len(values) > 1 else 0.0 for values in drawn),
        )


def score(
    recipes: Sequence[ModelRecipe],
    teacher: nn.Module,
    batch: Batch | Tensor | tuple[Tensor, Tensor],
    proxy: str = "combined",
    *,
    seeds: Sequence[int] = SEEDS,
) -> list[float]:
    """One score for each recipe; higher promises a better student. Scores are comparable within one call only.

    Args:
        recipes: Students.
        teacher: See `Scorer`.
        batch: Images (N, C, H, W), preprocessed, N >= 2; or images with labels (N,) int64.
        proxy: A ranking (`combined`), a proxy (`naswot`), or several joined by `+`, whose ranks are added.
        seeds: At least one.

    Returns:
        For a single proxy its mean over the seeds, else the combined rank. A network that cannot be scored gets -inf,
        below all others, and a line in the log that says why.
    """
    ranking = ranking_from_name(proxy)
    scorer = Scorer(teacher, _batch(batch, teacher), proxies=ranking.proxies, seeds=seeds)
    found = [scorer.score(recipe) for recipe in recipes]
    for number, (recipe, result) in enumerate(zip(recipes, found, strict=True)):
        if result.skipped is not None:
            _log.warning("recipe %d (%s) is not scored: %s", number, recipe.builder, result.skipped)
    scores = [-math.inf] * len(recipes)
    ranked = [number for number, result in enumerate(found) if result.skipped is None]
    if ranked:
        table = [found[number].values for number in ranked]
        single = len(ranking.proxies) == 1
        combined = [row[0] for row in table] if single else ranking.scores(table)
        for number, value in zip(ranked, combined, strict=True):
            scores[number] = float(value)
    return scores


def with_random_weights(module: nn.Module, seed: int) -> nn.Module:
    """A copy whose layers have drawn their weights anew, each by its own `reset_parameters`."""
    copied = copy.deepcopy(module)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for part in copied.modules():
            reset = getattr(part, "reset_parameters", None)
            if callable(reset):
                reset()
    return copied


def _student(recipe: ModelRecipe, seed: int) -> nn.Module:
    """The recipe's network, in the memory layout that convolutions on CPUs are fastest in: by a third on small ones.

    Networks of others may hold a `view` that this layout does not allow.
    """
    student = module_from_recipe(recipe, seed=seed)
    return student.to(memory_format=torch.channels_last) if recipe.builder.startswith("edgekd:") else student


@contextmanager
def _one_thread() -> Iterator[None]:
    """Several threads add in another order than one does, and a score must not depend on where it is computed."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _checked(score_student: ScoreStudent, proxy: Proxy) -> ScoreStudent:
    """The same, with values that are not finite turned into `Unscorable`."""

    def score(student: nn.Module) -> float:
        value = score_student(student)
        if not math.isfinite(value):
            raise Unscorable(f"{type(proxy).__name__} is {value} for this network.")
        return value

    return score


def _check_input_reaches_output(student: nn.Module, recipe: ModelRecipe) -> None:
    """Proxies that count would rank a network without any path from its input to its output."""
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        logits = student(torch.randn(2, *recipe.preprocessing.input_shape, generator=generator))
    if torch.equal(logits[0], logits[1]):
        raise Unscorable("Its output does not depend on its input.")


def _out_of_memory(err: Exception) -> bool:
    """PyTorch's CPU allocator reports a full memory as a plain RuntimeError."""
    return isinstance(err, MemoryError | torch.OutOfMemoryError) or "memory" in str(err)


def _batch(batch: Batch | Tensor | tuple[Tensor, Tensor], teacher: nn.Module) -> Batch:
    if isinstance(batch, Batch):
        return batch
    images, labels = (batch, None) if isinstance(batch, Tensor) else batch
    if images.ndim != 4 or len(images) < 2:
        raise UserError(f"A batch is at least two images (N, C, H, W); got {tuple(images.shape)}.")
    channels, height, width = images.shape[1:]
    return batch_from_images(images, labels, classes=class_count(teacher, (channels, height, width)))
