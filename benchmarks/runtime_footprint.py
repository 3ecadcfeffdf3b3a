"""What edgekd-runtime costs beside the library that it runs: seconds to import, MiB of memory.

    python benchmarks/runtime_footprint.py BUNDLE --out benchmarks/results/runtime_footprint.json [--repeats 5]

BUNDLE is `model.edgekd` or a folder. Each repeat is a fresh process, bare and with edgekd-runtime by turns. Bare means
numpy and ONNX Runtime with the same graph, settings and one image; the difference is the runtime's own: verifying the
bundle, choosing the engine, preprocessing. Memory is resident memory when an image was classified, and its peak.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from edgekd.profiling.environment import machine

RUNTIME = Path(__file__).resolve().parents[1] / "runtime"
COMMON = """
import json, sys, time
def memory():
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return {name: int(lines[key].split()[0]) / 1024 for key, name in (("VmRSS", "rss_mib"), ("VmHWM", "peak_mib"))}
"""
OURS = """
began = time.perf_counter()
import edgekd_runtime
imported = time.perf_counter()
engine = edgekd_runtime.Engine.load(sys.argv[1], engine=sys.argv[2], runtime="onnxruntime", threads=1)
loaded = time.perf_counter()
import numpy
pixels = numpy.zeros((256, 256, 3), numpy.uint8)
engine(pixels)
found = {"import_s": imported - began, "load_s": loaded - imported, **memory(), "modules": len(sys.modules)}
print(json.dumps(found))
"""
BARE = """
began = time.perf_counter()
import numpy, onnxruntime
imported = time.perf_counter()
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
options.add_free_dimension_override_by_name(sys.argv[3], 1)
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
loaded = time.perf_counter()
given = session.get_inputs()[0]
images = numpy.zeros(given.shape, numpy.float32)
name = session.get_outputs()[0].name
session.run([name], {given.name: images})
found = {"import_s": imported - began, "load_s": loaded - imported, **memory(), "modules": len(sys.modules)}
print(json.dumps(found))
"""
ALONE = "began = time.perf_counter()\nimport numpy\nfound = {'import_s': time.perf_counter() - began, **memory()}\n"
IMPORT = "began = time.perf_counter()\nimport edgekd_runtime\n"
IMPORT += "found = {'import_s': time.perf_counter() - began, **memory()}\n"
SAY = "print(json.dumps(found))\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    sys.path.insert(0, str(RUNTIME))
    from edgekd_runtime.bundle import Bundle

    with Bundle(options.bundle) as bundle:
        entry = next(one for one in bundle.deploy.engines if one.format == "onnx")
        graph, axis = bundle.file(entry.files["model.onnx"]), str(bundle.deploy.input.shape[0])
        size = graph.stat().st_size / 2**20
        programs = {
            "numpy": (ALONE + SAY, []),
            "edgekd_runtime imported": (IMPORT + SAY, []),
            "onnxruntime": (BARE, [str(graph), "", axis]),
            "edgekd_runtime": (OURS, [str(options.bundle), entry.name, axis]),
        }
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in programs}
        for _ in range(options.repeats):
            for name, (code, arguments) in programs.items():
                runs[name].append(_run(code, arguments))
    middle = {name: _medians(found) for name, found in runs.items()}
    own = {key: middle["edgekd_runtime"][key] - middle["onnxruntime"][key] for key in middle["onnxruntime"]}
    result: dict[str, Any] = {
        "schema_version": 1,
        "machine": machine(),
        "versions": {"numpy": np.__version__, "onnxruntime": onnxruntime.__version__},
        "graph_mib": round(size, 2),
        "repeats": options.repeats,
        "medians": middle,
        "edgekd_runtime_minus_onnxruntime": {key: round(value, 3) for key, value in own.items()},
        "runs": runs,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({"medians": middle, "own": own}, indent=1))


def _run(code: str, arguments: list[str]) -> dict[str, float]:
    environment = {"PYTHONPATH": str(RUNTIME), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", COMMON + code, *arguments], capture_output=True, text=True, check=True, env=environment
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _medians(runs: list[dict[str, float]]) -> dict[str, float]:
    return {key: round(statistics.median(run[key] for run in runs), 4) for key in runs[0]}


if __name__ == "__main__":
    main()
