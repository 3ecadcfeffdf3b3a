"""Which sequential test the gate should use: false alarms and times to an answer, replayed from recorded noise.

    python benchmarks/gate_methods.py --record 600 --out benchmarks/results/gate_methods.json

Two copies of one engine are opened, measured in turns for four units, closed, and opened anew, while another process
loads the machine on and off. A replayed gate draws stretches of consecutive openings from the recording, as long as
bursts of noise last, and swaps the two engines or not. At the limit of 0 % every answer is a false alarm, and each of
the two should have at most 1 %; at the limits of 1 and 2 % the answer should be PASS, soon. The units of a gate are
either the first of every opening (`anew`, as the gate measures) or all four (`held`), which shows what the memory
layout of an open engine does. The last method is what is usually done: Student's test at 1 %, read after each unit.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import random
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from gate_noise import BLOCKS, loaded, network, share
from numpy.typing import NDArray
from scipy.stats import t as student

from edgekd.gate.questions import BASELINE, CANDIDATE, log_ratio
from edgekd.gate.sequential import ALPHA, FIRST_SCALE, LEAST_SCALE
from edgekd.gate.wealth import STAKES
from edgekd.pipeline.gating.units import PLAN
from edgekd.pipeline.single import workbench
from edgekd.profiling.environment import machine
from edgekd.profiling.measure import Profiler, Subject
from edgekd.runtimes.session import open_bundle

UNITS_PER_OPENING, STRETCH, LONGEST = 4, 10, 200
Floats = NDArray[np.float64]
Gains = Callable[[Floats], Floats]
"""From deviations (gates, units) to what each game wins."""


def record(log: Path, seconds: float) -> None:
    """Adds openings to the log, a line each, until the time is over."""
    until, rng = time.monotonic() + seconds, random.Random(0)
    with tempfile.TemporaryDirectory() as folder, loaded(1):
        file = Path(folder) / "network.onnx"
        onnx.save(network(BLOCKS["equal"]), file)
        with workbench([(CANDIDATE, file), (BASELINE, file)]) as bench:
            while time.monotonic() < until:
                names = [CANDIDATE, BASELINE]
                rng.shuffle(names)
                with ExitStack() as stack:
                    subjects = {}
                    for name in names:
                        session = open_bundle(bench.bundles[name], bench.store.blobs, "onnxruntime", threads=1, batch=1)
                        feeds = {"images": np.random.default_rng(0).standard_normal((1, 3, 16, 16), dtype=np.float32)}
                        subjects[name] = Subject(
                            session=stack.enter_context(session), feeds=feeds, runtime="onnxruntime", precision="fp32",
                            threads=1,
                        )  # fmt: skip
                    found = [opened_unit(subjects, rng) for _ in range(UNITS_PER_OPENING)]
                with log.open("a") as stream:
                    stream.write(json.dumps([round(value, 5) for value in found]) + "\n")


def opened_unit(subjects: dict[str, Subject], rng: random.Random) -> float:
    """The log ratio of one unit, as the gate takes it."""
    reports: dict[str, Any] = Profiler().measure_interleaved(subjects, PLAN, seed=rng.getrandbits(32))
    return log_ratio(
        {name: [[ns / 1e6 for ns in burst] for burst in report.rounds_ns] for name, report in reports.items()}
    )


def signs(deviations: Floats) -> Floats:
    return np.sign(deviations)


def ranks(deviations: Floats) -> Floats:
    """The sign, times the rank of the size among the sizes so far, as a share."""
    sizes = np.abs(deviations)
    found = [(sizes[:, : i + 1] <= sizes[:, i : i + 1]).mean(axis=1) for i in range(sizes.shape[1])]
    return np.sign(deviations) * np.stack(found, axis=1)


def softened(softness: float) -> Gains:
    """tanh of the deviation in units of the spread so far; the gate's has a softness of 2."""

    def gains(deviations: Floats) -> Floats:
        found = np.empty_like(deviations)
        scale = np.full(len(deviations), FIRST_SCALE)
        for i in range(deviations.shape[1]):
            found[:, i] = np.tanh(deviations[:, i] / scale)
            seen = deviations[:, : i + 1]
            spread = 1.4826 * np.median(np.abs(seen - np.median(seen, axis=1, keepdims=True)), axis=1)
            weight = 2 / (3 + i)
            scale = softness * np.maximum(weight * FIRST_SCALE / softness + (1 - weight) * spread, LEAST_SCALE)
        return found

    return gains


