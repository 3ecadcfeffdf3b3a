"""Calibration cards: where a set of images comes from, under which licence, and how to draw samples from it.

A card is data (`calibration/*.yaml`), so that "which images was this INT8 model calibrated on?" has an answer that can
be read, reviewed and hashed. Reading the images is the business of `sources.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

import yaml
from pydantic import PrivateAttr, model_validator

from edgekd.core.schema import Schema, suggest
from edgekd.core.shipped import shipped_folder
from edgekd.data.sampling import CardSampling
from edgekd.errors import UserError


class CardSource(Schema):
    """Where the images are.

    Attributes:
        kind: `npz` or `folder` (both as `--data` takes them), or `sklearn-digits` (the set in scikit-learn).
        path: Relative to the card; not for `sklearn-digits`.
    """

    kind: Literal["npz", "folder", "sklearn-digits"]
    path: str | None = None

    @model_validator(mode="after")
    def _path_when_needed(self) -> Self:
        if (self.path is None) != (self.kind == "sklearn-digits"):
            raise ValueError("npz and folder need a path, sklearn-digits has none")
        return self


class CalibrationCard(Schema):
    """A described set of images.

    Attributes:
        name: What `--data` takes.
        description: What is to be seen, how it was made.
        licence: SPDX identifier or a sentence.
        citation: Whom to thank.
        source: Where the images are.
        sampling: Defaults for a calibration; None leaves them to it.
    """

    name: str
    description: str
    licence: str
    citation: str = ""
    source: CardSource
    sampling: CardSampling | None = None
    _folder: Path = PrivateAttr(default=Path())

    @property
    def location(self) -> Path:
        """Where the images lie.

        Raises:
            UserError: Nothing is there.
        """
        found = self._folder / (self.source.path or "")
        if not found.exists():
            raise UserError(f"Calibration card {self.name}: its images {found} do not exist.")
        return found


def load_card(name_or_path: str) -> CalibrationCard:
    """The card with this name, or in this file.

    Raises:
        UserError: No such file and no such name (the message suggests the near one), or a card that does not parse.
    """
    path = Path(name_or_path).expanduser()
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return _read(path)
    cards = {place.stem: place for place in sorted(shipped_folder("calibration").glob("*.yaml"))}
    if name_or_path not in cards:
        raise UserError(
            f"Data {name_or_path}: no such folder, file or calibration card.{suggest(name_or_path, cards)}",
            hint=f"give a folder of images, an .npz file, or one of the cards: {', '.join(cards)}",
        )
    return _read(cards[name_or_path])


def known_cards() -> tuple[CalibrationCard, ...]:
    """The shipped cards, by name."""
    return tuple(_read(path) for path in sorted(shipped_folder("calibration").glob("*.yaml")))


def _read(path: Path) -> CalibrationCard:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as err:
        raise UserError(f"{path}: not a readable YAML file ({err}).") from err
    card = CalibrationCard.parse(data, str(path))
    card._folder = path.resolve().parent
    return card
