from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgekd.core.blobs import FolderBlobs
from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.preprocess import Preprocessing
from edgekd.errors import UserError
from edgekd.runtimes.samples import Samples, bundle_from_samples, random_images, samples_from_bundle

P = Preprocessing(size=(8, 8), mean=(0.5,) * 3, std=(0.5,) * 3)


def make(folder: Path, samples: Samples) -> tuple[ModelBundle, FolderBlobs]:
    blobs = FolderBlobs(folder / "blobs")
    bundle = bundle_from_samples(samples, preprocessing=P, source="a test", blobs=blobs, scratch=folder)
    return bundle, blobs


def test_samples_come_back_as_they_were(tmp_path: Path) -> None:
    images = random_images((3, 8, 8), samples=5, seed=0)
    bundle, blobs = make(tmp_path, Samples(images, np.arange(5), "synthetic"))
    found = samples_from_bundle(bundle, blobs, preprocessing=P)
    np.testing.assert_array_equal(found.images, images)
    np.testing.assert_array_equal(found.labels, np.arange(5))
    assert found.origin == "synthetic"
    assert bundle.kind is BundleKind.DATA
    assert bundle.tags["samples"] == 5


def test_equal_samples_give_equal_content(tmp_path: Path) -> None:
    images = random_images((3, 8, 8), samples=2, seed=0)
    one, _ = make(tmp_path, Samples(images, None, "real"))
    two, _ = make(tmp_path, Samples(images.copy(), None, "real"))
    assert one.content == two.content


def test_samples_of_another_preprocessing_are_refused(tmp_path: Path) -> None:
    bundle, blobs = make(tmp_path, Samples(random_images((3, 8, 8), samples=2, seed=0), None, "real"))
    other = Preprocessing(size=(8, 8), mean=(0.4,) * 3, std=(0.5,) * 3)
    with pytest.raises(UserError, match="preprocessed for another model"):
        samples_from_bundle(bundle, blobs, preprocessing=other)


def test_images_of_another_shape_are_refused(tmp_path: Path) -> None:
    bundle, blobs = make(tmp_path, Samples(random_images((3, 4, 4), samples=2, seed=0), None, "real"))
    with pytest.raises(UserError, match="must be float32 images"):
        samples_from_bundle(bundle, blobs, preprocessing=P)


def test_a_file_that_is_not_safetensors_is_refused(tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path / "blobs")
    path = tmp_path / "junk"
    path.write_bytes(b"junk that is long enough to have a header")
    bundle = ModelBundle(
        kind=BundleKind.DATA, files={"samples.safetensors": blobs.add(path)}, tags={"preprocessing": P.digest}
    )
    with pytest.raises(UserError, match="holds no samples"):
        samples_from_bundle(bundle, blobs, preprocessing=P)
