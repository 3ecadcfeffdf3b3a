"""How long two convolutions take by the channels between them: the staircase that pruning along the latency meets.

    python benchmarks/width_stairs.py --out benchmarks/results/width_stairs.json

Measures `conv 3x3 (C -> w) -> ReLU -> conv 3x3 (w -> C)` for widths w in ONNX Runtime and OpenVINO on this machine, all
widths by turns in one run, several runs; compare the ratios to the whole width, and how they spread over the runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from cifar10 import machine, versions
from onnx import TensorProto, helper, numpy_helper

from edgekd.errors import EdgekdError
from edgekd.profiling.predict.calibrate import local_measure

_OPSET, _IR = 17, 9


def main() -> None:
    arguments = _arguments()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        paths = {}
        for width in arguments.widths:
            paths[str(width)] = Path(folder) / f"{width}.onnx"
            onnx.save(_pair(arguments.channels, width, arguments.side), paths[str(width)])
        for runtime in arguments.runtimes:
            runs = []
            for seed in range(arguments.runs):
                medians = local_measure(runtime, threads=1, duration_s=arguments.duration_s, seed=seed)(paths)
                runs.append({k: None if isinstance(v, EdgekdError) else v for k, v in medians.items()})
            found[runtime] = runs
    summary = {
        "benchmark": "width_stairs",
        "machine": machine(),
        "versions": versions() | {"onnx": onnx.__version__},
        "command": "python benchmarks/width_stairs.py",
        "setting": {key: getattr(arguments, key) for key in ("channels", "side", "widths", "runs", "duration_s")},
        "median_ms": found,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(summary, indent=1) + "\n")
    _print(summary)


def _pair(channels: int, width: int, side: int) -> onnx.ModelProto:
    random = np.random.default_rng(width)
    shapes = {"first": (width, channels, 3, 3), "second": (channels, width, 3, 3)}
    weights = [
        numpy_helper.from_array(random.normal(0, 0.05, shape).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    nodes = [
        helper.make_node("Conv", ["images", "first"], ["a"], kernel_shape=[3, 3], pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "second"], ["maps"], kernel_shape=[3, 3], pads=[1] * 4),
    ]
    images, maps = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, channels, side, side]) for name in ("images", "maps")
    )
    graph = helper.make_graph(nodes, "pair", [images], [maps], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR)


def _print(summary: dict[str, Any]) -> None:
    whole = str(max(summary["setting"]["widths"]))
    for runtime, runs in summary["median_ms"].items():
        print(f"\n{runtime:<14}{'median of runs':>16}{'least':>9}{'most':>9}   time over that of {whole} channels")
        for width in summary["setting"]["widths"]:
            ratios = [run[str(width)] / run[whole] for run in runs if run[str(width)] and run[whole]]
            if ratios:
                print(f"{width:<14}{statistics.median(ratios):>16.3f}{min(ratios):>9.3f}{max(ratios):>9.3f}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/width_stairs.json"))
    parser.add_argument("--channels", type=int, default=64, help="C")
    parser.add_argument("--side", type=int, default=16, help="height and width, pixels")
    parser.add_argument(
        "--widths", type=int, nargs="+", default=[64, 62, 60, 56, 52, 48, 44, 40, 36, 32, 28, 24, 20, 16, 12, 8]
    )
    parser.add_argument("--runtimes", nargs="+", default=["onnxruntime", "openvino"])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--duration-s", type=float, default=1.0, help="measuring time per width and run")
    return parser.parse_args()


if __name__ == "__main__":
    main()
