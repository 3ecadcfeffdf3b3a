"""How good an untrained student promises to be: the contract of proxies, and the sum of their ranks.

A proxy sees networks with random weights and one batch of images without labels. Its values mean nothing by
themselves: they order students of one search, teacher and batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from edgekd.core.registry import Registry

ScoreStudent = Callable[[nn.Module], float]
"""From a student with the weights it is to be judged by to a number; higher promises more."""


class Proxy(ABC):
    """Ranks untrained students for a teacher.

    The score is a pure function of the networks, their weights and the images; it does not depend on the order of the
    images, and no student scores higher than the teacher's own copy when the proxy measures a distance to it. The
    networks are left as they were, except that statistics of BatchNorm may have moved.

    Attributes:
        uses_weights: Whether the score depends on the weights, so that it is averaged over several random draws.
    """

    uses_weights: ClassVar[bool]

    @abstractmethod
    def bind(self, teacher: nn.Module, images: Tensor) -> ScoreStudent:
        """Does the teacher's half of the work once.

        Args:
            teacher: Its weights drawn at random, once for all students.
            images: (N, C, H, W), preprocessed, N >= 2.
        """

    def score(self, student: nn.Module, teacher: nn.Module, images: Tensor) -> float:
        """The score of one student."""
        return self.bind(teacher, images)(student)


PROXIES: Registry[type[Proxy]] = Registry(
    "proxy",
    {
        "diswot": "edgekd.search.proxies.diswot:DisWOT",
        "params": "edgekd.search.proxies.size:Params",
        "macs": "edgekd.search.proxies.size:Macs",
    },
)


def rank_sums(values: Sequence[Sequence[float]]) -> npt.NDArray[np.float64]:
    """The sum over proxies of each candidate's rank in [0, 1], 1 for the best; ties share their mean rank.

    Ranks, not values: proxies have units that do not add, and heavy tails.

    Args:
        values: (candidates, proxies), higher is better.
    """
    table = np.asarray(values, dtype=np.float64)
    below = (table[:, None] > table[None, :]).sum(1)
    equal = (table[:, None] == table[None, :]).sum(1) - 1
    ranks = (below + equal / 2) / max(1, len(table) - 1)
    sums: npt.NDArray[np.float64] = ranks.sum(1)
    return sums
