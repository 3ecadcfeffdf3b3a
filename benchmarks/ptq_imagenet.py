"""Post-training quantization of MobileNetV1/V2 and SqueezeNet, each step beside the libraries' own defaults.

    python benchmarks/ptq_imagenet.py DATA --work FOLDER --out benchmarks/results/ptq_imagenet.json [--models NAME ...]

DATA holds `weights/` (models.py, NAME.json, NAME.pt) and `imagenet-sample/` (index.csv, images). Images are drawn with
a fixed seed: --calib of them calibrate, --eval others judge, so that no figure is taken on a calibrated image.

1. Accuracy: top-1 and agreement with FP32, computed by ONNX Runtime's own kernels (for TensorRT's form with exact
   rounding, since a CPU has no kernels for it), and the size of the file. `default-*` is what the library makes when
   told nothing but where the samples are.
2. Latency: all files of a model by turns in each runtime, one thread, as a ratio to FP32 with a 95 % interval.

Every finished row is in the output at once; a second call goes on where the first one stopped. The weights of the
MobileNets lie on an 8-bit grid already, which flatters weights of a scale per channel, and not those of one per tensor.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from PIL import Image

import edgekd
from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.preprocess import Preprocessing
from edgekd.core.recipe import ModelRecipe
from edgekd.core.stage import Context
from edgekd.export.stage import simplified
from edgekd.nn.onnx import onnx_from_module
from edgekd.profiling.compare import Contender, compare
from edgekd.profiling.environment import fingerprint, machine, state
from edgekd.profiling.isolated import Engine
from edgekd.profiling.measure import MeasurePlan
from edgekd.quant.ptq_stage import QuantizeConfig, QuantizeStage
from edgekd.quant.sensitivity import SensitivityReport
from edgekd.quant.sensitivity_stage import SensitivityConfig, SensitivityStage
from edgekd.runtimes.compare import compare_logits, logits_of
from edgekd.runtimes.onnx_file import MODEL_FILE, graph_from_file, onnx_interface, write_graph
from edgekd.runtimes.onnxruntime import RUNTIME, emulated
from edgekd.runtimes.samples import Samples, bundle_from_samples
from edgekd.runtimes.session import RUNTIMES
from edgekd.testing.harness import make_context, make_inputs, run_stage

MODELS = ("mobilenet_v1_0.5_160_qatdeq", "mobilenet_v2_1.0_224_ptqdeq", "squeezenet_v1.1_fp16")
TIMED_IN = ("onnxruntime", "openvino")
OURS: dict[str, dict[str, Any]] = {
    "ort minmax": {"scheme": "ort-u8s8", "calib_method": "minmax", "bias_correction": False},
    "ort auto": {"scheme": "ort-u8s8", "bias_correction": False},
    "ort auto+bias": {"scheme": "ort-u8s8"},
    "ort auto+bias+reconstruct": {"scheme": "ort-u8s8", "rounding": "reconstruct"},
    "ort auto+bias+reconstruct+equalize": {"scheme": "ort-u8s8", "rounding": "reconstruct", "equalize": True},
    "ort tensor": {"scheme": "ort-u8s8", "weight_scales": "tensor", "bias_correction": False},
    "ort tensor+equalize": {
        "scheme": "ort-u8s8", "weight_scales": "tensor", "bias_correction": False, "equalize": True,
    },
    "ort tensor+bias": {"scheme": "ort-u8s8", "weight_scales": "tensor"},
    "ort tensor+bias+reconstruct": {"scheme": "ort-u8s8", "weight_scales": "tensor", "rounding": "reconstruct"},
    "openvino auto": {"scheme": "openvino"},
    "openvino auto+reconstruct": {"scheme": "openvino", "rounding": "reconstruct"},
    "tensorrt auto+bias": {"scheme": "tensorrt-s8"},
}  # fmt: skip
MIXED = (1, 2, 4, 8)


class Subject:
    """One network: its bundle, its samples, and the answers of FP32."""

    def __init__(self, data: Path, name: str, ctx: Context, calib: int, judged: int, reduce_range: bool) -> None:
        meta = json.loads((data / "weights" / f"{name}.json").read_text())
        images, labels = _images(data / "imagenet-sample", meta, calib + judged)
        size = (meta["input"], meta["input"])
        # The images are normalised below as the weights want it; this only names them.
        preprocessing = Preprocessing(size=size)
        path = ctx.scratch / "exported.onnx"
        onnx_from_module(_module(data / "weights", name), (3, *size), path, opset=17)
        write_graph(simplified(graph_from_file(path)), path, made_by="export")
        inputs, outputs = onnx_interface(path)
        self.ctx, self.reduce_range = ctx, reduce_range
        self.images, self.labels = images[calib:], labels[calib:]
        self.model = ModelBundle(
            kind=BundleKind.ONNX,
            inputs=inputs,
            outputs=outputs,
            files={MODEL_FILE: ctx.blobs.add(path)},
            recipe=ModelRecipe(builder="onnx", preprocessing=preprocessing),
            tags={"precision": "fp32", "scheme": ""},
        )
        self.samples = images[:calib]
        self.calibration = bundle_from_samples(
            Samples(self.samples, labels[:calib], "real"),
            preprocessing=preprocessing,
            source="ImageNet samples",
            blobs=ctx.blobs,
            scratch=ctx.scratch,
        )
        with RUNTIME.open(ctx.path(self.model, MODEL_FILE)) as session:
            self.expected = logits_of(session, self.images)

    def row(self, bundle: ModelBundle, seconds: float, decisions: tuple[str, ...]) -> dict[str, Any]:
        """What is recorded of a file."""
        path = self.ctx.path(bundle, MODEL_FILE)
        exact = bundle.tags.get("scheme") == "tensorrt-s8"
        with emulated(path) if exact else RUNTIME.open(path) as session:
            found = logits_of(session, self.images)
        against = compare_logits(self.expected, found)
        return {
            "top1": float((found.argmax(axis=1) == self.labels).mean()),
            "agreement": against.agreement,
            "sqnr_db": round(against.sqnr_db, 2),
            "computed": "exact rounding" if exact else "ONNX Runtime's kernels",
            "size_mib": round(path.stat().st_size / 2**20, 3),
            "seconds": round(seconds, 1),
            "decisions": list(decisions),
            "bundle": json.loads(bundle.to_json()),
        }

    def ours(self, config: dict[str, Any], table: ModelBundle | None = None) -> tuple[ModelBundle, tuple[str, ...]]:
        """A variant of edgekd."""
        stage = QuantizeStage(QuantizeConfig.parse({"reduce_range": self.reduce_range, **config}, "benchmark"))
        ports = {"model": self.model, "calibration": self.calibration}
        result = run_stage(stage, make_inputs(**ports, **({"sensitivity": table} if table else {})), self.ctx)
        return result.bundle, result.decisions

    def theirs(self, make: Callable[[Path, Path, Any], None], scheme: str) -> tuple[ModelBundle, tuple[str, ...]]:
        """What a library makes by default."""
        path, name = self.ctx.scratch / "theirs.onnx", self.model.inputs[0].name
        make(self.ctx.path(self.model, MODEL_FILE), path, [{name: image[None]} for image in self.samples])
        tags = {"precision": "int8", "scheme": scheme}
        files = {MODEL_FILE: self.ctx.blobs.add(path)}
        return self.model.model_copy(update={"files": files, "tags": tags}), ()


def _images(folder: Path, meta: dict[str, Any], count: int) -> tuple[np.ndarray, np.ndarray]:
    rows = list(csv.DictReader((folder / "index.csv").read_text().splitlines()))
    if count > len(rows):
        raise SystemExit(f"{count} images are asked for, {len(rows)} are there")
    side = meta["input"]
    crop = 227 if side == 227 else 224
    pixels, labels = [], []
    for at in np.random.default_rng(0).permutation(len(rows))[:count]:
        image = Image.open(folder / rows[at]["file"]).convert("RGB")
        left, top = (image.width - crop) // 2, (image.height - crop) // 2
        image = image.crop((left, top, left + crop, top + crop))
        pixels.append(np.asarray(image if side == crop else image.resize((side, side), Image.Resampling.BILINEAR)))
        labels.append(int(rows[at]["class_index"]))
    values = np.stack(pixels).transpose(0, 3, 1, 2).astype(np.float32) * np.float32(meta.get("in_scale", 1.0))
    if meta.get("channel_order") == "BGR":
        values = values[:, ::-1]
    mean, std = (np.array(meta[key], np.float32)[:, None, None] for key in ("mean", "std"))
    return np.ascontiguousarray((values - mean) / std), np.array(labels)


def _module(folder: Path, name: str) -> Any:
    spec = importlib.util.spec_from_file_location("weights_models", folder / "models.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.build(name)[0]


def _ort_default(source: Path, target: Path, feeds: list[dict[str, np.ndarray]]) -> None:
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter(feeds)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.left, None)

    quantize_static(source, target, Reader(), extra_options={"CalibStridedMinMax": None})


def _nncf_default(source: Path, target: Path, feeds: list[dict[str, np.ndarray]]) -> None:
    import nncf

    onnx.save(nncf.quantize(onnx.load(source), nncf.Dataset(feeds)), target)


def accuracy(subject: Subject, rows: dict[str, Any], save: Callable[[], None]) -> None:
    """Adds the rows that are missing."""
    jobs: dict[str, Callable[[], tuple[ModelBundle, tuple[str, ...]]]] = {
        "fp32": lambda: (subject.model, ()),
        "default-onnxruntime": lambda: subject.theirs(_ort_default, "ort-default"),
        "default-nncf": lambda: subject.theirs(_nncf_default, "nncf-default"),
    }
    jobs |= {name: lambda config=config: subject.ours(config) for name, config in OURS.items()}  # type: ignore[misc]
    for name, job in jobs.items():
        if name not in rows:
            start = time.perf_counter()
            bundle, decisions = job()
            rows[name] = subject.row(bundle, time.perf_counter() - start, decisions)
            save()
            print(f"  {name}: top-1 {rows[name]['top1']:.3f}, agreement {rows[name]['agreement']:.3f}", flush=True)


def mixed(subject: Subject, entry: dict[str, Any], save: Callable[[], None]) -> None:
    """The sensitivity of layers, and engines with the worst of them in float."""
    config = {"scheme": "ort-u8s8", "reduce_range": subject.reduce_range}
    missing = [count for count in MIXED if f"ort mixed{count}" not in entry["rows"]]
    if not missing:
        return
    stage = SensitivityStage(SensitivityConfig.parse(config, "benchmark"))
    ports = {"model": subject.model, "calibration": subject.calibration}
    start = time.perf_counter()
    table = run_stage(stage, make_inputs(**ports), subject.ctx).bundle
    took = time.perf_counter() - start
    report = SensitivityReport.parse(json.loads(subject.ctx.path(table, "report.json").read_text()), "benchmark")
    entry["sensitivity"] = {"seconds": round(took, 1), **report.plain()}
    for count in missing:
        start = time.perf_counter()
        bundle, decisions = subject.ours({**config, "revert": count}, table)
        row = subject.row(bundle, time.perf_counter() - start, decisions)
        entry["rows"][f"ort mixed{count}"] = row
        save()
        print(f"  ort mixed{count}: top-1 {row['top1']:.3f}, agreement {row['agreement']:.3f}", flush=True)


def latency(subject: Subject, entry: dict[str, Any], seconds: float, save: Callable[[], None]) -> None:
    """Ratios to FP32, all files of a model by turns; done again when files were added."""
    for runtime in TIMED_IN:
        names = [name for name in entry["rows"] if "tensorrt" not in name]
        if set(entry["latency"].get(runtime, {}).get("ratios", {})) >= set(names) - {"fp32"}:
            continue
        contenders = [
            Contender(
                candidate=name,
                engine=Engine(bundle=ModelBundle.from_json(json.dumps(entry["rows"][name]["bundle"])), runtime=runtime),
            )
            for name in names
        ]
        report = compare(contenders, subject.ctx.blobs, MeasurePlan(warmup_s=0.3, duration_s=seconds, precision=0.02))
        entry["latency"][runtime] = {
            "device": report.device,
            "fp32_p50_ms": round(report.reference_latency.p50_ms, 3),
            "ratios": {
                ratio.candidate: [
                    round(value, 3) for value in (ratio.ratio, ratio.low, ratio.high) if value is not None
                ]
                for ratio in report.ratios
            },
            "notes": list(report.notes),
        }
        save()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with weights/ and imagenet-sample/")
    parser.add_argument("--work", type=Path, required=True, help="folder of the files that are made; keep it to resume")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--calib", type=int, default=200, help="images that calibrate")
    parser.add_argument("--eval", type=int, default=300, help="images that judge")
    parser.add_argument("--duration", type=float, default=3.0, help="seconds of timing per file; 0 times nothing")
    parser.add_argument("--reduce-range", action="store_true", help="7-bit weights, for x86 CPUs without VNNI")
    parser.add_argument("--parts", nargs="+", choices=("accuracy", "mixed", "latency"),
                        default=("accuracy", "mixed", "latency"))  # fmt: skip
    args = parser.parse_args()
    asked = {"calibration_images": args.calib, "judged_images": args.eval, "reduce_range": args.reduce_range}
    result: dict[str, Any] = {"edgekd": edgekd.__version__, **asked, "models": {}}
    if args.out.exists():
        result = json.loads(args.out.read_text())
        if {key: result.get(key) for key in asked} != asked:
            raise SystemExit(f"{args.out} was made with other settings: {asked} are asked for; choose another --out")
    versions = {name: str(RUNTIMES.get(name).availability().version) for name in TIMED_IN}
    result["device"] = fingerprint(machine(), versions)

    def save() -> None:
        result["load_1m"] = state()["load_1m"]
        part = args.out.with_suffix(".part")
        part.write_text(json.dumps(result, indent=1) + "\n")
        part.replace(args.out)

    for name in args.models:
        print(name, flush=True)
        entry = result["models"].setdefault(name, {"rows": {}, "latency": {}})
        args.work.mkdir(parents=True, exist_ok=True)
        subject = Subject(args.data, name, make_context(args.work / name), args.calib, args.eval, args.reduce_range)
        if "accuracy" in args.parts:
            accuracy(subject, entry["rows"], save)
        if "mixed" in args.parts:
            mixed(subject, entry, save)
        if "latency" in args.parts and args.duration > 0:
            latency(subject, entry, args.duration, save)
    save()


if __name__ == "__main__":
    main()
