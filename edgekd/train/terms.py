"""The terms of a distillation loss in a recipe: which objectives, how heavy, and when."""

from __future__ import annotations

import math
from typing import Literal, Self

from pydantic import Field, JsonValue, model_validator

from edgekd.core.schema import Schema
from edgekd.errors import UserError
from edgekd.train.signal import Progress

Curve = Literal["linear", "cosine"]


class TermConfig(Schema):
    """One objective of a weighted sum.

    Its weight in an epoch is `weight`, faded in linearly over `warmup_epochs`; with a `final_weight` it moves from the
    one to the other between `from_epoch` and `until_epoch`, step by step along `curve`. Outside of these epochs the
    term is left out and costs nothing.

    Attributes:
        name: The objective.
        weight: None takes the objective's own (`Objective.default_weights`).
        args: The objective's arguments.
        warmup_epochs: From `from_epoch` on; None takes the objective's own share of all epochs.
        from_epoch: First epoch of the term, counted from 0.
        until_epoch: First epoch without it; None is the end of the training.
        final_weight: Where the weight ends; None keeps it constant.
        curve: How it gets there.
    """

    name: str
    weight: float | None = Field(default=None, ge=0)
    args: dict[str, JsonValue] = Field(default_factory=dict)
    warmup_epochs: int | None = Field(default=None, ge=0)
    from_epoch: int = Field(default=0, ge=0)
    until_epoch: int | None = Field(default=None, ge=1)
    final_weight: float | None = Field(default=None, ge=0)
    curve: Curve = "linear"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.until_epoch is not None and self.until_epoch <= self.from_epoch:
            raise ValueError(f"until_epoch ({self.until_epoch}) must be greater than from_epoch ({self.from_epoch})")
        if self.final_weight is not None and self.weight is None:
            raise ValueError("final_weight needs a weight to start from")
        if self.curve != "linear" and self.final_weight is None:
            raise ValueError("curve says how the weight gets to final_weight, which is not given")
        return self


def terms_from_text(text: str) -> tuple[TermConfig, ...]:
    """The sum that a text spells: `kd`, or `kd:0.5+dist:1`; a name without a weight takes the objective's own.

    Raises:
        UserError: A part without a name, or a weight that is no number of at least 0.
    """
    found = []
    for part in text.split("+"):
        name, colon, weight = (piece.strip() for piece in part.partition(":"))
        try:
            value = float(weight) if colon else None
        except ValueError:
            value = math.nan
        if not name or (value is not None and not (value >= 0 and math.isfinite(value))):
            raise UserError(
                f"The objective {text!r}: {part.strip()!r} is not NAME or NAME:WEIGHT with a weight of at least 0.",
                hint="--objective kd, or a weighted sum: --objective kd:0.5+dist:1; `edgekd objectives` lists names",
            )
        found.append(TermConfig(name=name, weight=value))
    return tuple(found)


class WeightSchedule(Schema):
    """The weight of a term as a function of progress, with everything decided.

    Attributes:
        weight: At `from_epoch`, once faded in.
        final_weight: At `until_epoch`; equal to `weight` for a constant one.
        curve: From the one to the other.
        from_epoch: First epoch of the term.
        until_epoch: First epoch without it.
        warmup_epochs: Epochs of the fade-in.
    """

    weight: float
    final_weight: float
    curve: Curve
    from_epoch: int
    until_epoch: int
    warmup_epochs: int

    def at(self, step: int, steps_per_epoch: int) -> float:
        """The weight in a step, counted from 0 over the whole training; 0 outside of the term's epochs."""
        epoch = step // steps_per_epoch
        if not self.from_epoch <= epoch < self.until_epoch:
            return 0.0
        part = (step / steps_per_epoch - self.from_epoch) / (self.until_epoch - self.from_epoch)
        moved = part if self.curve == "linear" else 0.5 * (1 - math.cos(math.pi * part))
        fade = min(1.0, (epoch - self.from_epoch + 1) / self.warmup_epochs) if self.warmup_epochs else 1.0
        return fade * (self.weight + (self.final_weight - self.weight) * moved)

    def progress(self, step: int, steps_per_epoch: int) -> Progress | None:
        """Where the term stands in its own epochs, in a step counted from 0 over the whole training; None outside."""
        epoch = step // steps_per_epoch
        if not self.from_epoch <= epoch < self.until_epoch:
            return None
        epochs = self.until_epoch - self.from_epoch
        return Progress(
            step=step - self.from_epoch * steps_per_epoch,
            steps=epochs * steps_per_epoch,
            epoch=epoch - self.from_epoch,
            epochs=epochs,
        )

    def amount(self) -> str:
        """How heavy: `0.9`, or `(1 to 0, cosine)`."""
        said = f"{self.weight:g}"
        return said if self.final_weight == self.weight else f"({said} to {self.final_weight:g}, {self.curve})"

    def timing(self, epochs: int) -> str:
        """When, in a training of so many epochs: `, faded in over 5 epochs, up to epoch 30`; empty for all the time."""
        said = f", faded in over {self.warmup_epochs} epochs" if self.warmup_epochs else ""
        said += f", from epoch {self.from_epoch + 1}" if self.from_epoch else ""
        return said + (f", up to epoch {self.until_epoch}" if self.until_epoch < epochs else "")
