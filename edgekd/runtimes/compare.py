"""How far two answers of a model lie apart: parity after an export, loss after a quantization."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from pydantic import Field

from edgekd.core.schema import Schema
from edgekd.runtimes.session import FloatArray, Session

MAX_SQNR_DB = 200.0
"""Stands for "no noise at all", which has no finite value in decibels."""


class Comparison(Schema):
    """Two sets of logits (N, K), the reference first.

    Attributes:
        n: Images compared.
        max_abs: Largest absolute difference.
        mean_abs: Mean absolute difference.
        spread: Standard deviation of the reference's logits: what the differences are to be seen against.
        cosine: Smallest cosine similarity of any image's logits.
        sqnr_db: Signal to noise in decibels, 10 log10(sum ref^2 / sum (ref - other)^2), at most 200.
        agreement: Share of images with the same top-1 class, in [0, 1].
    """

    n: int = Field(ge=1)
    max_abs: float
    mean_abs: float
    spread: float
    cosine: float
    sqnr_db: float
    agreement: float = Field(ge=0, le=1)


def compare_logits(reference: FloatArray, other: FloatArray) -> Comparison:
    """The comparison of two finite arrays of one shape (N, K)."""
    ref, got = reference.astype(np.float64), other.astype(np.float64)
    noise = got - ref
    signal_energy, noise_energy = float((ref**2).sum()), float((noise**2).sum())
    norms = np.linalg.norm(ref, axis=1) * np.linalg.norm(got, axis=1)
    same_direction = np.where(norms > 0, (ref * got).sum(axis=1) / np.maximum(norms, 1e-300), 1.0)
    sqnr_db = MAX_SQNR_DB
    if noise_energy > 0:
        sqnr_db = min(10 * float(np.log10(max(signal_energy, 1e-300) / noise_energy)), MAX_SQNR_DB)
    return Comparison(
        n=len(ref),
        max_abs=float(np.abs(noise).max()),
        mean_abs=float(np.abs(noise).mean()),
        spread=float(ref.std()),
        cosine=float(same_direction.min()),
        sqnr_db=sqnr_db,
        agreement=float((ref.argmax(axis=1) == got.argmax(axis=1)).mean()),
    )


def logits_of(session: Session, images: FloatArray, *, batch: int = 32) -> FloatArray:
    """(N, K) float32: the session's first output for all images, computed in batches.

    Args:
        session: Opened with a dynamic batch.
        images: (N, C, H, W), N >= 1.
        batch: Images per call.
    """
    (name,) = session.input_names
    return np.concatenate([next(iter(session.infer({name: part}).values())) for part in batches(images, batch)])


def batches(images: FloatArray, batch: int) -> Iterator[FloatArray]:
    """Consecutive parts of at most `batch` images."""
    for start in range(0, len(images), batch):
        yield np.ascontiguousarray(images[start : start + batch])
