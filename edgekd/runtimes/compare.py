"""How far two answers of a model lie apart: parity after an export, loss after a quantization."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from edgekd.core.schema import Schema
from edgekd.errors import UserError
from edgekd.runtimes.session import FloatArray, Session

MAX_SQNR_DB = 200.0
"""Stands for "no noise at all", which has no finite value in decibels."""
BLOCK = 1 << 20
"""Values that are compared at a time."""
NEAR_DB = 20.0
"""Signal to noise from which an image's outputs count as near the reference's: an error of a tenth of their size."""


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


class Tolerance(Schema):
    """How far values may lie apart: |a - ref| <= atol * std(ref) + rtol * |ref|, element by element.

    Attributes:
        atol: Relative to the spread of the reference, so that one value serves logits of any scale.
        rtol: Relative to each element.
    """

    atol: float
    rtol: float

    def holds(self, reference: FloatArray, other: FloatArray) -> bool:
        """Whether all elements are finite and near; the shapes must hold the same number of elements."""
        ref, got = reference.ravel(), other.ravel()
        allowed = self.atol * float(ref.std()) + self.rtol * np.abs(ref)
        return bool(np.isfinite(got).all() and (np.abs(got - ref) <= allowed).all())


class OutputComparison(Schema):
    """All outputs of a model for the same images, against the reference's; the worst output counts.

    Attributes:
        n: Images compared.
        max_error: Largest absolute difference, in standard deviations of the reference's output.
        sqnr_db: Signal to noise in decibels, as in `Comparison`.
        alike: Share of images answered as the reference does, in [0, 1].
        alike_means: `top1`: the same class of a classifier. `outputs`: every output of the image within `NEAR_DB`.
    """

    n: int = Field(ge=1)
    max_error: float
    sqnr_db: float
    alike: float = Field(ge=0, le=1)
    alike_means: Literal["top1", "outputs"]


def compare_outputs(
    reference: Mapping[str, NDArray[np.floating]], other: Mapping[str, NDArray[np.floating]]
) -> OutputComparison:
    """The comparison of two sets of finite outputs, (N, ...) each, matched in their order: engines rename outputs.

    Raises:
        UserError: Another number of outputs, or another shape.
    """
    pairs = list(zip(reference.items(), other.items(), strict=False))
    if len(reference) != len(other) or any(ref.shape != got.shape for (_, ref), (_, got) in pairs):
        shapes = [", ".join(f"{name} {value.shape}" for name, value in side.items()) for side in (reference, other)]
        raise UserError(f"The outputs differ in number or shape: the reference gives {shapes[0]}, this {shapes[1]}.")
    n = len(next(iter(reference.values())))
    found = [_differences(ref.reshape(n, -1), got.reshape(n, -1)) for (_, ref), (_, got) in pairs]
    classes = is_classification(reference)
    if classes:
        (((_, ref), (_, got)),) = pairs
        alike = ref.argmax(axis=1) == got.argmax(axis=1)
    else:
        alike = np.all([_sqnr_db(each.signal, each.noise) >= NEAR_DB for each in found], axis=0)
    return OutputComparison(
        n=n,
        max_error=max(each.max_abs / (each.spread or 1.0) for each in found),
        sqnr_db=min(float(_sqnr_db(each.signal.sum(), each.noise.sum())) for each in found),
        alike=float(alike.mean()),
        alike_means="top1" if classes else "outputs",
    )


def is_classification(outputs: Mapping[str, NDArray[np.floating]]) -> bool:
    """Whether outputs are logits (N, K) of a classifier: one output, two axes, K >= 2."""
    shapes = [value.shape for value in outputs.values()]
    return len(shapes) == 1 and len(shapes[0]) == 2 and shapes[0][1] >= 2


class _Differences(NamedTuple):
    """Sums of squares by image, (N,), of the reference and of the difference; its largest value; the reference's
    standard deviation."""

    signal: NDArray[np.float64]
    noise: NDArray[np.float64]
    max_abs: float
    spread: float


def _differences(ref: NDArray[np.floating], got: NDArray[np.floating]) -> _Differences:
    """Of (N, ...) arrays, in float64, a few images at a time: outputs of a segmentation are gigabytes."""
    mean, rows = float(ref.mean(dtype=np.float64)), max(1, BLOCK // max(1, ref.shape[1]))
    signal, noise, deviation, max_abs = [], [], 0.0, 0.0
    for at in range(0, len(ref), rows):
        one = ref[at : at + rows].astype(np.float64)
        difference = got[at : at + rows].astype(np.float64) - one
        signal.append((one**2).sum(axis=1))
        noise.append((difference**2).sum(axis=1))
        deviation += float(((one - mean) ** 2).sum())
        max_abs = max(max_abs, float(np.abs(difference).max(initial=0.0)))
    return _Differences(np.concatenate(signal), np.concatenate(noise), max_abs, math.sqrt(deviation / max(1, ref.size)))


def _sqnr_db(signal: NDArray[np.float64], noise: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(divide="ignore"):
        found = 10 * np.log10(np.maximum(signal, 1e-300) / np.maximum(noise, 1e-300))
    return np.where(noise > 0, np.minimum(found, MAX_SQNR_DB), MAX_SQNR_DB)


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
