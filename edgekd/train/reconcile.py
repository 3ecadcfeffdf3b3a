"""A teacher that was trained with another normalisation, or counts the classes in another order, and its student.

Both normalisations are affine per channel, so one map leads from the student's tensor to the teacher's: the images are
read, resized, cropped and augmented once, and both networks see the same pixels. What would need other pixels (another
size, grey instead of colour) is refused. Logits are turned into the student's order by the names of the classes; other
classes are refused.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edgekd.core.bundle import ModelBundle
from edgekd.core.preprocess import Preprocessing
from edgekd.core.recipe import ModelRecipe
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


class Reconciled(nn.Module):
    """A network that takes the images of another one and answers in the order of its classes.

    Attributes:
        module: The network.
        pixels: Before it; None for images that are normalised alike.
        order: (K,) int64, where each class of the other one stands in its own logits; None for the same order.
    """

    order: Tensor | None

    def __init__(
        self, module: nn.Module, *, pixels: PixelMap | None = None, order: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        self.module = module
        self.pixels = pixels
        self.register_buffer("order", None if order is None else torch.tensor(order), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.module(images if self.pixels is None else self.pixels(images))
        return logits if self.order is None else logits[:, self.order]


def order_of(network: nn.Module) -> list[list[int]]:
    """The orders that `Reconciled` networks in it turn logits by; no weights, but a training depends on them."""
    found = (module.order for module in network.modules() if isinstance(module, Reconciled))
    return [order.tolist() for order in found if order is not None]


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


def check_same_classes(student: ModelBundle, teacher: ModelBundle, who: str = "teacher") -> None:
    """Makes sure that both tell the same classes apart, in whichever order; reads no weights.

    Raises:
        UserError: Another number of logits, or other names.
    """
    ours, its = (bundle.outputs[0].shape[-1] for bundle in (student, teacher))
    if isinstance(ours, int) and isinstance(its, int) and ours != its:
        raise UserError(
            f"The student has {ours} classes and the {who} {its}: their logits cannot be compared.",
            hint="give the student as many outputs as the teacher has",
        )
    class_order(teacher.model.labels, student.model.labels, who)


def class_order(
    its: Sequence[str], ours: Sequence[str], who: str = "teacher", we: str = "student"
) -> tuple[int, ...] | None:
    """Where each of our classes stands in its logits; None for the same order, or where one has no names.

    Numbers from 0 on beside names are none: they say the positions of logits.

    Args:
        its: Names of the teacher's classes, in the order of its logits; may be empty.
        ours: The same of the student.
        who: Names the teacher in messages.
        we: Names the student.

    Raises:
        UserError: Other names, or names that stand for two classes.
    """
    same = set(its) == set(ours)
    if tuple(its) == tuple(ours) or not its or not ours or (not same and (numbered(its) or numbered(ours))):
        return None
    if not same or len(its) != len(ours):
        unknown = sorted(set(ours) - set(its))
        examples = ", ".join(repr(name) for name in unknown[:3])
        raise UserError(
            f"The {we} and the {who} name other classes: {len(unknown)} of the {we}'s {len(ours)} are none of the "
            f"{who}'s {len(its)}" + (f", such as {examples}." if unknown else "."),
            hint="choose a teacher of the same classes; where only the names differ, rename the class folders, or "
            "package one of the two with the other's names (--labels, beside the weights it was made from)",
        )
    if len(set(its)) < len(its):
        raise UserError(
            f"The {we} and the {who} list their classes in another order, and some names stand for two of them.",
            hint="give both the same order, or each class a name of its own (--labels, beside the weights)",
        )
    place = {name: number for number, name in enumerate(its)}
    return tuple(place[name] for name in ours)


def numbered(names: Sequence[str]) -> bool:
    """Whether these are the positions of logits, and no names: 0, 1, 2 ..., or nothing at all."""
    return list(names) == [str(number) for number in range(len(names))]


def reconciled(module: nn.Module, its: ModelRecipe, ours: ModelRecipe, who: str = "teacher") -> nn.Module:
    """The teacher as a network of the student's tensor and the student's classes; itself where nothing differs.

    Args:
        module: The teacher.
        its: What it takes, and its classes.
        ours: The student's.
        who: Names it in messages.

    Raises:
        UserError: It cannot see the student's pixels, or tells other classes apart.
    """
    check_same_pixels(ours.preprocessing, its.preprocessing, who)
    renormalises = _renormalises(its.preprocessing, ours.preprocessing)
    pixels = PixelMap(ours.preprocessing, its.preprocessing) if renormalises else None
    order = class_order(its.labels, ours.labels, who)
    return module if pixels is None and order is None else Reconciled(module, pixels=pixels, order=order)


def reconciliation(teacher: ModelRecipe, student: ModelRecipe, who: str = "teacher") -> tuple[str, ...]:
    """What is to be said of a teacher that sees the student's pixels; empty where nothing differs."""
    said = []
    if class_order(teacher.labels, student.labels, who) is not None:
        said.append(f"The {who} lists its classes in another order: its logits are turned into the student's, by name.")
    its, ours = teacher.preprocessing, student.preprocessing
    if (its.interpolation, its.canvas) != (ours.interpolation, ours.canvas):
        said.append(
            f"The {who} sees images that were resized and cropped as the student's are ({ours.interpolation}, "
            f"{ours.crop_fraction:g} of the canvas), not as its own were ({its.interpolation}, {its.crop_fraction:g})."
        )
    if _renormalises(its, ours):
        said.append(f"The {who} sees the student's images in its own normalisation.")
    return tuple(said)


def _renormalises(its: Preprocessing, ours: Preprocessing) -> bool:
    turned = ours.channels == 3 and its.channel_order != ours.channel_order
    return turned or (its.mean, its.std) != (ours.mean, ours.std)


def _shape(p: Preprocessing) -> str:
    return "x".join(str(size) for size in p.input_shape)
