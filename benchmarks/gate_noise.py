"""What `edgekd gate` answers on a noisy machine: false alarms between equal engines, and slower engines found.

    python benchmarks/gate_noise.py --out benchmarks/results/gate_noise.json [--gates 200 --slower 100 --slowest 50]

Every gate is one call of the gate's own code on two `.onnx` files that are measured in turns with ONNX Runtime, while
another process of this script loads the machine on and off. The baseline is a network of 20 equal blocks; the
candidates are the same network, one of 21 blocks (5 % more work) and one of 24 (20 %). The true ratios are verified
first, in a long run in turns under the same load. The gates of all kinds take turns, so that all see the same hours.

Finished gates are kept as JSON lines beside the result (`--log`), and a run that was stopped goes on from there.
Intervals of the shares are Clopper and Pearson's, 95 %.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from scipy.stats import beta

import edgekd
from edgekd.core.events import SilentReporter
from edgekd.core.stats import quantile, quantile_interval
from edgekd.gate.questions import BASELINE, CANDIDATE, log_ratio
from edgekd.gate.sequential import ALPHA
from edgekd.pipeline.gating.judge import gate_bundle
from edgekd.pipeline.gating.request import GateRequest
from edgekd.pipeline.gating.units import EngineUnits
from edgekd.pipeline.single import workbench
from edgekd.profiling.environment import machine
from edgekd.profiling.isolated import Engine

BLOCKS = {"equal": 20, "5 % slower": 21, "20 % slower": 24}
WIDTH, SIZE = 32, 16
WANTED = {"equal": "PASS", "5 % slower": "FAIL", "20 % slower": "FAIL"}
GOALS = {
    "equal": "at most 1 % FAIL",
    "5 % slower": "at least 95 % FAIL within 60 s",
    "20 % slower": "100 % FAIL within 60 s",
}


def network(blocks: int) -> onnx.ModelProto:
    """`blocks` times a 3x3 convolution with ReLU between a small stem and a classifier, about 0.04 ms each."""
    rng = np.random.default_rng(0)
    weights: list[TensorProto] = []

    def weight(name: str, *shape: int) -> str:
        values = rng.standard_normal(shape) * math.sqrt(2 / np.prod(shape[1:]))
        weights.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    nodes = [helper.make_node("Conv", ["images", weight("stem", WIDTH, 3, 3, 3)], ["x0"], pads=[1] * 4)]
    for i in range(blocks):
        nodes.append(helper.make_node("Conv", [f"x{i}", weight(f"w{i}", WIDTH, WIDTH, 3, 3)], [f"c{i}"], pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"x{i + 1}"]))
    nodes += [
        helper.make_node("GlobalAveragePool", [f"x{blocks}"], ["pool"]),
        helper.make_node("Flatten", ["pool"], ["features"]),
        helper.make_node("Gemm", ["features", weight("head", 10, WIDTH)], ["logits"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 10])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def load_machine(seed: int) -> None:
    """Works and rests in turns of about a second each, on matrices that evict caches and in plain Python."""
    rng = random.Random(seed)
    matrix = np.random.default_rng(seed).standard_normal((400, 400))
    parent = os.getppid()
    while os.getppid() == parent:  # ends with the script, however that ends
        until = time.monotonic() + rng.expovariate(1.0)
        while time.monotonic() < until:
            if rng.random() < 0.5:
                matrix @ matrix
            else:
                sum(range(20_000))
        time.sleep(rng.expovariate(1.0))


@contextmanager
def loaded(processes: int) -> Iterator[None]:
    """The machine under load from other processes."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    running = [
        subprocess.Popen([sys.executable, __file__, "--load", str(seed)], env=environment) for seed in range(processes)
    ]
    try:
        yield
    finally:
        for process in running:
            process.terminate()
            process.wait()


def true_ratio(candidate: Path, baseline: Path, seconds: float) -> dict[str, Any]:
    """The median ratio of a long run in turns, with its 95 % interval."""
    values: list[float] = []
    with workbench([(CANDIDATE, candidate), (BASELINE, baseline)]) as bench:
        engines = {n: Engine(bundle=b, runtime="onnxruntime", threads=1) for n, b in bench.bundles.items()}
        with closing(EngineUnits(engines, bench.store.blobs)) as units:
            until = time.monotonic() + seconds
            while time.monotonic() < until or len(values) < 6:
                values.append(log_ratio(units()))
    low, high = quantile_interval(values, 0.5) or (min(values), max(values))
    return {
        "ratio": round(math.exp(statistics.median(values)), 4),
        "interval_95": [round(math.exp(low), 4), round(math.exp(high), 4)],
        "units": len(values),
        "seconds": seconds,
    }


def one_gate(kind: str, files: Mapping[str, Path], index: int, allowed: float, time_s: float) -> dict[str, Any]:
    """A gate from opening to verdict."""
    start = time.monotonic()
    request = GateRequest(
        target=files[kind],
        baseline_bundle=files["equal"],
        max_regression=allowed,
        runtime="onnxruntime",
        time_limit_s=time_s,
        seed=index,
    )
    report = gate_bundle(request, SilentReporter())
    check = report.ratio()
    return {
        "kind": kind,
        "index": index,
        "max_regression": allowed,
        "status": report.status,
        "measured_s": report.seconds,
        "wall_s": round(time.monotonic() - start, 2),
        "ratio": None if check is None or check.value is None else round(check.value, 4),
        "load_1m": round(os.getloadavg()[0], 2),
    }


