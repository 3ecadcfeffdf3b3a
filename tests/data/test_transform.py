from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from timm.data import create_transform

from edgekd.core.preprocess import Interpolation, Preprocessing
from edgekd.data.transform import RESAMPLING, _covering, preprocess, resize_to_canvas
from edgekd.errors import UserError


def _photo(height: int, width: int, seed: int = 0) -> Image.Image:
    """Smooth enough that a crop that is off by one pixel shows, and rough enough that a wrong filter does."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 3 + 1, width // 3 + 1, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("size", "crop_fraction"), [((32, 32), 0.875), ((28, 28), 0.9), ((32, 32), 1.0), ((24, 40), 0.8)]
)
@pytest.mark.parametrize("shape", [(61, 90), (90, 61), (83, 64), (64, 85), (20, 27), (50, 50)])
def test_both_steps_together_equal_timms_evaluation_transform(
    shape: tuple[int, int], size: tuple[int, int], crop_fraction: float, interpolation: Interpolation
) -> None:
    p = Preprocessing(size=size, crop_fraction=crop_fraction, interpolation=interpolation)
    reference = create_transform(
        (3, *size), is_training=False, interpolation=interpolation, crop_pct=crop_fraction, mean=p.mean, std=p.std
    )
    image = _photo(*shape)
    ours = preprocess(resize_to_canvas(image, p)[None], p)
    np.testing.assert_allclose(ours[0], reference(image).numpy(), atol=2e-6)


def test_a_canvas_of_the_images_own_size_keeps_every_pixel() -> None:
    image = _photo(8, 8)
    p = Preprocessing(size=(8, 8), interpolation="bicubic")
    assert np.array_equal(resize_to_canvas(image, p), np.asarray(image))


@pytest.mark.parametrize("height_first", [True, False])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
def test_pixels_do_not_depend_on_which_axis_the_installed_pillow_begins_with(
    interpolation: Interpolation, height_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    p = Preprocessing(size=(24, 24), crop_fraction=0.875, interpolation=interpolation)
    images = [_photo(200, 31), _photo(31, 200), _photo(61, 90), _photo(10, 13)]
    wanted = [resize_to_canvas(image, p) for image in images]
    one_call = Image.Image.resize
    orders = set()

    def of_another_version(image: Image.Image, size: tuple[int, int], resample: Image.Resampling) -> Image.Image:
        between = (image.width, size[1]) if height_first else (size[0], image.height)
        return one_call(one_call(image, between, resample), size, resample)

    monkeypatch.setattr(Image.Image, "resize", of_another_version)
    for image, found in zip(images, wanted, strict=True):
        assert np.array_equal(resize_to_canvas(image, p), found)
        whole = _covering(image.height, image.width, p.canvas)[::-1]
        orders.add(
            np.array_equal(
                image.resize(whole, RESAMPLING[interpolation]), one_call(image, whole, RESAMPLING[interpolation])
            )
        )
    assert False in orders  # the other order does show in one call, for one of the images at least


def test_grey_models_get_one_channel_and_colour_models_three() -> None:
    grey = Preprocessing(size=(8, 8), mean=(0.5,), std=(0.5,))
    assert resize_to_canvas(_photo(9, 9), grey).shape == (8, 8, 1)
    assert resize_to_canvas(_photo(9, 9).convert("L"), Preprocessing(size=(8, 8))).shape == (8, 8, 3)


def test_bgr_models_get_their_channels_reversed_before_normalising() -> None:
    p = Preprocessing(size=(1, 1), mean=(0.1, 0.2, 0.3), std=(1.0, 0.5, 0.25), channel_order="BGR")
    out = preprocess(np.array([[[[255, 0, 51]]]], dtype=np.uint8), p)
    np.testing.assert_allclose(out[0, :, 0, 0], [(0.2 - 0.1) / 1.0, (0.0 - 0.2) / 0.5, (1.0 - 0.3) / 0.25], rtol=1e-5)


def test_the_result_is_contiguous_float32_channels_first() -> None:
    p = Preprocessing(size=(4, 6), crop_fraction=0.5)
    out = preprocess(np.zeros((3, 8, 12, 3), dtype=np.uint8), p)
    assert (out.shape, out.dtype, out.flags.c_contiguous) == ((3, 3, 4, 6), np.float32, True)


def test_canvases_of_another_shape_are_refused_with_both_shapes() -> None:
    with pytest.raises(UserError, match=r"expected uint8 of shape \(N, 8, 8, 3\), got uint8 of shape \(2, 9, 8, 3\)"):
        preprocess(np.zeros((2, 9, 8, 3), dtype=np.uint8), Preprocessing(size=(8, 8)))
