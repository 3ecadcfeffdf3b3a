"""Images on the device become the very tensors that the model was trained on; edgekd's own are the reference."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgekd_runtime import BundleError, ImageError, Preprocessing
from PIL import Image

from edgekd.core.preprocess import Preprocessing as Reference
from edgekd.data.folder import FileImages
from edgekd.data.transform import preprocess, resize_to_canvas

COLOUR: dict[str, Any] = {"size": (24, 24), "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
GREY: dict[str, Any] = {"size": (16, 16), "mean": (0.5,), "std": (0.25,)}
CASES: dict[str, dict[str, Any]] = {
    "as timm crops": {**COLOUR, "interpolation": "bicubic", "crop_fraction": 0.875},
    "odd margins": {**COLOUR, "size": (25, 25), "interpolation": "bilinear", "crop_fraction": 0.96},
    "not square": {**COLOUR, "size": (20, 31), "interpolation": "bilinear", "crop_fraction": 0.9},
    "BGR": {**COLOUR, "channel_order": "BGR", "interpolation": "lanczos"},
    "nearest": {**COLOUR, "interpolation": "nearest"},
    "grey": GREY,
}
SIZES = ((37, 53), (53, 37), (24, 24), (10, 13), (200, 31), (31, 200), (27, 28))


def _picture(width: int, height: int, mode: str, seed: int) -> Image.Image:
    """A gradient with noise: what JPEG keeps and what it loses."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 200, width)[None, :, None] + np.linspace(0, 55, height)[:, None, None]
    pixels = np.clip(ramp + rng.normal(0, 25, (height, width, 3)), 0, 255).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """JPEGs and PNGs as cameras, web pages and scanners leave them."""
    folder = tmp_path_factory.mktemp("images")
    paths = []
    for number, (width, height) in enumerate(SIZES):
        path = folder / f"{width}x{height}.jpg"
        _picture(width, height, "RGB", number).save(path, quality=85, subsampling=number % 3)
        paths.append(path)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    _picture(40, 30, "RGB", 20).save(folder / "turned.jpg", exif=exif)
    _picture(41, 33, "L", 21).save(folder / "grey.jpg")
    _picture(41, 33, "CMYK", 22).save(folder / "cmyk.jpg")
    _picture(45, 36, "RGB", 23).save(folder / "progressive.jpg", progressive=True)
    _picture(39, 33, "RGBA", 24).save(folder / "alpha.png")
    _picture(39, 33, "P", 25).save(folder / "palette.png")
    _picture(39, 33, "LA", 26).save(folder / "grey_alpha.png")
    _picture(39, 33, "1", 27).save(folder / "bits.png")
    return sorted(folder.iterdir())


def _reference(path: Path, case: dict[str, Any]) -> np.ndarray:
    p = Reference(**case)
    return preprocess(resize_to_canvas(FileImages([path]).open(0), p)[None], p)


@pytest.mark.parametrize("name", CASES)
def test_files_give_the_very_tensors_of_training(name: str, files: list[Path]) -> None:
    ours = Preprocessing.parse(Reference(**CASES[name]).plain())
    for path in files:
        wanted = _reference(path, CASES[name])
        for image in (path, str(path), path.read_bytes(), Image.open(path)):
            found = ours(image)
            assert found.dtype == np.float32
            assert found.flags.c_contiguous
            assert np.array_equal(found, wanted), path.name


@pytest.mark.parametrize("name", CASES)
def test_pixels_give_the_same_without_pillow(name: str, files: list[Path]) -> None:
    ours = Preprocessing.parse(Reference(**CASES[name]).plain())
    for path in files:
        image = FileImages([path]).open(0)
        if image.mode in ("RGB", "L"):
            assert np.array_equal(ours(np.asarray(image)), _reference(path, CASES[name])), path.name


@pytest.mark.parametrize("height_first", [True, False])
def test_every_order_of_passes_that_a_pillow_may_take_gives_the_same(
    height_first: bool, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES["as timm crops"]
    ours = Preprocessing.parse(Reference(**case).plain())
    wanted = [ours(path) for path in files]
    one_call = Image.Image.resize

    def resize(image: Image.Image, size: tuple[int, int], resample: Image.Resampling) -> Image.Image:
        between = (image.width, size[1]) if height_first else (size[0], image.height)
        return one_call(one_call(image, between, resample), size, resample)

    monkeypatch.setattr(Image.Image, "resize", resize)
    for path, tensor in zip(files, wanted, strict=True):
        assert np.array_equal(ours(path), tensor), path.name
        assert np.array_equal(_reference(path, case), tensor), path.name


def test_the_comparison_can_fail(files: list[Path]) -> None:
    other = Preprocessing.parse(Reference(**{**COLOUR, "interpolation": "bilinear"}).plain())
    assert not np.array_equal(other(files[0]), _reference(files[0], {**COLOUR, "interpolation": "bicubic"}))


def test_alpha_is_dropped_and_grey_is_spread() -> None:
    rng = np.random.default_rng(0)
    ours = Preprocessing(size=(8, 8), mean=(0.5,) * 3, std=(0.5,) * 3)
    pixels = rng.integers(0, 256, (8, 8, 4), dtype=np.uint8)
    assert np.array_equal(ours(pixels), ours(np.ascontiguousarray(pixels[..., :3])))
    assert np.array_equal(ours(pixels[..., 0]), ours(np.repeat(pixels[..., :1], 3, axis=2)))


def test_colour_becomes_grey_as_in_pillow() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    grey = Preprocessing(size=(16, 16), mean=(0.5,), std=(0.25,))
    assert np.array_equal(grey(pixels), grey(Image.fromarray(pixels)))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((8, 8, 3), dtype=np.float32), r"uint8 RGB, or grey, got float32"),
        (np.zeros((2, 8, 8, 3), dtype=np.uint8), r"a list is a batch"),
        (np.zeros((0, 8, 3), dtype=np.uint8), "at least one pixel"),
        (np.zeros((8, 8, 2), dtype=np.uint8), r"shape \(8, 8, 2\)"),
        (Image.new("F", (8, 8)), "8 bits per channel, got an image of mode F"),
        (Image.new("I;16", (8, 8)), "mode I;16"),
        (b"no image", "8 bytes: cannot be read as an image"),
        ("/nowhere/image.jpg", "there is no such file"),
        (7, "got int"),
    ],
)
def test_what_is_no_image_is_refused(image: Any, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        Preprocessing(**COLOUR)(image)


def test_a_file_that_was_cut_off_is_refused(files: list[Path]) -> None:
    content = next(path for path in files if path.suffix == ".jpg").read_bytes()
    with pytest.raises(ImageError, match="cannot be read"):
        Preprocessing(**COLOUR)(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gamma": 2.2}, "steps that this version does not know: gamma"),
        ({"interpolation": "area"}, "makes no sense"),
        ({"std": [0.2, 0.2, 0.0]}, "makes no sense"),
        ({"mean": [0.5, 0.5]}, "makes no sense"),
        ({"mean": [0.5, 0.5, float("nan")]}, "makes no sense"),
        ({"size": 224}, "incomplete: TypeError"),
    ],
)
def test_preprocessing_that_is_not_understood_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        Preprocessing.parse({**Reference(**COLOUR).plain(), **change})


def test_bytes_of_a_png_from_memory() -> None:
    image = _picture(30, 30, "RGB", 3)
    out = io.BytesIO()
    image.save(out, "PNG")
    ours = Preprocessing(**COLOUR)
    assert np.array_equal(ours(out.getvalue()), ours(np.asarray(image)))
