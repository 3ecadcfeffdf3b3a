"""Augmentation that learns to be hard: as far as makes the student disagree most with its teacher, and no farther.

After HARD ("Hard Augmentations for Robust Distillation", Nix, Burg and Sinz 2023, arXiv 2305.14890): the augmentation
is trained to raise KL(teacher || student) while the student is trained to lower it. Theirs are networks with a gradient
through the augmented image and through the teacher. Here the augmentation is a handful of magnitudes, one per
operation, and their gradient is that of a score function (Williams 1992): it needs only the two answers that the step
computes anyway. So it costs no further pass, and works for a teacher that is an ONNX graph. An augmentation with few
numbers also cannot become adversarial noise, and what it learned can be read: rotation 0.4, contrast 0.1.

The reward of an image counts only where the teacher still knows what it shows; where an operation has erased the image
even for the teacher, the two agree on nothing, and that is no lesson.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from edgekd.core.preprocess import Preprocessing

OPERATIONS = ("rotation", "shear", "scale", "shift", "brightness", "contrast", "saturation")
"""Of grey images the last one does nothing and is left out."""
_FULL = {
    "rotation": math.radians(30),
    "shear": 0.3,
    "scale": 0.3,
    "shift": 0.2,
    "brightness": 0.4,
    "contrast": 0.6,
    "saturation": 0.8,
}
"""One standard deviation at magnitude 1: radians, shares of the size and of the range of pixels, logs of factors."""
_DRAWS = {"shear": 2, "shift": 2}
"""Independent numbers of an operation, one per axis; 1 for all others."""
START, LEAST = 0.25, 0.05
"""Magnitudes at the beginning and at least, as shares of the largest one."""
RATE = 0.05
"""Step of a log-magnitude, in units of the normalised reward."""
SURE = 0.5
"""The teacher still knows an image when its largest probability is at least this share of its median over the batch."""
_KEY = 0x4A2D


class HardAugment:
    """Warps and recolours batches, and moves its magnitudes towards what the student finds hard.

    Args:
        largest: Upper limit of every magnitude, in (0, 1].
        preprocessing: Of the images that it is given; they are normalised.
        device: Where its state lives.

    Attributes:
        log_magnitudes: (operations,) float64, the state that a checkpoint keeps.
    """

    def __init__(self, largest: float, preprocessing: Preprocessing, device: torch.device) -> None:
        self.names = OPERATIONS if preprocessing.channels == 3 else OPERATIONS[:-1]
        self._largest = largest
        self._columns = [place for place, name in enumerate(self.names) for _ in range(_DRAWS.get(name, 1))]
        self._mean, self._std = (
            torch.tensor(values, device=device).view(1, -1, 1, 1) for values in (preprocessing.mean, preprocessing.std)
        )
        self.log_magnitudes = torch.full((len(self.names),), math.log(START * largest), dtype=torch.float64)

    @property
    def magnitudes(self) -> dict[str, float]:
        """By operation, in [LEAST * largest, largest]."""
        return dict(zip(self.names, self.log_magnitudes.exp().tolist(), strict=True))

    def draw(self, images: int, seed: int) -> Tensor:
        """(N, draws) float64 standard normal numbers of a batch, a pure function of the seed."""
        generator = torch.Generator().manual_seed((seed ^ _KEY) & (2**63 - 1))
        return torch.randn(images, len(self._columns), generator=generator, dtype=torch.float64)

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """The images (N, C, H, W) after every operation, each image by its own draws."""
        scaled = draws * self.log_magnitudes.exp()[self._columns]
        amounts: dict[str, list[Tensor]] = {}
        for column, place in enumerate(self._columns):
            name = self.names[place]
            amounts.setdefault(name, []).append((_FULL[name] * scaled[:, column]).float().to(images.device))
        moved = _warped(images, amounts)
        pixels = moved * self._std + self._mean
        return ((_recoloured(pixels, amounts) - self._mean) / self._std).to(images.dtype)

    def gradient(self, draws: Tensor, student: Tensor, teacher: Tensor) -> Tensor:
        """(operations,) float64: which way the magnitudes should move, from one batch's answers to the drawn images.

        The score of a magnitude m at a draw z is d log N(m z; 0, m) / d log m = z^2 - 1, and the reward is normalised
        over the batch, which leaves the direction and takes the scale away.

        Args:
            draws: Of this batch.
            student: (N, K) logits.
            teacher: (N, K) logits.
        """
        rewards = disagreement(student, teacher).double().cpu()
        spread = rewards.std(unbiased=False)
        if not bool(torch.isfinite(spread)) or float(spread) <= 0:
            return torch.zeros_like(self.log_magnitudes)
        scores = (draws.square() - 1) * ((rewards - rewards.mean()) / spread)[:, None]
        columns = torch.tensor(self._columns)
        return torch.zeros_like(self.log_magnitudes).index_add_(0, columns, scores.mean(dim=0))

    def step_(self, gradient: Tensor) -> None:
        """Moves the magnitudes within their limits."""
        low, high = math.log(LEAST * self._largest), math.log(self._largest)
        self.log_magnitudes.add_(RATE * gradient).clamp_(low, high)

    def load(self, state: Tensor) -> None:
        """Takes over the state of an interrupted run."""
        self.log_magnitudes.copy_(state)

    def said(self) -> str:
        """What was learned, in one sentence, the largest first."""
        found = sorted(self.magnitudes.items(), key=lambda pair: -pair[1])
        shown = ", ".join(f"{name} {value:.2f}" for name, value in found)
        return (
            f"Images were varied as far as the student disagreed with its teacher: {shown} (limits "
            f"{LEAST * self._largest:.2f} and {self._largest:g}, from {START * self._largest:.2f})."
        )


def disagreement(student: Tensor, teacher: Tensor) -> Tensor:
    """(N,) KL(teacher || student) of each image; 0 where the teacher does not know the image.

    Args:
        student: (N, K) logits.
        teacher: (N, K) logits.
    """
    log_s, log_t = student.float().log_softmax(1), teacher.float().log_softmax(1)
    sure = log_t.exp().amax(dim=1)
    apart = (log_t.exp() * (log_t - log_s)).sum(dim=1)
    return torch.where(sure >= SURE * sure.median(), apart, 0.0)


def _warped(images: Tensor, amounts: dict[str, list[Tensor]]) -> Tensor:
    """One affine map per image about its centre, bilinear; what comes in at the edges is the mean colour."""
    angle, scale = amounts["rotation"][0], 1 + amounts["scale"][0].clamp(-0.6, 0.6)
    shear_x, shear_y = amounts["shear"]
    cos, sin = angle.cos() / scale, angle.sin() / scale
    rows = [
        [cos - sin * shear_y, cos * shear_x - sin, 2 * amounts["shift"][0]],
        [sin + cos * shear_y, sin * shear_x + cos, 2 * amounts["shift"][1]],
    ]
    theta = torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    moved = F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    fast = images.is_contiguous(memory_format=torch.channels_last)
    return moved.contiguous(memory_format=torch.channels_last if fast else torch.contiguous_format)


def _recoloured(pixels: Tensor, amounts: dict[str, list[Tensor]]) -> Tensor:
    """Brightness, contrast and saturation of pixels in [0, 1], back in [0, 1]."""

    def of_each(values: Sequence[Tensor]) -> Tensor:
        return values[0].view(-1, 1, 1, 1)

    pixels = pixels + of_each(amounts["brightness"])
    middle = pixels.mean(dim=(1, 2, 3), keepdim=True)
    pixels = middle + (pixels - middle) * of_each(amounts["contrast"]).exp()
    if "saturation" in amounts:
        grey = pixels.mean(dim=1, keepdim=True)
        pixels = grey + (pixels - grey) * of_each(amounts["saturation"]).exp()
    return pixels.clamp(0, 1)
