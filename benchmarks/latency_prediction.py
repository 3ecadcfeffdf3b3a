"""How well the latency of a new device is predicted from 10 and 50 measurements of it and all of other devices.

    python benchmarks/latency_prediction.py --data ../shared/data/nasbench --seeds 2 --workers 2

Every device column of the HELP data is the new one once per case: with its siblings among the references (other batch
sizes of the same GPU, GPUs or processors of the same family), and without. Networks: 5,000 per space, drawn with seed
0. Compared: a ridge on the other devices' log latencies and one-hot operations, and `edgekd.profiling.predict.fit`,
each with networks drawn at random and chosen by `choose_samples` (`fit` with random ones only where there are siblings,
and for the first seed). Scored on the networks that were not measured: Spearman's correlation, share within 10 %, share
of 90 % intervals that hold the measured value.

An interrupted run goes on where it was, as long as the code of the model and the protocol are the same.

`ceiling` is an estimate of what the device's own noise leaves: a table of operations fitted to half of the device's
networks, scored on the other half; `twins`: cells of NAS-Bench-201 that are the same graph with its nodes renamed,
measured apart. The model was developed on the devices marked `developed_on`, the others were only scored.
`goals_met` counts the devices that reach a goal, and those that reach it or come within 0.005 of their ceiling.
"""

from __future__ import annotations

import argparse
import csv
import functools
import gzip
import hashlib
import json
import os
import platform
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray
from scipy.stats import spearmanr

import edgekd.profiling.predict
from edgekd.core.orphan import end_with_parent
from edgekd.profiling.predict import Population, choose_samples, fit
from edgekd.profiling.predict.archs import ArchTable, arch_table
from edgekd.profiling.predict.observations import devices_from_references
from edgekd.profiling.predict.population import learn_from_tables, operations_of
from edgekd.profiling.predict.tables import DeviceTable, tables_from_devices

Floats = NDArray[np.float64]
SPACES = {"nasbench201": "nb201_latency_help.csv.gz", "fbnet": "fbnet_latency_help.csv.gz"}
COVERAGE = "coverage_of_90_percent"
NETWORKS, COUNTS = 5000, (10, 50)
GOALS = {10: ("spearman", 0.985), 50: ("within_10_percent", 0.95)}
FAMILIES = {
    **dict.fromkeys(("1080ti", "titanx", "titanxp"), "Pascal GPUs"),
    **dict.fromkeys(("gold", "silver"), "Xeon processors"),
    **dict.fromkeys(("essential", "pixel2"), "Snapdragon 835 phones"),
}
DEVELOPED_ON = ("1080ti", "titanx_", "gold", "silver_4114", "raspi4", "samsung", "essential", "fpga")
COVERED, NEAR_CEILING = (0.88, 0.92), 0.005


def family(device: str) -> str:
    return FAMILIES.get(device.split("_")[0], device)


def read(folder: Path, space: str) -> tuple[list[str], dict[str, Floats]]:
    """Networks and the latencies of each device, a part drawn with seed 0."""
    with gzip.open(folder / SPACES[space], "rt", newline="") as stream:
        rows = list(csv.DictReader(stream))
    archs = [row.get("arch", "") for row in rows]
    if space == "nasbench201":
        with gzip.open(folder / "nb201_arch.csv.gz", "rt", newline="") as stream:
            named = {row["arch_index"]: row["arch_str"] for row in csv.DictReader(stream)}
        archs = [named[row["arch_index"]] for row in rows]
    kept = np.random.default_rng(0).permutation(len(rows))[:NETWORKS]
    devices = [name for name in rows[0] if name.endswith("_ms")]
    return [archs[i] for i in kept], {
        name.removesuffix("_ms"): np.array([float(rows[i][name]) for i in kept]) for name in devices
    }


@functools.cache
def prepared(folder: Path, space: str) -> tuple[list[str], dict[str, Floats], ArchTable, dict[str, DeviceTable]]:
    """The data of a space, and the tables of all its devices; a table depends on no other device."""
    archs, latencies = read(folder, space)
    table = arch_table(archs)
    tables = tables_from_devices(devices_from_references(latencies, len(archs)), table, operations_of(table), 0)
    return archs, latencies, table, {found.device.name: found for found in tables}


def scored(found: tuple[Floats, Floats, Floats] | Floats, truth: Floats, measured: Sequence[int]) -> dict[str, float]:
    rest = np.setdiff1d(np.arange(len(truth)), measured)
    median = found[0] if isinstance(found, tuple) else found
    result = {
        "spearman": float(spearmanr(median[rest], truth[rest]).statistic),
        "within_10_percent": float(np.mean(np.abs(median[rest] / truth[rest] - 1) <= 0.1)),
    }
    if isinstance(found, tuple):
        held = (truth[rest] >= found[1][rest]) & (truth[rest] <= found[2][rest])
        result[COVERAGE] = float(np.mean(held))
    return result


