from __future__ import annotations

from typing import Any

import pytest

from edgekd.core.preprocess import Preprocessing
from edgekd.errors import UserError


def test_the_canvas_is_the_size_before_the_last_crop() -> None:
    assert Preprocessing(size=(224, 224), crop_fraction=0.875).canvas == (256, 256)
    assert Preprocessing(size=(224, 160), crop_fraction=0.9).canvas == (248, 177)
    assert Preprocessing(size=(32, 32)).canvas == (32, 32)


def test_the_input_shape_has_the_channels_of_the_mean() -> None:
    assert Preprocessing(size=(28, 20), mean=(0.5,), std=(0.5,)).input_shape == (1, 28, 20)
    assert Preprocessing(size=(28, 20)).input_shape == (3, 28, 20)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mean": [0.5]}, "1 or 3 values, got 1 and 3"),
        ({"mean": [0.5] * 2, "std": [0.5] * 2}, "1 or 3 values, got 2 and 2"),
        ({"std": [0.1, 0.0, 0.1]}, "must be positive"),
        ({"size": [0, 8]}, "must be positive"),
        ({"crop_fraction": 0}, "greater than 0"),
        ({"crop_fraction": 1.5}, "less than or equal to 1"),
        ({"interpolation": "cubic"}, "'bicubic'"),
    ],
)
def test_what_cannot_be_applied_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        Preprocessing.parse({"size": [8, 8], **change}, "card")
    assert words in caught.value.message


def test_every_field_is_part_of_the_digest() -> None:
    base = Preprocessing(size=(8, 8))
    changes: list[dict[str, Any]] = [
        {"size": (8, 9)}, {"mean": (0.5, 0.5, 0.5)}, {"std": (0.5, 0.5, 0.5)}, {"interpolation": "bicubic"},
        {"channel_order": "BGR"}, {"crop_fraction": 0.9},
    ]  # fmt: skip
    digests = {base.digest, *(base.model_copy(update=change).digest for change in changes)}
    assert len(changes) == len(Preprocessing.model_fields)
    assert len(digests) == len(changes) + 1
