"""DATA bundles: preprocessed images that calibrate, compare and probe a model, bound to their preprocessing.

The file is safetensors, so reading one cannot run code, and it holds exactly what a session is fed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from edgekd.core.blobs import Blobs, disk_errors
from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.preprocess import Preprocessing
from edgekd.errors import UserError
from edgekd.runtimes.session import FloatArray

SAMPLES_FILE = "samples.safetensors"
Origin = Literal["real", "synthetic"]


class Samples(NamedTuple):
    """Images ready for a session.

    Attributes:
        images: (N, C, H, W) float32, preprocessed.
        labels: (N,) int64, or None.
        origin: `real`, or `synthetic` when made from a model's statistics.
    """

    images: FloatArray
    labels: NDArray[np.int64] | None
    origin: Origin


def bundle_from_samples(
    samples: Samples, *, preprocessing: Preprocessing, source: str, blobs: Blobs, scratch: Path
) -> ModelBundle:
    """A DATA bundle that names its preprocessing by digest.

    Args:
        samples: At least one image, all finite.
        preprocessing: What was applied to the images.
        source: Where they come from, one sentence for the report.
        blobs: Takes the file.
        scratch: Holds the file while it is written.
    """
    tensors: dict[str, NDArray[Any]] = {"images": np.ascontiguousarray(samples.images)}
    if samples.labels is not None:
        tensors["labels"] = np.ascontiguousarray(samples.labels)
    path = scratch / SAMPLES_FILE
    with disk_errors(path):
        save_file(tensors, path)
        found = blobs.add(path)
        path.unlink()
    return ModelBundle(
        kind=BundleKind.DATA,
        files={SAMPLES_FILE: found},
        tags={
            "preprocessing": preprocessing.digest,
            "origin": samples.origin,
            "source": source,
            "samples": len(samples.images),
        },
    )


def samples_from_bundle(bundle: ModelBundle, blobs: Blobs, *, preprocessing: Preprocessing) -> Samples:
    """The samples of a DATA bundle, for a model with this preprocessing.

    Raises:
        UserError: The samples were preprocessed for another model, or the file holds no images.
    """
    if bundle.tags.get("preprocessing") != preprocessing.digest:
        raise UserError(
            f"The samples ({bundle.tags.get('source')}) were preprocessed for another model: their preprocessing has "
            f"the digest {str(bundle.tags.get('preprocessing'))[:12]}, the model's has {preprocessing.digest[:12]}.",
            hint="make calibration samples for this model; ranges found on other pixels are wrong",
        )
    tensors = _tensors(blobs.path(bundle.file(SAMPLES_FILE)))
    images = tensors.get("images")
    if images is None or images.dtype != np.float32 or images.shape[1:] != preprocessing.input_shape or not len(images):
        found = "none" if images is None else f"{images.dtype} of shape {images.shape}"
        raise UserError(f"Samples must be float32 images (N, {preprocessing.input_shape}), N >= 1; got {found}.")
    return Samples(images, tensors.get("labels"), "synthetic" if bundle.tags.get("origin") == "synthetic" else "real")


def random_images(shape: tuple[int, int, int], *, samples: int, seed: int) -> FloatArray:
    """(N, C, H, W) float32 standard normal noise: stands in where a check has no samples, and says nothing of accuracy.

    Args:
        shape: (C, H, W).
        samples: N.
        seed: Equal seeds give equal images.
    """
    return np.random.default_rng(seed).standard_normal((samples, *shape), dtype=np.float32)


def _tensors(path: Path) -> Mapping[str, NDArray[Any]]:
    try:
        return load_file(path)
    except SafetensorError as err:
        raise UserError(f"{path} holds no samples: {err}") from err