def ridge(archs: ArchTable, others: Sequence[Floats], rows: Sequence[int], ms: Floats) -> Floats:
    """The plain baseline: log latencies of the others, standardised, and one-hot operations; ridge 1."""
    operations = archs.operations
    logs = np.log(np.maximum(np.stack(others, axis=1), 0.05))
    hot = (operations[:, :, None] == np.arange(operations.max() + 1)).reshape(len(logs), -1)
    table = np.concatenate([(logs - logs.mean(axis=0)) / logs.std(axis=0), hot], axis=1)
    table = table - table.mean(axis=0)
    seen, target = table[list(rows)], np.log(np.maximum(ms, 0.05))
    slope = np.linalg.solve(seen.T @ seen + np.eye(table.shape[1]), seen.T @ (target - target.mean()))
    return np.asarray(np.exp(target.mean() + table @ slope))


def ceiling(archs: ArchTable, ms: Floats) -> dict[str, float]:
    half = np.random.default_rng(1).permutation(len(ms))[: len(ms) // 2]
    shown = np.full(len(ms), np.nan)
    shown[half] = ms[half]
    (fitted,) = tables_from_devices(devices_from_references({"": shown}, len(ms)), archs, operations_of(archs), 0)
    return scored(fitted.fitted * fitted.median_ms, ms, list(half))


def twins(archs: ArchTable, ms: Floats) -> dict[str, float]:
    """Median relative difference of one measurement from the truth, from pairs of equal graphs, and their number."""
    cells = [tuple(cell) for cell in archs.operations.tolist()]
    place = {cell: index for index, cell in enumerate(cells)}
    pairs = [
        (index, place[other])
        for index, cell in enumerate(cells)
        if cell[2] == 0 and (other := (cell[1], cell[0], 0, cell[3], cell[5], cell[4])) in place and cell < other
    ]
    apart = np.abs(np.log([ms[first] / ms[second] for first, second in pairs]))
    return {"pairs": len(pairs), "median_relative_noise": float(np.median(apart) / np.sqrt(2))}


def case(
    archs: Sequence[str],
    latencies: dict[str, Floats],
    device: str,
    population: Population,
    names: list[str],
    seeds: range,
    *,
    random: bool,
) -> list[dict[str, Any]]:
    """One device with one set of references: a row per count, sampling and model."""
    truth, rows = latencies[device], []
    for count in COUNTS:
        for sampling in ("random", "chosen"):
            runs: dict[str, list[dict[str, float]]] = {"ridge": [], "transfer": []}
            for seed in seeds:
                if sampling == "random":
                    measured = np.random.default_rng(100 + seed).permutation(len(archs))[:count].tolist()
                else:
                    measured = choose_samples(archs, None, count, seed=seed, population=population)
                values = truth[measured]
                runs["ridge"].append(
                    scored(ridge(population.archs, [latencies[n] for n in names], measured, values), truth, measured)
                )
                if sampling == "random" and (not random or seed):
                    continue
                predictor = fit(archs, None, (measured, values), population=population)
                runs["transfer"].append(scored(predictor.predict(archs), truth, measured))
            for model, found in runs.items():
                if not found:
                    continue
                rows.append({"samples": count, "sampling": sampling, "model": model, **_summary(found)})
    return rows


def _summary(runs: list[dict[str, float]]) -> dict[str, Any]:
    return {
        key: {"mean": round(float(np.mean(values)), 4), "min": round(min(values), 4), "max": round(max(values), 4)}
        for key in runs[0]
        for values in [[run[key] for run in runs]]
    }


def why_missed(rows: list[dict[str, Any]], best: dict[str, float]) -> list[str]:
    """For each goal that chosen samples miss: by how much, and whether the device's own noise allows it."""
    said = []
    for count, (metric, goal) in GOALS.items():
        for row in rows:
            if (row["samples"], row["sampling"], row["model"]) != (count, "chosen", "transfer"):
                continue
            got = row[metric]["mean"]
            if got < goal and best[metric] < goal + 0.002:
                said.append(f"{metric} {got:.3f} with {count}: its noise leaves {best[metric]:.3f} to a full fit")
            elif got < goal:
                said.append(f"{metric} {got:.3f} with {count}: the model, since a full fit reaches {best[metric]:.3f}")
    return said


def device_rows(folder: Path, space: str, device: str, seeds: int) -> list[dict[str, Any]]:
    """One device with its siblings among the references and, where it has any, without."""
    archs, latencies, table, tables = prepared(folder, space)
    cases = []
    best = ceiling(table, latencies[device])
    for siblings in (True, False):
        names = [n for n in latencies if n != device and (siblings or family(n) != family(device))]
        if not siblings and len(names) == len(latencies) - 1:
            continue
        started = time.perf_counter()
        population = learn_from_tables(table, tuple(tables[name] for name in names), 0)
        rows = case(archs, latencies, device, population, names, range(seeds), random=siblings)
        cases.append(
            {
                "space": space,
                "device": device,
                "references": "all others" if siblings else f"without {family(device)}",
                "developed_on": device.startswith(DEVELOPED_ON),
                "ceiling": best,
                "twins": twins(table, latencies[device]) if space == "nasbench201" else None,
                "rows": rows,
                "missed": why_missed(rows, best),
                "seconds": round(time.perf_counter() - started, 1),
            }
        )
    return cases


def totals(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = []
    for space in SPACES:
        for part in ("all others", "without"):
            for count in COUNTS:
                for sampling in ("random", "chosen"):
                    for model in ("ridge", "transfer"):
                        rows = [
                            row
                            for entry in cases
                            if entry["space"] == space and entry["references"].startswith(part)
                            for row in entry["rows"]
                            if (row["samples"], row["sampling"], row["model"]) == (count, sampling, model)
                        ]
                        if rows:
                            keys = [key for key in rows[0] if isinstance(rows[0][key], dict)]
                            means = {key: round(float(np.mean([row[key]["mean"] for row in rows])), 4) for key in keys}
                            label = {"space": space, "references": part, "devices": len(rows)}
                            found.append({**label, "samples": count, "sampling": sampling, "model": model, **means})
    return found


def goals_met(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each space, kind of references and count: what chosen samples reach, over devices."""
    found = []
    for space in SPACES:
        for part in ("all others", "without"):
            some = [case for case in cases if case["space"] == space and case["references"].startswith(part)]
            for count, (metric, goal) in GOALS.items() if some else ():
                best = [case["ceiling"][metric] for case in some]
                got, held = (np.array([_reached(case, count, key) for case in some]) for key in (metric, COVERAGE))
                near = (got >= goal) | (got >= np.array(best) - NEAR_CEILING)
                found.append(
                    {
                        "space": space,
                        "references": part,
                        "samples": count,
                        "metric": metric,
                        "goal": goal,
                        "mean": round(float(got.mean()), 4),
                        "mean_ceiling": round(float(np.mean(best)), 4),
                        "devices": len(some),
                        "reached": int(np.sum(got >= goal)),
                        "reached_or_near_ceiling": int(np.sum(near)),
                        "mean_coverage_of_90_percent": round(float(held.mean()), 4),
                        "mean_coverage_met": bool(COVERED[0] <= held.mean() <= COVERED[1]),
                        "coverage_from_to": [float(held.min()), float(held.max())],
                    }
                )
    return found


def _reached(case: dict[str, Any], count: int, metric: str) -> float:
    (row,) = (r for r in case["rows"] if (r["samples"], r["sampling"], r["model"]) == (count, "chosen", "transfer"))
    return float(row[metric]["mean"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "latency_prediction.json")
    args = parser.parse_args()
    cases = cases_so_far(args.out, args.seeds)
    done = {(case["space"], case["device"]) for case in cases}
    tasks = [task for pair in zip(*(devices_of(args.data, space) for space in SPACES), strict=True) for task in pair]
    context = get_context("spawn")
    with ProcessPoolExecutor(args.workers, context, end_with_parent, (os.getpid(),)) as pool:
        jobs = [pool.submit(device_rows, args.data, *task, args.seeds) for task in tasks if task not in done]
        for job in as_completed(jobs):
            for entry in job.result():
                cases.append(entry)
                show(entry)
            ordered = sorted(cases, key=lambda c: (c["space"], c["device"], c["references"]))
            write(args.out, ordered, args.seeds, done=all(other.done() for other in jobs))


def code_of_the_model() -> str:
    """Changes when the model does: results of different models are not put into one file."""
    files = sorted(Path(edgekd.profiling.predict.__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]


def cases_so_far(path: Path, seeds: int) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    before = json.loads(path.read_text(encoding="utf-8"))
    same = before.get("code") == code_of_the_model() and before["seeds"] == list(range(seeds))
    found: list[dict[str, Any]] = before["cases"] if same and not before["complete"] else []
    for entry in found:
        entry["developed_on"] = entry["device"].startswith(DEVELOPED_ON)
    return found


def devices_of(folder: Path, space: str) -> list[tuple[str, str]]:
    return [(space, device) for device in read(folder, space)[1]]


def show(entry: dict[str, Any]) -> None:
    for row in entry["rows"]:
        values = "  ".join(f"{v['mean']:.3f}" for v in row.values() if isinstance(v, dict))
        label = f"{entry['space']:12}{entry['device']:16}{entry['references']:32}"
        print(f"{label}{row['samples']:3} {row['sampling']:7} {row['model']:9} {values}", flush=True)


def write(path: Path, cases: list[dict[str, Any]], seeds: int, *, done: bool) -> None:
    result = {
        "schema_version": 1,
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "versions": {"python": platform.python_version(), "numpy": np.__version__, "scipy": scipy.__version__},
        "code": code_of_the_model(),
        "complete": done,
        "networks_per_space": NETWORKS,
        "seeds": list(range(seeds)),
        "goals": {str(count): {metric: value} for count, (metric, value) in GOALS.items()},
        "goals_met": goals_met(cases),
        "totals": totals(cases),
        "cases": cases,
    }
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
