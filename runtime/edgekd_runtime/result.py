"""What an engine says about an image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Result:
    """The best classes of one image, the best first. Unpacks into `labels, scores`.

    Attributes:
        labels: Names of the classes; their numbers as text where the bundle has no names.
        scores: (k,) float32, softmax probabilities over all classes, so that k of them need not sum to 1.
        indices: Numbers of the classes, positions in the model's output.
    """

    labels: tuple[str, ...]
    scores: FloatArray
    indices: tuple[int, ...]

    def __iter__(self) -> Iterator[Any]:
        yield self.labels
        yield self.scores

    @property
    def label(self) -> str:
        """Name of the best class."""
        return self.labels[0]

    @property
    def score(self) -> float:
        """Probability of the best class."""
        return float(self.scores[0])


def result_of(logits: FloatArray, labels: tuple[str, ...] | None, top: int) -> Result:
    """The `top` best classes; equal logits keep the order of their numbers.

    Args:
        logits: (K,) float32, unnormalised.
        labels: K names, or None.
        top: How many; more than K gives K.
    """
    shifted = np.exp(logits.astype(np.float64) - float(logits.max()))
    scores = (shifted / shifted.sum()).astype(np.float32)
    order = np.argsort(-logits, kind="stable")[: max(1, top)]
    names = tuple(str(index) if labels is None else labels[index] for index in order)
    return Result(names, scores[order], tuple(int(index) for index in order))