def rich(gains: Floats) -> NDArray[np.bool_]:
    """After which units the capital is 1/alpha."""
    logs = np.stack([np.cumsum(np.log1p(stake * gains), axis=1) for stake in STAKES])
    top = logs.max(axis=0)
    return np.asarray(top + np.log(np.exp(logs - top).mean(axis=0)) >= math.log(1 / ALPHA))


def student_peeked(deviations: Floats) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """After which units a one-sided test at alpha rejects, from the fifth on."""
    n = np.arange(1, deviations.shape[1] + 1)
    mean = np.cumsum(deviations, axis=1) / n
    variance = np.maximum(np.cumsum(deviations**2, axis=1) / n - mean**2, 1e-12) * n / np.maximum(n - 1, 1)
    value = np.where(n >= 5, mean / np.sqrt(variance / n), 0.0)
    critical = student.ppf(1 - ALPHA, np.maximum(n - 1, 1))
    return value > critical, value < -critical


def answers(deviations: Floats, gains: Gains | None) -> dict[str, Any]:
    """Counts of the first answers, and the units they took."""
    above, below = (
        (rich(gains(deviations)), rich(-gains(deviations))) if gains is not None else student_peeked(deviations)
    )
    never = deviations.shape[1]
    first_above = np.where(above.any(axis=1), above.argmax(axis=1), never)
    first_below = np.where(below.any(axis=1), below.argmax(axis=1), never)
    units = np.minimum(first_above, first_below)
    total = len(deviations)
    return {
        "FAIL": share(int((first_above < first_below).sum()), total),
        "PASS": share(int((first_below < first_above).sum()), total),
        "units_p50": float(np.median(np.minimum(units + 1, never))),
        "units_p95": float(np.quantile(np.minimum(units + 1, never), 0.95)),
    }


def drawn(openings: Floats, gates: int, rng: np.random.Generator) -> Floats:
    """(gates, units): stretches of consecutive openings, the two engines swapped in half of the gates."""
    stretch = STRETCH if openings.shape[1] == 1 else max(1, STRETCH // 2)
    needed = -(-LONGEST // (stretch * openings.shape[1]))
    starts = rng.integers(0, len(openings), (gates, needed))
    index = (starts[:, :, None] + np.arange(stretch)) % len(openings)
    values = openings[index].reshape(gates, -1)[:, :LONGEST]
    return np.asarray(values * rng.choice((-1.0, 1.0), (gates, 1)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gate_methods.json"))
    parser.add_argument("--log", type=Path, help="the recording, JSON lines; default: beside --out; kept and added to")
    parser.add_argument("--record", type=float, default=600.0, help="seconds to record, 0 to replay only")
    parser.add_argument("--gates", type=int, default=2000, help="replayed gates of each kind")
    given = parser.parse_args()
    log: Path = given.log or given.out.with_suffix(".jsonl")
    log.parent.mkdir(parents=True, exist_ok=True)
    record(log, given.record)
    openings = np.array([json.loads(line) for line in log.read_text().splitlines()])
    openings -= np.median(openings)  # the copies are equal: what is left of a difference is chance
    methods: dict[str, Gains | None] = {"sign": signs, "signed rank": ranks}
    methods |= {f"tanh, softness {softness:g}": softened(softness) for softness in (1.0, 2.0, 4.0)}
    methods["Student at 1 %, peeked at"] = None
    rows = []
    for layout, taken in (("anew", openings[:, :1]), ("held", openings)):
        for limit in (0.0, 0.01, 0.02):
            deviations = drawn(taken, given.gates, np.random.default_rng(0)) - math.log1p(limit)
            rows += [{"engines": layout, "limit": limit, "method": name, **answers(deviations, gains)}
                     for name, gains in methods.items()]  # fmt: skip
    first = openings[:, 0]
    result = {
        "script": "benchmarks/gate_methods.py",
        "python": platform.python_version(),
        "machine": machine(),
        "recorded": {
            "openings": len(openings),
            "spread_of_units": round(float(1.4826 * np.median(np.abs(first))), 5),
            "spread_of_units_std": round(float(first.std()), 5),
        },
        "replayed_gates": given.gates,
        "units_per_gate": LONGEST,
        "rows": rows,
    }
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    for row in rows:
        print(f"{row['engines']} {row['limit']:.0%} {row['method']:<26} FAIL {row['FAIL']['share']:.3f} "
              f"PASS {row['PASS']['share']:.3f} units {row['units_p50']:.0f} / {row['units_p95']:.0f}")  # fmt: skip


if __name__ == "__main__":
    main()
