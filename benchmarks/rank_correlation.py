"""How well each proxy, and the combined ranking, orders networks by their published accuracy.

    python benchmarks/rank_correlation.py --data ../shared/data --work out/rank_correlation
    python benchmarks/rank_correlation.py ... --s0 DisWOT-CVPR2023/exps/s1-gt-kd.txt

Networks: cells of NAS-Bench-201 (distinct ones with a published accuracy in the data folder, drawn by a stated seed,
without the 400 that the weights of the combined ranking were fitted on, see `fit_combined.py`), and the 64 ResNets of
DisWOT's space S0 where a file with their accuracies is given. Prints and stores Kendall's tau, Spearman's and Pearson's
correlation with bootstrap intervals over the networks, and the paired difference of the combined ranking to every
proxy. Values are kept in `--work` as they come: a run that was killed goes on.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from cifar10 import PREPROCESSING, machine, versions
from scipy.stats import kendalltau, pearsonr, rankdata, spearmanr

from edgekd.core.orphan import end_with_parent
from edgekd.core.recipe import ModelRecipe
from edgekd.search.ranking import RANKINGS, ranking_from_name
from edgekd.search.spaces.nasbench201 import recipe_from_cell

FloatArray = npt.NDArray[np.float64]

COLUMNS = {
    "cifar10": "nats200_cifar10_test",
    "cifar100": "nats200_cifar100_test",
    "imagenet16": "nats200_imagenet16_test",
}
TEACHER = {"depths": [9, 9, 9], "widths": [16, 16, 32, 64], "in_channels": 3}
"""A ResNet-56, as in the searches of the DisWOT paper."""
RESAMPLES = 1000
CHUNK = 4
FITTED_SEED, FITTED_CELLS = 1, 400
"""The cells that `fit_combined.py` draws."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """Networks with their accuracies.

    Attributes:
        name: Of the space.
        keys: One name for each network.
        recipes: How to build them.
        accuracies: By data set, in percent.
    """

    name: str
    keys: tuple[str, ...]
    recipes: tuple[ModelRecipe, ...]
    accuracies: dict[str, FloatArray]


def main() -> None:
    arguments = _arguments()
    fitted = cells(arguments.data, FITTED_CELLS, FITTED_SEED).keys
    tasks = [cells(arguments.data, arguments.cells, arguments.seed, without=fitted)]
    if arguments.s0 is not None:
        tasks.append(_s0(arguments.s0))
    began = time.monotonic()
    summary: dict[str, Any] = {
        "benchmark": "rank_correlation",
        "machine": machine(),
        "versions": versions(),
        "command": "python benchmarks/rank_correlation.py",
        "seed": arguments.seed,
        "draws_of_weights": arguments.draws,
        "batch": arguments.batch,
        "resamples": RESAMPLES,
        "spaces": {},
    }
    for task in tasks:
        values, skipped = values_of(task, arguments)
        summary["spaces"][task.name] = _correlations(task, values, skipped, arguments.seed)
    summary["seconds"] = time.monotonic() - began
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(summary, indent=1) + "\n")
    _print(summary)


def cells(data: Path, count: int, seed: int, without: Sequence[str] = ()) -> Task:
    """Distinct cells; two strings of one `unique_cell_id` are the same network."""
    with gzip.open(data / "nasbench" / "nb201_accuracy.csv.gz", "rt") as file:
        rows = {row["unique_cell_id"]: row for row in reversed(list(csv.DictReader(file)))}
    known = sorted(rows.values(), key=lambda row: int(row["arch_index"]))
    order = [known[place] for place in np.random.default_rng(seed).permutation(len(known))]
    drawn = [row for row in order if row["arch_index"] not in without][:count]
    return Task(
        name="nasbench201",
        keys=tuple(row["arch_index"] for row in drawn),
        recipes=tuple(recipe_from_cell(row["arch_str"], classes=10, preprocessing=PREPROCESSING) for row in drawn),
        accuracies={name: np.array([float(row[column]) for row in drawn]) for name, column in COLUMNS.items()},
    )


def _s0(path: Path) -> Task:
    """The 64 ResNets of DisWOT's S0; each line of the file names the depths and the accuracy after distillation."""
    found = [line.split() for line in path.read_text().splitlines() if line.strip()]
    known = {"".join(c for c in first if c.isdigit())[-3:]: float(rest[-1]) for first, *rest in found}
    keys = ["".join(depths) for depths in itertools.product("1357", repeat=3)]
    missing = [key for key in keys if key not in known]
    if missing:
        sys.exit(f"{path}: expected lines 'DEPTHS ACCURACY' for all 64 networks; missing {', '.join(missing[:5])}")
    recipes = [
        ModelRecipe(
            builder="edgekd:residual",
            kwargs={"depths": [int(d) for d in key], "widths": [16, 16, 32, 64], "classes": 100, "in_channels": 3},
            preprocessing=PREPROCESSING,
        )
        for key in keys
    ]
    return Task(
        name="s0",
        keys=tuple(keys),
        recipes=tuple(recipes),
        accuracies={"cifar100-kd": np.array([known[key] for key in keys])},
    )