def share(count: int, n: int) -> dict[str, Any]:
    """A share with Clopper and Pearson's 95 % interval."""
    low = 0.0 if count == 0 else float(beta.ppf(0.025, count, n - count + 1))
    high = 1.0 if count == n else float(beta.ppf(0.975, count + 1, n - count))
    return {"count": count, "of": n, "share": round(count / n, 4), "interval_95": [round(low, 4), round(high, 4)]}


def summary(gates: Sequence[Mapping[str, Any]], kind: str) -> dict[str, Any]:
    """The counts and the times of one kind."""
    mine = [gate for gate in gates if gate["kind"] == kind]
    if not mine:
        return {"gates": 0}
    times = [gate["wall_s"] for gate in mine]
    return {
        "gates": len(mine),
        "goal": GOALS[kind],
        "wanted": WANTED[kind],
        "answers": {status: share(sum(g["status"] == status for g in mine), len(mine)) for status in
                    ("PASS", "FAIL", "INCONCLUSIVE")},
        "wall_s": {"p50": quantile(times, 0.5), "p95": quantile(times, 0.95), "max": max(times)},
        "load_1m": {"min": min(g["load_1m"] for g in mine), "max": max(g["load_1m"] for g in mine)},
    }  # fmt: skip


def plan(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """All gates as (kind, index), the kinds spread evenly over the run."""
    places = [((i + 0.5) / n, kind, i) for kind, n in counts.items() for i in range(n)]
    return [(kind, i) for _, kind, i in sorted(places)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gate_noise.json"))
    parser.add_argument("--log", type=Path, help="JSON lines of finished gates; default: beside --out")
    parser.add_argument("--gates", type=int, default=200, help="gates of equal engines")
    parser.add_argument("--slower", type=int, default=100, help="gates of the engine that is 5 %% slower")
    parser.add_argument("--slowest", type=int, default=50, help="gates of the engine that is 20 %% slower")
    parser.add_argument("--max-regression", type=float, default=0.02)
    parser.add_argument("--time", type=float, default=60.0, help="seconds a gate may measure")
    parser.add_argument("--verify", type=float, default=60.0, help="seconds for each true ratio")
    parser.add_argument("--loads", type=int, default=1, help="processes that load the machine")
    parser.add_argument("--load", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.load is not None:
        load_machine(given.load)
        return
    log: Path = given.log or given.out.with_suffix(".jsonl")
    log.parent.mkdir(parents=True, exist_ok=True)
    done = kept(log)
    with tempfile.TemporaryDirectory() as folder, loaded(given.loads):
        files = {kind: Path(folder) / f"blocks{blocks}.onnx" for kind, blocks in BLOCKS.items()}
        for kind, path in files.items():
            onnx.save(network(BLOCKS[kind]), path)
        ratios = {row["kind"]: row["true"] for row in done if "true" in row}
        for kind in BLOCKS:
            if kind not in ratios:
                ratios[kind] = true_ratio(files[kind], files["equal"], given.verify)
                keep(log, done, {"kind": kind, "true": ratios[kind]})
        finished = {(row["kind"], row["index"]) for row in done if "index" in row}
        counts = {"equal": given.gates, "5 % slower": given.slower, "20 % slower": given.slowest}
        for kind, index in plan(counts):
            if (kind, index) not in finished:
                row = one_gate(kind, files, index, given.max_regression, given.time)
                keep(log, done, row)
                print(f"{row['kind']:>12} {index:>4}  {row['status']:<13} {row['wall_s']:>6.1f} s", flush=True)
    gates = [row for row in done if "index" in row]
    result = {
        "script": "benchmarks/gate_noise.py",
        "edgekd": edgekd.__version__,
        "onnxruntime": onnxruntime.__version__,
        "python": platform.python_version(),
        "machine": machine(),
        "load": f"{given.loads} process(es) of the script, working and resting in turns of about a second",
        "max_regression": given.max_regression,
        "alpha": ALPHA,
        "time_limit_s": given.time,
        "true_ratios": ratios,
        "results": {kind: summary(gates, kind) for kind in BLOCKS},
    }
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["results"], indent=1))


def kept(log: Path) -> list[dict[str, Any]]:
    """The rows of an earlier run; a line that was cut off when it was stopped is removed."""
    lines = log.read_text().splitlines(keepends=True) if log.exists() else []
    whole = [line for line in lines if line.endswith("}\n")]
    if whole != lines:
        log.write_text("".join(whole))
    return [json.loads(line) for line in whole]


def keep(log: Path, done: list[dict[str, Any]], row: dict[str, Any]) -> None:
    """Adds a finished row to the log, at once."""
    done.append(row)
    with log.open("a") as stream:
        stream.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
