from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from edgekd.core.preprocess import Preprocessing
from edgekd.data.augment import Augment, augmented
from edgekd.data.transform import preprocess
from edgekd.errors import UserError

SIZE = 12
P = Preprocessing(size=(SIZE, SIZE), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
PHOTO = Preprocessing(size=(SIZE, SIZE), crop_fraction=0.75)
IDS = np.arange(32, dtype=np.int64)
KINDS = [
    (Augment(pad_px=2, flip=True), P),
    (Augment(flip=True), P),
    (Augment(crop_scale_min=0.3, flip=True), PHOTO),
    (Augment(pad_px=3), PHOTO),
]


def _canvases(p: Preprocessing, n: int = 32) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (n, *p.canvas, 3), dtype=np.uint8)


@pytest.mark.parametrize(("augment", "p"), KINDS)
def test_a_sample_looks_the_same_in_any_batch_and_any_order(augment: Augment, p: Preprocessing) -> None:
    images = _canvases(p)
    whole = augmented(images, IDS, 3, p, augment, seed=5)
    order = np.random.default_rng(0).permutation(32)
    assert np.array_equal(augmented(images[order], IDS[order], 3, p, augment, seed=5), whole[order])
    assert np.array_equal(augmented(images[7:8], IDS[7:8], 3, p, augment, seed=5), whole[7:8])


@pytest.mark.parametrize(("augment", "p"), KINDS)
def test_another_view_or_seed_gives_other_pixels(augment: Augment, p: Preprocessing) -> None:
    images = _canvases(p)
    base = augmented(images, IDS, 0, p, augment, seed=5)
    assert not np.array_equal(base, augmented(images, IDS, 1, p, augment, seed=5))
    assert not np.array_equal(base, augmented(images, IDS, 0, p, augment, seed=6))


def test_without_any_augmentation_it_is_the_evaluation_transform() -> None:
    images = _canvases(PHOTO)
    assert np.array_equal(augmented(images, IDS, 4, PHOTO, Augment(), seed=1), preprocess(images, PHOTO))


def test_every_shifted_crop_is_a_window_of_the_zero_padded_image() -> None:
    images = _canvases(P)
    views = augmented(images, IDS, 0, P, Augment(pad_px=2), seed=0)
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
    offsets = set()
    for sample, view in zip(padded, views, strict=True):
        matches = [
            (top, left)
            for top in range(5)
            for left in range(5)
            if np.allclose(preprocess(sample[None, top : top + SIZE, left : left + SIZE], P)[0], view, atol=1e-6)
        ]
        assert len(matches) == 1
        offsets.update(matches)
    assert len(offsets) > 10


def test_half_of_the_images_are_mirrored() -> None:
    images = np.repeat(_canvases(P, 1), 400, axis=0)
    views = augmented(images, np.arange(400), 0, P, Augment(flip=True), seed=0)
    plain = preprocess(images[:1], P)[0]
    mirrored = sum(np.array_equal(view, plain[:, :, ::-1]) for view in views)
    assert mirrored + sum(np.array_equal(view, plain) for view in views) == 400
    assert 160 < mirrored < 240


def test_a_resized_crop_of_a_ramp_is_a_ramp_of_the_boxs_slope() -> None:
    ramp = np.broadcast_to(np.arange(32, dtype=np.uint8)[None, :, None] * 8, (32, 32, 3))
    p = Preprocessing(size=(32, 32), mean=(0.0,) * 3, std=(1.0,) * 3)
    for sample in range(20):
        out = augmented(ramp[None].copy(), np.array([sample]), 0, p, Augment(crop_scale_min=0.25), seed=0) * 255
        slope = np.diff(out[0, 0, 8, 3:-3])
        assert np.ptp(slope) <= 1.01  # rounding to uint8
        assert 8 * np.sqrt(0.25 * 0.75) - 0.3 < slope.mean() <= 8.1


def test_resized_crops_work_on_grey_images() -> None:
    p = Preprocessing(size=(8, 8), mean=(0.5,), std=(0.5,))
    images = np.full((3, 8, 8, 1), 51, dtype=np.uint8)
    out = augmented(images, np.arange(3), 0, p, Augment(crop_scale_min=0.5), seed=0)
    np.testing.assert_allclose(out, np.full((3, 1, 8, 8), -0.6), atol=1e-6)


def test_resized_crops_stay_inside_the_range_of_their_image() -> None:
    images = _canvases(PHOTO)
    raw = Preprocessing(size=(SIZE, SIZE), crop_fraction=0.75, mean=(0.0,) * 3, std=(1.0,) * 3)
    out = augmented(images, IDS, 2, raw, Augment(crop_scale_min=0.08), seed=3)
    assert out.min() >= 0
    assert out.max() <= 1 + 1e-6


def test_views_repeat_when_their_number_is_limited() -> None:
    assert [Augment(views=3).view(epoch) for epoch in range(5)] == [0, 1, 2, 0, 1]
    assert Augment().view(7) == 7


def test_both_kinds_of_crop_at_once_are_refused() -> None:
    with pytest.raises(ValidationError, match="choose one of pad_px"):
        Augment(pad_px=4, crop_scale_min=0.5)


def test_ids_that_do_not_belong_to_the_images_are_refused() -> None:
    with pytest.raises(UserError, match=r"Sample ids: expected shape \(32,\), got \(31,\)"):
        augmented(_canvases(P), IDS[:31], 0, P, Augment(), seed=0)
