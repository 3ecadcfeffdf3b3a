"""Drives the published code of DisWOT (github.com/lliai/DisWOT-CVPR2023), from a checkout outside this repository.

Only its own pieces are called, in the order in which its scripts call them (`exps/parse_nb201_distill.py`,
`exps/parse_s1_zc.py`, `searcher/rand_search_nb201.py`): for every candidate the student is built and drawn from
N(0, 1), teacher and student see the batch, the cross-entropy of both is propagated back, and the two metrics compare
the last feature maps and the gradients of the classifiers. The scripts themselves cannot be imported: they miss a file
(`distiller_zoo/AutoKD.py`) and load tables of benchmarks.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_FOLDERS = ("models", "models/candidates/mutable", "distiller_zoo")


class Reference:
    """Scores candidates one by one, as the published scripts do.

    Args:
        folder: The checkout.
        images: (N, 3, 32, 32).
        labels: (N,) int64.
        classes: K.
    """

    def __init__(self, folder: Path, images: Tensor, labels: Tensor, *, classes: int) -> None:
        _move_to_cpu()
        sys.path[:0] = [str(folder / name) for name in _FOLDERS]
        self._resnet: Any = importlib.import_module("resnet")
        self._mutable: Any = importlib.import_module("mutable_depth_resnet20")
        self._cells: Any = importlib.import_module("nasbench201.utils")
        self._semantic: Any = importlib.import_module("ICKD").ICKDLoss()
        self._relation: Any = importlib.import_module("SP").Similarity()
        self._images, self._labels, self._classes = images, labels, classes

    def s0_teacher(self) -> nn.Module:
        """ResNet-110, drawn at random."""
        return _drawn(self._resnet.resnet110(num_classes=self._classes))

    def s0_score(self, teacher: nn.Module, depths: list[int]) -> float:
        """The score of a ResNet of S0."""
        student = _drawn(self._mutable.mutable_resnet20(depths, num_classes=self._classes))
        seen = [network(self._images, is_feat=True, preact=False) for network in (teacher, student)]
        return self._score([teacher.fc, student.fc], seen)

    def cell_teacher(self, cell: str) -> nn.Module:
        """A network of NAS-Bench-201, drawn at random."""
        return _drawn(self._cell(cell))

    def cell_score(self, teacher: nn.Module, cell: str) -> float:
        """The score of a network of NAS-Bench-201."""
        student = _drawn(self._cell(cell))
        seen = [network.forward_with_features(self._images) for network in (teacher, student)]
        return self._score([teacher.classifier, student.classifier], seen)

    def _cell(self, cell: str) -> Any:
        config = {"name": "infer.tiny", "C": 16, "N": 5, "arch_str": cell, "num_classes": self._classes}
        return self._cells.get_cell_based_tiny_net(self._cells.dict2config(config, None))

    def _score(self, heads: list[Any], seen: list[tuple[list[Tensor], Tensor]]) -> float:
        for _, logits in seen:
            F.cross_entropy(logits, self._labels).backward()
        teacher, student = (head.weight.grad[:, :, None, None] for head in heads)
        (teacher_maps, _), (student_maps, _) = seen
        relation = self._relation([teacher_maps[-2]], [student_maps[-2]])[0]
        return -float(self._semantic([teacher], [student])[0]) - float(relation.detach())


def _drawn(network: Any) -> Any:
    """The network with every weight of a convolution or matrix product from N(0, 1), as the scripts draw them."""
    for part in network.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            nn.init.normal_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    return network


def _move_to_cpu() -> None:
    """Makes `.cuda()` do nothing, for the published code asks for a GPU without looking whether there is one."""
    torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[assignment]
    nn.Module.cuda = lambda self, *_, **__: self  # type: ignore[assignment,method-assign]
