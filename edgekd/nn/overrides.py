"""What a user says of a model's preprocessing, when it is not all of it: the rest stays the architecture's own."""

from __future__ import annotations

from typing import Any, Literal

from edgekd.core.preprocess import Interpolation, Preprocessing
from edgekd.core.schema import Schema
from edgekd.errors import UserError


class PreprocessingOverrides(Schema):
    """Values that come before the architecture's own; None leaves its own. The size is the input shape's business.

    Attributes:
        mean: Per channel, of pixels scaled to [0, 1].
        std: Per channel.
        interpolation: How an image is resized.
        channel_order: Order of the three channels the network expects.
        crop_fraction: Input size over resized size.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: Interpolation | None = None
    channel_order: Literal["RGB", "BGR"] | None = None
    crop_fraction: float | None = None

    @property
    def given(self) -> dict[str, Any]:
        """The values that are not None, by field of `Preprocessing`."""
        return {name: value for name, value in self if value is not None}

    def applied(self, known: Preprocessing) -> Preprocessing:
        """`known` with the given values in the place of its own.

        Raises:
            UserError: A mean or std for another number of channels, or a value that no preprocessing has.
        """
        for name in ("mean", "std"):
            values = self.given.get(name)
            if values is not None and len(values) != known.channels:
                raise UserError(
                    f"The model takes images of {known.channels} channels, but {name} has {len(values)} values.",
                    hint=f"give one value per channel: --{name} {','.join(['0.5'] * known.channels)}",
                )
        return Preprocessing.parse({**known.plain(), **self.given}, "the preprocessing given")
