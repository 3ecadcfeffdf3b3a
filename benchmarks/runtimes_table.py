"""Every runtime on real models: FP32, FP16 and INT8, their answers beside the FP32 reference, and the guard's choice.

    python benchmarks/runtimes_table.py DATA --work FOLDER --out benchmarks/results/runtimes_table.json [--models NAME]

DATA holds `weights/` (models.py, NAME.json, NAME.pt), `cifar10/`, `imagenet-sample/` and `detectors/`. Each model goes
through `edgekd benchmark` as a user would run it: a torch.export program (the detector: its ONNX file), images in an
`.npz`, every runtime that this machine has. CIFAR-10 calibrates on training images and answers test images; of the
ImageNet sample, 200 images calibrate and the others are answered. The detector's images are the same pictures without
labels: its outputs are compared, not its faces.

What is recorded of every row: latency, size, memory, accuracy or agreement, the largest difference to the FP32
reference, whether it is within the tolerance of its precision, the status, and the reason. A model that is in the
output is left alone, so a second call goes on where the first one stopped; engines and answers are reused from the
store in FOLDER. The graphs go to FOLDER/graphs, which `aarch64_agent.py --graphs` compares on an emulated aarch64.

Weights named `*deq` lie on an 8-bit grid already, which flatters INT8.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import edgekd
from edgekd.cli.console import ConsoleReporter
from edgekd.core.benchmark import BenchmarkReport
from edgekd.core.store import LocalStore
from edgekd.nn.overrides import PreprocessingOverrides
from edgekd.pipeline.benchmark.request import PRECISIONS, BenchmarkRequest
from edgekd.pipeline.benchmark.run import BenchmarkRun
from edgekd.pipeline.execute import Workspace
from edgekd.pipeline.request import ModelSource
from edgekd.profiling.answers_stage import FP16_LEAST_DB, FP32_TOLERANCE
from edgekd.profiling.environment import state
from edgekd.runtimes.onnx_file import MODEL_FILE

DETECTOR = "ultralight_face_RFB-320"
CALIBRATION = 200
CALIBRATION_CIFAR = 300
LAST = 20
"""Images of the part that is named `test`."""
SENT = ("fp32", "int8-ort")
"""Engines whose graphs are kept for the emulated board."""


class Weights:
    """The networks and data of a folder."""

    def __init__(self, data: Path, work: Path) -> None:
        self.data, self.work = data, work
        self.models = _module_at(data / "weights" / "models.py", "weights_models")

    def names(self) -> list[str]:
        """All models, small inputs first."""
        metas = {path.stem: json.loads(path.read_text()) for path in (self.data / "weights").glob("*.json")}
        return [*sorted(metas, key=lambda name: (metas[name]["input"], name)), DETECTOR]

    def source(self, name: str) -> ModelSource:
        """The model as a file that edgekd reads."""
        if name == DETECTOR:
            grey = PreprocessingOverrides(mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
            path = self.data / "detectors" / f"{name}.onnx"
            return ModelSource(path=str(path), preprocessing_overrides=grey)
        module, meta = self.models.build(name)
        path = self.work / f"{name}.pt2"
        if not path.exists():
            example = torch.zeros(2, 3, meta["input"], meta["input"])
            program = torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim("N", min=1)},))
            torch.export.save(program, path)
        # What these weights want of pixels in 0 ... 255, in terms of pixels in [0, 1].
        unit = 255 * meta.get("in_scale", 1.0)
        overrides = PreprocessingOverrides(
            mean=tuple(value / unit for value in meta["mean"]),
            std=tuple(value / unit for value in meta["std"]),
            channel_order=meta.get("channel_order", "RGB"),
        )
        return ModelSource(path=str(path), preprocessing_overrides=overrides)

    def images(self, name: str) -> Path:
        """An `.npz` with what calibrates under `images` and what is answered under `val_images`."""
        if name == DETECTOR:
            return self._sample("faces", lambda image: image.resize((320, 240)), labelled=False)
        meta = json.loads((self.data / "weights" / f"{name}.json").read_text())
        if meta.get("dataset") == "cifar10":
            return self._cifar()
        side = meta["input"]
        crop = 227 if side == 227 else 224
        return self._sample(f"imagenet-{side}", lambda image: _centre(image, crop, side), labelled=True)

    def _cifar(self) -> Path:
        path = self.work / "cifar10.npz"
        if not path.exists():
            expand = _module_at(self.data / "cifar10" / "expand.py", "cifar10_expand")
            train, train_labels, classes, _ = expand.load("train")
            test, test_labels, _, _ = expand.load("test")
            # Each part is a prefix of a shuffled file; 4,000 test images are twice what is answered at most.
            np.savez(path, images=train[:5000], labels=train_labels[:5000], classes=np.array(classes),
                     val_images=test[:4000], val_labels=test_labels[:4000])  # fmt: skip
        return path

    def _sample(self, stem: str, cut: Any, *, labelled: bool) -> Path:
        path = self.work / f"{stem}.npz"
        if not path.exists():
            folder = self.data / "imagenet-sample"
            rows = list(csv.DictReader((folder / "index.csv").read_text().splitlines()))
            order = np.random.default_rng(0).permutation(len(rows))
            pixels = np.stack([np.asarray(cut(Image.open(folder / rows[i]["file"]).convert("RGB"))) for i in order])
            # One image of a class cannot be halved, so the parts are named; both of the later ones are answered.
            parts = {"": slice(CALIBRATION), "val_": slice(CALIBRATION, -LAST), "test_": slice(-LAST, None)}
            arrays: dict[str, Any] = {f"{part}images": pixels[rows_of] for part, rows_of in parts.items()}
            if labelled:
                labels = np.array([int(rows[i]["class_index"]) for i in order])
                arrays |= {f"{part}labels": labels[rows_of] for part, rows_of in parts.items()}
                arrays["classes"] = np.array([f"class{number}" for number in range(1000)])
            np.savez(path, **arrays)
        return path


def _centre(image: Image.Image, crop: int, side: int) -> Image.Image:
    left, top = (image.width - crop) // 2, (image.height - crop) // 2
    image = image.crop((left, top, left + crop, top + crop))
    return image if side == crop else image.resize((side, side), Image.Resampling.BILINEAR)


def _module_at(path: Path, name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measured(weights: Weights, name: str, args: argparse.Namespace) -> dict[str, Any]:
    """What is recorded of a model."""
    start, load = time.perf_counter(), state()["load_1m"]
    request = BenchmarkRequest(
        model=weights.source(name),
        target="host",
        data=str(weights.images(name)),
        precisions=PRECISIONS,
        runtimes=tuple(args.runtimes),
        threads=tuple(args.threads),
        calib_samples=CALIBRATION_CIFAR if name.startswith("cifar10") else CALIBRATION,
        images=args.images,
        warmup_s=args.warmup,
        duration_s=args.duration,
    )
    store = args.work / "store"
    run = BenchmarkRun(
        Workspace(out=args.work / "reports" / name, store=store, reporter=ConsoleReporter(verbosity=-1)), request
    )
    outcome = run.execute()
    _keep_graphs(outcome.engines, LocalStore(store), args.work / "graphs", name)
    return entry_of(outcome.report) | {
        "seconds": round(time.perf_counter() - start),
        "load_1m": [load, state()["load_1m"]],
    }


def entry_of(report: BenchmarkReport) -> dict[str, Any]:
    """The report without the measurement behind the rows."""
    kept = report.model_dump(mode="json", exclude={"profile", "answers", "schema_version"})
    checked = {
        (a.candidate, a.runtime): None if a.agreement is None else a.agreement.within_tolerance for a in report.answers
    }
    for row in kept["rows"]:
        row["within_tolerance"] = checked.get((row["engine"], row["runtime"]))
        for key in [key for key, value in row.items() if value is None or value == ""]:
            del row[key]
    return kept


def _keep_graphs(engines: Any, store: LocalStore, folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for engine in SENT:
        if engine in engines and MODEL_FILE in engines[engine].files:
            shutil.copyfile(store.blobs.path(engines[engine].file(MODEL_FILE)), folder / f"{name}-{engine}.onnx")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="programs, images, the store, the pages")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", nargs="+", help="default: all")
    parser.add_argument("--runtimes", nargs="+", default=[], help="default: all that edgekd knows")
    parser.add_argument("--threads", nargs="+", type=int, default=[1])
    parser.add_argument("--images", type=int, default=1000, help="answered by every engine, at most")
    parser.add_argument("--warmup", type=float, default=1.0)
    parser.add_argument("--duration", type=float, default=5.0)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    weights = Weights(args.data, args.work)
    known: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {"models": {}}
    known |= {
        "edgekd": edgekd.__version__,
        "tolerances": {"fp32": FP32_TOLERANCE.plain(), "fp16": {"least_sqnr_db": FP16_LEAST_DB}},
        "tolerance_is": "fp32: |a - ref| <= atol * std(ref) + rtol * |ref|, every element; fp16: signal to noise",
    }
    for name in args.models or weights.names():
        if name in known["models"]:
            continue
        known["models"][name] = measured(weights, name, args)
        args.out.write_text(json.dumps(known, indent=1) + "\n")
        choice = known["models"][name]["choice"]
        print(f"{name}: {choice['candidate']} in {choice['runtime']}" if choice else f"{name}: nothing", flush=True)


if __name__ == "__main__":
    main()
