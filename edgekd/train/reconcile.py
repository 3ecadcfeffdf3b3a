"""A teacher that was trained with another normalisation sees the student's pixels, normalised its own way.

Both normalisations are affine per channel, so one map leads from the student's tensor to the teacher's: the images are
read, resized, cropped and augmented once, and both networks see the same pixels. What would need other pixels (another
size, grey instead of colour) is refused.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgekd.core.preprocess import Preprocessing
from edgekd.errors import UserError


class PixelMap(nn.Module):
    """`x * scale + shift` per channel, of which the order may be turned; from one normalisation to another."""

    scale: Tensor
    shift: Tensor

    def __init__(self, ours: Preprocessing, its: Preprocessing) -> None:
        super().__init__()
        self.turned = ours.channels == 3 and ours.channel_order != its.channel_order
        # Means and deviations are given in the order in which their network takes the channels.
        turn = -1 if self.turned else 1
        mean, std = (torch.tensor(values[::turn], dtype=torch.float64) for values in (ours.mean, ours.std))
        its_mean, its_std = (torch.tensor(values, dtype=torch.float64) for values in (its.mean, its.std))
        self.register_buffer("scale", (std / its_std).float()[:, None, None])
        self.register_buffer("shift", ((mean - its_mean) / its_std).float()[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        turned = images.flip(1) if self.turned else images
        return turned * self.scale + self.shift


class Renormalised(nn.Module):
    """A network behind a `PixelMap`: it takes the images of another one.

    Attributes:
        pixels: The map.
        module: The network.
    """

    def __init__(self, pixels: PixelMap, module: nn.Module) -> None:
        super().__init__()
        self.pixels = pixels
        self.module = module

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.module(self.pixels(images))
        return out


def check_same_pixels(ours: Preprocessing, its: Preprocessing, who: str = "teacher") -> None:
    """Makes sure that a teacher can see the student's pixels.

    Raises:
        UserError: It takes images of another size or another number of channels.
    """
    if ours.size != its.size or ours.channels != its.channels:
        raise UserError(
            f"Student and teacher must see the same pixels, but the student takes {_shape(ours)} and the {who} "
            f"{_shape(its)}.",
            hint="build the student with the teacher's input size and number of channels",
        )


def teacher_of_our_pixels(
    module: nn.Module, its: Preprocessing, ours: Preprocessing, who: str = "teacher"
) -> tuple[nn.Module, tuple[str, ...]]:
    """The teacher as a network that takes the student's tensor, and what was decided for that.

    Args:
        module: The teacher.
        its: Its preprocessing.
        ours: The student's.
        who: Names it in sentences.

    Raises:
        UserError: It cannot see the student's pixels.
    """
    check_same_pixels(ours, its, who)
    said = []
    if (its.interpolation, its.canvas) != (ours.interpolation, ours.canvas):
        said.append(
            f"The {who} sees images that were resized and cropped as the student's are ({ours.interpolation}, "
            f"{ours.crop_fraction:g} of the canvas), not as its own were ({its.interpolation}, {its.crop_fraction:g})."
        )
    order = ours.channels == 3 and its.channel_order != ours.channel_order
    if (its.mean, its.std) == (ours.mean, ours.std) and not order:
        return module, tuple(said)
    said.append(f"The {who} sees the student's images in its own normalisation.")
    return Renormalised(PixelMap(ours, its), module), tuple(said)


def _shape(p: Preprocessing) -> str:
    return "x".join(str(size) for size in p.input_shape)
