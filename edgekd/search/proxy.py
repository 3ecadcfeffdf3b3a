"""How good an untrained student promises to be: the contract of proxies.

A proxy sees networks with random weights and one labelled batch. Its values mean nothing by themselves: they order
students of one search, teacher and batch. `edgekd.search.ranking` makes one order of the values of several.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from edgekd.core.registry import Registry
from edgekd.errors import EdgekdError

ScoreStudent = Callable[[nn.Module], float]
"""From a student with the weights it is to be judged by to a number; higher promises more."""


class Unscorable(EdgekdError):
    """A network that a proxy can say nothing about, with the reason: no path from input to output, for example."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """What every network of a search sees.

    Attributes:
        images: (N, C, H, W), preprocessed, N >= 2.
        labels: (N,) int64 in [0, K). Where the data has none they are drawn: an untrained network knows no classes.
    """

    images: Tensor
    labels: Tensor

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width


def batch_from_images(images: Tensor, labels: Tensor | None, *, classes: int, seed: int = 0) -> Batch:
    """A batch, with labels drawn uniformly from the seed where there are none."""
    if labels is None:
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(classes, (len(images),), generator=generator)
    return Batch(images=images, labels=labels)


class Proxy(ABC):
    """Ranks untrained students, for a teacher where it compares with one.

    The score is a pure function of the networks, their weights and the batch; it does not depend on the order of the
    samples, and no student scores higher than the teacher's own copy when the proxy measures a distance to it. The
    networks are left as they were (weights, statistics, gradients, modes, hooks). Randomness of its own comes from
    fixed seeds. Any classifier of images is scored, whatever its layers are.

    Attributes:
        uses_weights: Whether the score depends on the weights, so that it is averaged over several random draws.
        uses_teacher: Whether it depends on the teacher, which is drawn at random as well.
        formula: One line.
        source: Authors, year, arXiv id.
    """

    uses_weights: ClassVar[bool]
    uses_teacher: ClassVar[bool] = False
    formula: ClassVar[str]
    source: ClassVar[str]

    @abstractmethod
    def bind(self, teacher: nn.Module, batch: Batch) -> ScoreStudent:
        """Does the teacher's half of the work once.

        Args:
            teacher: Its weights drawn at random, once for all students.
            batch: Shared by all students.

        Returns:
            A function that raises `Unscorable` for a student it can say nothing about. A value that is not finite
            counts as that too.
        """

    def score(self, student: nn.Module, teacher: nn.Module, batch: Batch) -> float:
        """The score of one student."""
        return self.bind(teacher, batch)(student)


PROXIES: Registry[type[Proxy]] = Registry(
    "proxy",
    {
        "params": "edgekd.search.proxies.size:Params",
        "macs": "edgekd.search.proxies.size:Macs",
        "activations": "edgekd.search.proxies.size:Activations",
        "capacity": "edgekd.search.proxies.size:Capacity",
        "depth": "edgekd.search.proxies.depth:Depth",
        "naswot": "edgekd.search.proxies.naswot:NASWOT",
        "jacobcov": "edgekd.search.proxies.jacobcov:JacobCov",
        "synflow": "edgekd.search.proxies.synflow:SynFlow",
        "zen": "edgekd.search.proxies.zen:Zen",
        "gradnorm": "edgekd.search.proxies.gradients:GradNorm",
        "snip": "edgekd.search.proxies.gradients:SNIP",
        "zico": "edgekd.search.proxies.zico:ZiCo",
        "meco": "edgekd.search.proxies.meco:MeCo",
        "vkdnw": "edgekd.search.proxies.vkdnw:VKDNW",
        "expressivity": "edgekd.search.proxies.aznas:Expressivity",
        "progressivity": "edgekd.search.proxies.aznas:Progressivity",
        "trainability": "edgekd.search.proxies.aznas:Trainability",
        "isotropy": "edgekd.search.proxies.isotropy:Isotropy",
        "diswot": "edgekd.search.proxies.diswot:DisWOT",
        "diswot-semantic": "edgekd.search.proxies.diswot:DisWOTSemantic",
        "diswot-relation": "edgekd.search.proxies.diswot:DisWOTRelation",
        "diswot-code": "edgekd.search.proxies.diswot_code:DisWOTCode",
        "diswot-code-semantic": "edgekd.search.proxies.diswot_code:DisWOTCodeSemantic",
        "diswot-code-relation": "edgekd.search.proxies.diswot_code:DisWOTCodeRelation",
    },
)
"""Proxies of their own; `edgekd.search.proxy_names` knows every distillation objective as one more."""