def values_of(task: Task, arguments: argparse.Namespace) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """By network: the mean of each proxy over the draws; and why networks were skipped."""
    path: Path = arguments.work / f"{task.name}-{arguments.batch}x{arguments.draws}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    known: dict[str, dict[str, float]] = {key: {} for key in task.keys}
    skipped: dict[str, str] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        entry = json.loads(line)
        if entry["key"] in known:
            known[entry["key"]].update(entry["values"])
    missing: dict[tuple[str, ...], list[int]] = {}
    for place, key in enumerate(task.keys):
        names = tuple(name for name in arguments.proxies if name not in known[key])
        if names:
            missing.setdefault(names, []).append(place)
    for names, places in missing.items():
        chunks = [places[start : start + CHUNK] for start in range(0, len(places), CHUNK)]
        classes = int(str(task.recipes[0].kwargs["classes"]))
        setting = _Setting(arguments.data, names, arguments.batch, arguments.draws, classes)
        began, done = time.monotonic(), 0
        with (
            path.open("a") as log,
            ProcessPoolExecutor(arguments.workers, get_context("spawn"), _start, (setting, os.getpid())) as pool,
        ):
            work = [[task.recipes[place] for place in chunk] for chunk in chunks]
            for chunk, found in zip(chunks, pool.map(_scored, work), strict=True):
                for place, values in zip(chunk, found, strict=True):
                    log.write(json.dumps({"key": task.keys[place], "values": values}) + "\n")
                    known[task.keys[place]].update(values)
                log.flush()
                done += len(chunk)
                left = (time.monotonic() - began) / done * (len(places) - done)
                print(f"\r{task.name}: {done}/{len(places)}, about {left / 60:.1f} min left ", end="", file=sys.stderr)
        print(file=sys.stderr)
    for key, values in known.items():
        lost = [name for name in arguments.proxies if values[name] is None or not np.isfinite(values[name])]
        if lost:
            skipped[key] = f"not scored by {', '.join(lost)}"
    return known, skipped


@dataclass(frozen=True)
class _Setting:
    data: Path
    proxies: tuple[str, ...]
    batch: int
    draws: int
    classes: int


_workers: list[Any] = []


def _start(setting: _Setting, parent: int) -> None:
    """Builds the scorers of one process: one for all proxies, which share their passes, and one for each by itself."""
    import torch

    from edgekd.nn.build import module_from_recipe
    from edgekd.search.proxy import batch_from_images
    from edgekd.search.scoring import Scorer

    end_with_parent(parent)
    torch.set_num_threads(1)
    sys.path.insert(0, str(setting.data / "cifar10"))
    import expand

    images = torch.from_numpy(expand.load("train")[0][: setting.batch]).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (PREPROCESSING.mean, PREPROCESSING.std))
    batch = batch_from_images((images - mean) / std, None, classes=setting.classes)
    teacher = module_from_recipe(
        ModelRecipe(
            builder="edgekd:residual",
            kwargs={**TEACHER, "classes": setting.classes},
            preprocessing=PREPROCESSING,
        )
    )
    seeds = range(setting.draws)
    groups = [setting.proxies, *((name,) for name in setting.proxies)]
    _workers[:] = [Scorer(teacher, batch, proxies=names, seeds=seeds) for names in groups]


