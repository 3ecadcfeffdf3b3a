"""How calibration samples are drawn, as data: what a card may say of it, and what a data set hands on.

Drawing them is the business of `calibration.py`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from edgekd.core.schema import Schema

SamplingMethod = Literal["random", "stratified", "coverage"]


class CardSampling(Schema):
    """How many samples a calibration draws from a card's images, and how, unless the user says otherwise."""

    samples: int = Field(default=300, ge=1)
    method: SamplingMethod = "stratified"
