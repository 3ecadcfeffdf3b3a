"""Whether measurements keep what they promise: intervals that cover, A/A comparisons without a winner, cheap workers.

    python benchmarks/measuring.py --out benchmarks/results/measuring.json

1. Coverage: series whose median is known, with neighbours that depend on each other (autoregressive, phi), against the
   95 % interval of the median as `edgekd.core.rounds` gives it, and as it would be for independent values; and the
   bootstrap interval of ratios.
2. A/A: `edgekd compare` of a graph with itself, again and again with other seeds; each "difference shown" is false. A
   second process that computes on and off (--disturb) makes the machine as noisy as it will be on a Monday.
3. Workers: from starting a process to an engine that is ready, and the share of it that loads the model.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import random
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import edgekd
from edgekd.core.bundle import ModelBundle
from edgekd.core.orphan import end_with_parent
from edgekd.core.rounds import median_interval, ratio_interval
from edgekd.core.stats import quantile_interval
from edgekd.profiling.compare import Contender, compare
from edgekd.profiling.environment import fingerprint, machine, state
from edgekd.profiling.isolated import Engine
from edgekd.profiling.measure import MeasurePlan
from edgekd.profiling.process import WorkerProcess
from edgekd.runtimes.session import RUNTIMES
from edgekd.testing.harness import make_context
from edgekd.testing.toy_graphs import toy_onnx_bundle

PARTS = ("coverage", "same", "workers")
CASES = [(phi, n) for phi in (0.0, 0.3, 0.5, 0.8) for n in (20, 40, 100, 300)]


def coverage(runs: int) -> list[dict[str, Any]]:
    """For each case: how often either interval holds the true median, and the mean widths."""
    rng, rows = random.Random(0), []
    for phi, n in CASES:
        ours, naive, our_width, naive_width = 0, 0, 0.0, 0.0
        for _ in range(runs):
            values = _series(phi, n, rng)
            found, plain = median_interval(values), quantile_interval(values, 0.5) or (0.0, 0.0)
            ours += found.low <= 0 <= found.high
            naive += plain[0] <= 0 <= plain[1]
            our_width += found.high - found.low
            naive_width += plain[1] - plain[0]
        rows.append(
            {
                "phi": phi,
                "rounds": n,
                "covered": ours / runs,
                "covered_if_taken_for_independent": naive / runs,
                "width_relative_to_independent": round(our_width / naive_width, 2),
            }
        )
    return rows


def ratio_coverage(runs: int) -> list[dict[str, Any]]:
    """For ratios of dependent rounds: how often the bootstrap interval of their median holds the true one."""
    rng, rows = random.Random(1), []
    for phi, n in CASES:
        hits = 0
        for seed in range(runs):
            ratios = [[math.exp(value / 50)] for value in _series(phi, n, rng)]
            found = ratio_interval(ratios, [[1.0]] * n, seed=seed, resamples=400)
            hits += found.low <= 1 <= found.high
        rows.append({"phi": phi, "rounds": n, "covered": hits / runs})
    return rows


def _series(phi: float, n: int, rng: random.Random) -> list[float]:
    z, found = rng.gauss(0, 1), []
    for _ in range(n):
        z = phi * z + math.sqrt(1 - phi * phi) * rng.gauss(0, 1)
        found.append(z)
    return found


def same_against_same(bundle: ModelBundle, blobs: Any, runs: int, duration_s: float) -> dict[str, Any]:
    """How often an engine differs from itself, and how wide the intervals of the ratio are."""
    engine = Engine(bundle=bundle, runtime="onnxruntime")
    contenders = [Contender(candidate=name, engine=engine) for name in ("a", "b")]
    plan = MeasurePlan(warmup_s=0.2, duration_s=duration_s, max_rounds=1000)
    wrong, widths, errors, took = 0, [], [], []
    for seed in range(runs):
        start = time.perf_counter()
        (ratio,) = compare(contenders, blobs, plan, seed=seed).ratios
        took.append(time.perf_counter() - start)
        assert ratio.ratio is not None
        assert ratio.low is not None
        assert ratio.high is not None
        wrong += ratio.answer != "no difference shown"
        widths.append(ratio.high - ratio.low)
        errors.append(abs(ratio.ratio - 1))
    return {
        "runs": runs,
        "difference_shown": wrong,
        "interval_width_median": round(statistics.median(widths), 4),
        "interval_width_max": round(max(widths), 4),
        "error_of_ratio_median": round(statistics.median(errors), 4),
        "error_of_ratio_max": round(max(errors), 4),
        "seconds_each_median": round(statistics.median(took), 1),
    }


def workers(bundle: ModelBundle, blobs: Any, runs: int) -> dict[str, Any]:
    """Seconds from starting a worker to its engine being ready, by runtime."""
    found = {}
    for runtime in ("onnxruntime", "openvino"):
        ready, load = [], []
        for _ in range(runs):
            start = time.perf_counter()
            with WorkerProcess("a", runtime) as worker:
                answer = worker.ask("open", Engine(bundle=bundle, runtime=runtime).request(blobs, 0))
                ready.append(time.perf_counter() - start)
            load.append(answer["load_ms"] / 1000)
        found[runtime] = {
            "ready_s_median": round(statistics.median(ready), 2),
            "ready_s_max": round(max(ready), 2),
            "of_it_loading_s_median": round(statistics.median(load), 2),
        }
    return found


def _disturb(parent: int) -> None:
    end_with_parent(parent)
    rng = random.Random(0)
    while True:
        end = time.monotonic() + rng.uniform(0.2, 2)
        while time.monotonic() < end:
            math.sqrt(2.0)
        time.sleep(rng.uniform(0.2, 2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=50, help="A/A comparisons")
    parser.add_argument("--simulated", type=int, default=2000, help="series for each case of the coverage")
    parser.add_argument("--duration", type=float, default=1.5, help="seconds per engine of a comparison")
    parser.add_argument("--disturb", action="store_true", help="compute on and off in another process meanwhile")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to do; default: all")
    args = parser.parse_args()
    result: dict[str, Any] = {"edgekd": edgekd.__version__}
    if "coverage" in args.parts:
        ratios = args.simulated // 5
        result["coverage"] = {"simulated": args.simulated, "cases": coverage(args.simulated)}
        result["coverage_of_ratios"] = {"simulated": ratios, "cases": ratio_coverage(ratios)}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        ctx = make_context(Path(folder))
        bundle = toy_onnx_bundle(ctx.blobs, ctx.scratch, size=128)
        if args.disturb:
            other = multiprocessing.get_context("fork").Process(target=_disturb, args=(os.getpid(),), daemon=True)
            other.start()
            stack.callback(other.terminate)
        version = str(RUNTIMES.get("onnxruntime").availability().version)
        result["device"] = fingerprint(machine(), {"onnxruntime": version})
        result["disturbed"], result["load_1m"] = args.disturb, [state()["load_1m"]]
        if "same" in args.parts:
            result["same_against_same"] = same_against_same(bundle, ctx.blobs, args.runs, args.duration)
        if "workers" in args.parts:
            result["workers"] = workers(bundle, ctx.blobs, 10)
        result["load_1m"].append(round(os.getloadavg()[0], 2))
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
