"""How far the pixels and the answers of a deployed model are from training's, for each way to decode and to resize.

    python benchmarks/preprocessing.py DATA --out benchmarks/results/preprocessing.json [--images 200]

DATA holds `weights/` (models.py, NAME.json, NAME.pt) and `imagenet-sample/` (index.csv, JPEGs). The reference is
edgekd's own preprocessing, with which models are trained, calibrated and measured: Pillow decodes and resizes. Each row
changes one thing. Pixels are compared on the crop that enters the network, 8 bits; answers by the class that FP32 gives
in ONNX Runtime. Rows with OpenCV need `opencv-python-headless`, which edgekd does not; they are left out where it is
missing. Nothing is timed: what a step costs belongs to the device.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import io
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from PIL import Image, features
from torch.nn import functional

from edgekd.core.preprocess import Preprocessing
from edgekd.data.transform import RESAMPLING, resize_to_canvas
from edgekd.nn.onnx import onnx_from_module
from edgekd.profiling.environment import machine

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "runtime"))

from edgekd_runtime.preprocess import Preprocessing as Deployed
from edgekd_runtime.preprocess import covering

try:
    import cv2
except ImportError:
    cv2 = None

Pixels = npt.NDArray[np.uint8]
Way = Callable[[bytes], Pixels]
SUBJECTS = (
    ("mobilenet_v1_0.5_160_qatdeq", 0.875, "bilinear"),
    ("mobilenet_v1_0.5_160_qatdeq", 0.875, "bicubic"),
    ("mobilenet_v2_1.0_224_ptqdeq", 1.0, "bilinear"),
    ("mobilenet_v2_1.0_224_ptqdeq", 1.0, "bicubic"),
)


def ways(p: Preprocessing) -> dict[str, Way]:
    """(H, W, 3) uint8 crops by the way they are made, from the bytes of a JPEG; the first one is the reference."""
    deployed = Deployed.parse(p.plain())
    found: dict[str, Way] = {
        "training: Pillow, Pillow": lambda data: _crop(resize_to_canvas(_pillow(data), p), p),
        "edgekd-runtime, file": deployed.cropped,
        "edgekd-runtime, pixels of Pillow": lambda data: deployed.cropped(np.asarray(_pillow(data).convert("RGB"))),
        "Pillow before 13": lambda data: _crop(_width_first(_pillow(data).convert("RGB"), p), p),
        "torch, antialias": lambda data: _crop(_torch(_pillow(data), p, antialias=True), p),
        "torch, no antialias": lambda data: _crop(_torch(_pillow(data), p, antialias=False), p),
    }
    if cv2 is not None:
        kernels = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}
        found |= {
            "edgekd-runtime, pixels of OpenCV": lambda data: deployed.cropped(_opencv(data)),
            "OpenCV resize, same filter": lambda data: _crop(_resized(_pillow(data), p, kernels[p.interpolation]), p),
            "OpenCV resize, area": lambda data: _crop(_resized(_pillow(data), p, cv2.INTER_AREA), p),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=200)
    options = parser.parse_args()
    with (options.data / "imagenet-sample" / "index.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    picked = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))[: options.images]]
    jpegs = [(options.data / "imagenet-sample" / row["file"]).read_bytes() for row in picked]
    labels = np.array([int(row["class_index"]) for row in picked])
    result: dict[str, Any] = {
        "schema_version": 1,
        "machine": machine(),
        "versions": {
            "pillow": Image.__version__,
            "libjpeg_turbo": features.version_feature("libjpeg_turbo"),
            "opencv": None if cv2 is None else cv2.__version__,
            "torch": torch.__version__,
            "onnxruntime": onnxruntime.__version__,
        },
        "images": len(jpegs),
        "seed": 0,
        "subjects": [subject(options.data, *which, jpegs, labels) for which in SUBJECTS],
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")


def subject(
    data: Path, name: str, fraction: float, interpolation: str, jpegs: list[bytes], labels: npt.NDArray[np.int64]
) -> dict[str, Any]:
    """One network with one filter: a row for each way."""
    meta = json.loads((data / "weights" / f"{name}.json").read_text())
    side, scale = int(meta["input"]), 255.0
    mean, std = (tuple(value / scale for value in meta[key]) for key in ("mean", "std"))
    p = Preprocessing.parse(
        {"size": [side, side], "mean": mean, "std": std, "interpolation": interpolation, "crop_fraction": fraction}, "x"
    )
    answer = _network(data, name, p)
    found, base = [], None
    for way, crop in ways(p).items():
        crops = np.stack([crop(jpeg) for jpeg in jpegs])
        classes = answer(crops)
        base = (crops, classes) if base is None else base
        off = np.abs(crops.astype(np.int16) - base[0])
        found.append(
            {
                "way": way,
                "equal_images": int((off.reshape(len(off), -1).max(axis=1) == 0).sum()),
                "equal_pixels": round(float((off == 0).mean()), 4),
                "mean_difference": round(float(off.mean()), 3),
                "max_difference": int(off.max()),
                "same_class": round(float((classes == base[1]).mean()), 4),
                "top1": round(float((classes == labels).mean()), 4),
            }
        )
        print(name, interpolation, found[-1], flush=True)
    return {"model": name, "canvas": p.canvas[0], "size": side, "interpolation": interpolation, "ways": found}


def _network(data: Path, name: str, p: Preprocessing) -> Callable[[Pixels], npt.NDArray[np.int64]]:
    """The class of each of (N, H, W, 3) crops."""
    spec = importlib.util.spec_from_file_location("models", data / "weights" / "models.py")
    assert spec is not None
    assert spec.loader is not None
    models = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(models)
    module, _ = models.build(name)
    module.load_state_dict(torch.load(data / "weights" / f"{name}.pt", weights_only=True))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx_from_module(module.eval(), (3, *p.size), path, opset=17)
        session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    given, deployed = session.get_inputs()[0].name, Deployed.parse(p.plain())

    def answer(crops: Pixels) -> npt.NDArray[np.int64]:
        batches = np.array_split(crops, max(1, len(crops) // 20))
        logits = [session.run(None, {given: deployed.normalised(batch)})[0] for batch in batches]
        return np.concatenate(logits).argmax(axis=1)

    return answer


def _pillow(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def _opencv(data: bytes) -> Pixels:
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    decoded: Pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    return decoded[..., ::-1]


def _crop(pixels: Pixels, p: Preprocessing) -> Pixels:
    """The centre of an image that covers the canvas, however large."""
    top, left = (round((pixels.shape[axis] - p.size[axis]) / 2) for axis in (0, 1))
    return pixels[top : top + p.size[0], left : left + p.size[1]]


def _width_first(image: Image.Image, p: Preprocessing) -> Pixels:
    height, width = covering(image.height, image.width, p.canvas)
    kernel = RESAMPLING[p.interpolation]
    return np.asarray(image.resize((width, image.height), kernel).resize((width, height), kernel))


def _resized(image: Image.Image, p: Preprocessing, kernel: int) -> Pixels:
    pixels = np.asarray(image.convert("RGB"))
    height, width = covering(*pixels.shape[:2], p.canvas)
    found: Pixels = cv2.resize(pixels, (width, height), interpolation=kernel)
    return found


def _torch(image: Image.Image, p: Preprocessing, *, antialias: bool) -> Pixels:
    pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None].float()
    size = covering(*pixels.shape[2:], p.canvas)
    found = functional.interpolate(pixels, size, mode=p.interpolation, antialias=antialias, align_corners=False)
    rounded: Pixels = found.round().clamp(0, 255).to(torch.uint8)[0].permute(1, 2, 0).numpy()
    return rounded


if __name__ == "__main__":
    main()
