"""Mixing of images within a batch by timm (Wightman 2019), made a pure function of the training's seed and the step.

mixup is of Zhang et al. 2018 (arXiv 1710.09412), CutMix of Yun et al. 2019 (arXiv 1905.04899).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from edgekd.data.dataset import UNLABELLED


class Mixing:
    """Mixes each image of a batch with another one: the first with the last, and so on.

    timm draws from NumPy's global generator; it is seeded for the length of a call and put back. Of an odd number of
    images the last one stays as it is.

    The share of an image without a label is a share of no class: the cross-entropy of a mixture is the mixture of
    cross-entropies, and of those the unknown one is left out. An image and its mate are mixed both ways round, so the
    shares of a batch still sum to the number of its labels.

    Args:
        mixup: Alpha of mixup's Beta distribution, 0 for none.
        cutmix: Alpha of CutMix's; where both are given, each step has one of them at even odds.
        classes: K.
    """

    def __init__(self, *, mixup: float, cutmix: float, classes: int) -> None:
        from timm.data.mixup import Mixup

        self._classes = classes
        # Images without a label are of one class more, whose column is cut off.
        self._mix = Mixup(mixup_alpha=mixup, cutmix_alpha=cutmix, label_smoothing=0.0, num_classes=classes + 1)

    def __call__(self, images: Tensor, labels: Tensor | None, seed: int) -> tuple[Tensor, Tensor | None]:
        """Mixed images (N, C, H, W), and (N, K) float32 shares of the classes, or None without labels.

        Args:
            images: Changed in place.
            labels: (N,) int64, `UNLABELLED` for an image without one, or None.
            seed: Of this batch.
        """
        even = len(images) // 2 * 2
        given = torch.zeros(len(images), dtype=torch.int64, device=images.device) if labels is None else labels
        given = torch.where(given == UNLABELLED, self._classes, given)
        shares = torch.nn.functional.one_hot(given, self._classes + 1).float()
        with _seeded(seed):
            mixed, mixed_shares = self._mix(images[:even], given[:even])
        images[:even], shares[:even] = mixed, mixed_shares
        return images, None if labels is None else shares[:, :-1].contiguous()


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    state = np.random.get_state()
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        np.random.set_state(state)