def _scored(recipes: Sequence[ModelRecipe]) -> list[dict[str, float | None]]:
    """By network: the value of each proxy; None where it cannot score the network, which others may."""
    together, *alone = _workers
    table: list[dict[str, float | None]] = []
    for recipe in recipes:
        result = together.score(recipe)
        if result.skipped is None:
            table.append(dict(zip(together.names, result.values, strict=True)))
            continue
        row: dict[str, float | None] = {}
        for scorer in alone:
            result = scorer.score(recipe)
            row[scorer.names[0]] = None if result.skipped is not None else result.values[0]
        table.append(row)
    return table


def _correlations(
    task: Task, values: dict[str, dict[str, float]], skipped: dict[str, str], seed: int
) -> dict[str, Any]:
    places = [place for place, key in enumerate(task.keys) if key not in skipped]
    rows = [values[task.keys[place]] for place in places]
    scores = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    for name in RANKINGS:
        ranking = ranking_from_name(name)
        if all(proxy in scores for proxy in ranking.proxies):
            scores[name] = np.asarray(ranking.scores([[row[proxy] for proxy in ranking.proxies] for row in rows]))
    found: dict[str, Any] = {"networks": len(places), "skipped": skipped, "columns": {}}
    for column, accuracies in task.accuracies.items():
        accuracy = accuracies[places]
        picks = np.random.default_rng(seed).integers(len(places), size=(RESAMPLES, len(places)))
        taus = {name: np.array([_tau(score[p], accuracy[p]) for p in picks]) for name, score in scores.items()}
        best = [name for name in scores if name not in RANKINGS]
        found["columns"][column] = {
            name: {
                "kendall": _tau(score, accuracy),
                "kendall_95": _interval(taus[name]),
                "spearman": float(spearmanr(score, accuracy).statistic),
                "pearson": float(pearsonr(score, accuracy).statistic),
                "pearson_of_ranks_with_accuracy": float(pearsonr(rankdata(score), accuracy).statistic),
                "top_accuracy_of_best_ranked": float(accuracy[int(np.argmax(score))]),
                **{
                    f"kendall_minus_{other}_95": _interval(taus[name] - taus[other])
                    for other in (best if name in RANKINGS else ())
                },
            }
            for name, score in scores.items()
        }
    return found


def _tau(score: FloatArray, accuracy: FloatArray) -> float:
    value = float(kendalltau(score, accuracy).statistic)
    return value if np.isfinite(value) else 0.0


def _interval(samples: FloatArray) -> list[float]:
    return [float(bound) for bound in np.quantile(samples, (0.025, 0.975))]


def _print(summary: dict[str, Any]) -> None:
    for space, found in summary["spaces"].items():
        for column, table in found["columns"].items():
            print(f"\n{space}, {column}: {found['networks']} networks, {len(found['skipped'])} skipped")
            print(f"{'':24}{'Kendall':>9}{'95 % interval':>18}{'Spearman':>10}{'Pearson':>9}")
            for name, entry in _by_kendall(table):
                low, high = entry["kendall_95"]
                print(
                    f"{name:<24}{entry['kendall']:>9.3f}{f'{low:.3f} to {high:.3f}':>18}"
                    f"{entry['spearman']:>10.3f}{entry['pearson']:>9.3f}"
                )


def _by_kendall(table: dict[str, dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    yield from sorted(table.items(), key=lambda item: -item[1]["kendall"])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with nasbench/ and cifar10/")
    parser.add_argument("--work", type=Path, default=Path("out/rank_correlation"), help="values, kept between runs")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/rank_correlation.json"))
    parser.add_argument("--s0", type=Path, help="file with the accuracies of DisWOT's 64 ResNets")
    parser.add_argument("--cells", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=5, help="random draws of the weights")
    parser.add_argument("--batch", type=int, default=32, help="images that the proxies see")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--proxies", type=lambda text: tuple(text.split(",")), default=DEFAULT_PROXIES)
    return parser.parse_args()


DEFAULT_PROXIES = (
    *("params", "macs", "depth", "activations", "capacity"),
    *("isotropy", "progressivity", "trainability", "expressivity"),
    *("naswot", "jacobcov", "synflow", "zico", "meco", "zen", "gradnorm", "snip"),
    *("diswot", "diswot-semantic", "diswot-relation", "diswot-code-semantic", "diswot-code-relation"),
)

if __name__ == "__main__":
    main()
