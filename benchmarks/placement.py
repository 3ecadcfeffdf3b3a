"""Which placement of quantizers pays, by family of network and runtime: CPU time, noise against FP32, and the lint.

    python benchmarks/placement.py --out benchmarks/results/placement.json

Networks have random weights with recalibrated BatchNorm statistics: SQNR ranks placements of one network and says
nothing of accuracy. Time is the process's CPU time per call with one thread, the engines taking turns: on a shared
machine it repeats better than latency, and it is not a latency.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
import timm
import torch

from edgekd.core.events import SilentReporter
from edgekd.export.stage import simplified
from edgekd.lint.family import family_of
from edgekd.lint.lint import lint
from edgekd.lint.rule import surroundings_of
from edgekd.nn.onnx import onnx_from_module
from edgekd.quant.ptq import CalibratedScheme, PtqConfig, int8_builder
from edgekd.runtimes.compare import compare_logits, logits_of
from edgekd.runtimes.onnx_file import graph_from_file, write_graph
from edgekd.runtimes.onnxruntime import emulated
from edgekd.runtimes.samples import Samples, random_images
from edgekd.runtimes.session import RUNTIMES
from edgekd.targets.load import load_target

NETWORKS = ("resnet18", "mobilenetv3_small_100", "convnext_atto", "vit_tiny_patch16_224")
SCHEMES: dict[CalibratedScheme, str] = {"ort-u8s8": "onnxruntime", "openvino": "openvino", "tensorrt-s8": "tensorrt"}
PLACEMENTS = ("all", "linear")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--samples", type=int, default=4)
    options = parser.parse_args()
    torch.manual_seed(0)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.networks:
            rows += measured(name, Path(folder), options)
            write(options, rows)


def write(options: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """The result so far, so that a run that is cut short leaves what it measured."""
    result = {
        "schema_version": 1,
        "machine": platform.processor() or platform.machine(),
        "versions": {"onnxruntime": onnxruntime.__version__, "openvino": openvino.get_version()},
        "time": "process CPU time per call, 1 thread, batch 1, engines by turns; median and quartiles of the rounds",
        "size": options.size,
        "rounds": options.rounds,
        "rows": rows,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")


def measured(name: str, folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of one network."""
    source = exported(name, folder, options.size)
    shape = (3, options.size, options.size)
    images = random_images(shape, samples=options.samples, seed=0)
    rows, sessions = [], {}
    for runtime in ("onnxruntime", "openvino"):
        sessions[runtime, "fp32"] = RUNTIMES.get(runtime).open(source, threads=1, batch=1)
    with RUNTIMES.get("onnxruntime").open(source) as session:
        expected = logits_of(session, images)
    for scheme, runtime in SCHEMES.items():
        for placement in PLACEMENTS:
            path = folder / f"{name}-{scheme}-{placement}.onnx"
            graph = quantized(source, images, scheme, placement, folder)
            write_graph(graph, path, made_by="the benchmark")
            with emulated(path) as session:
                found = compare_logits(expected, logits_of(session, images))
            rows.append(
                {
                    "network": name,
                    "family": family_of(graph_from_file(source)),
                    "scheme": scheme,
                    "placement": placement,
                    "sqnr_db": round(found.sqnr_db, 2),
                    **linted(graph, runtime),
                }
            )
            if runtime != "tensorrt":
                sessions[runtime, placement] = RUNTIMES.get(runtime).open(path, threads=1, batch=1)
    times = cpu_ms(sessions, images[:1], options.rounds)
    for row in rows:
        key = (SCHEMES[row["scheme"]], row["placement"])
        if key in times:
            row |= {"cpu_ms": times[key], "fp32_cpu_ms": times[key[0], "fp32"]}
    return rows


def exported(name: str, folder: Path, size: int) -> Path:
    arguments = {"img_size": size} if name.startswith("vit") else {}
    module = timm.create_model(name, num_classes=10, **arguments)
    module.train()
    with torch.no_grad():
        for _ in range(2):
            module(torch.randn(8, 3, size, size))
    path = folder / f"{name}.onnx"
    onnx_from_module(module.eval(), (3, size, size), path, opset=17)
    write_graph(simplified(graph_from_file(path)), path, made_by="onnxslim")
    return path


def quantized(
    source: Path, images: np.ndarray, scheme: CalibratedScheme, placement: str, folder: Path
) -> onnx.ModelProto:
    config = PtqConfig.parse(
        {"calib_method": "minmax", "bias_correction": False, "reduce_range": False, "placement": placement}, "benchmark"
    )
    samples = Samples(images, None, "synthetic")
    return int8_builder(source, samples, scheme, config, scratch=folder, seed=0, reporter=SilentReporter()).build()


def linted(graph: onnx.ModelProto, runtime: str) -> dict[str, Any]:
    """What the lint says of a graph, and the share of it that reads 8-bit values."""
    target = load_target("jetson" if runtime == "tensorrt" else "x86-cpu")
    report = lint(graph, surroundings_of(target, runtimes=(runtime,)))
    warned: dict[str, int] = {}
    for finding in report.findings:
        if finding.severity != "info":
            warned[finding.rule] = warned.get(finding.rule, 0) + 1
    return {"int8_macs_share": round(report.int8_macs_share or 0, 4), "lint": warned}


def cpu_ms(sessions: dict[Any, Any], image: np.ndarray, rounds: int) -> dict[Any, dict[str, float]]:
    """Quartiles of CPU time by session, each called once a round."""
    times: dict[Any, list[float]] = {key: [] for key in sessions}
    for turn in range(rounds + 3):
        for key, session in sessions.items():
            begin = time.process_time()
            session.infer({session.input_names[0]: np.ascontiguousarray(image)})
            if turn >= 3:
                times[key].append((time.process_time() - begin) * 1000)
    return {
        key: dict(zip(("low", "median", "high"), (round(q, 3) for q in statistics.quantiles(values, n=4)), strict=True))
        for key, values in times.items()
    }


if __name__ == "__main__":
    main()
