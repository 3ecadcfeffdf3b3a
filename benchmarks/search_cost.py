"""What a search costs: candidates scored per second beside the published code of DisWOT, and beside training them.

    git clone https://github.com/lliai/DisWOT-CVPR2023 ../DisWOT-CVPR2023
    python benchmarks/search_cost.py --data ../shared/data --reference ../DisWOT-CVPR2023

Both see the same CIFAR-10 images, in the same run, in turns: a block of candidates is scored by the reference, then by
ours in every setting, then comes the next block. The spread is over the blocks. The reference runs on all cores, as
PyTorch does by default; ours in one process on one thread, and in one process for each core, as `--workers auto` does.
The reference draws one random network for each candidate, so there are rows with one draw and its batch: `diswot` is
the metric of the paper, `diswot-code` that of the reference. The last rows are the search as it is by default, which
draws several networks where the ranking depends on the weights.

The cost of training is that of one epoch of 50,000 images: a few steps are timed, and multiplied. The cost of the
search is that of its scores, with the start of the processes and the teacher.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import itertools
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from cifar10 import PREPROCESSING, machine, versions
from PIL import Image

from edgekd.core.recipe import ModelRecipe
from edgekd.nn.build import module_from_recipe
from edgekd.search.config import SearchConfig
from edgekd.search.proxy import Batch
from edgekd.search.ranking import ranking_from_name
from edgekd.search.scorer_spec import ScorerSpec, scorer_spec
from edgekd.search.spaces.nasbench201 import recipe_from_cell
from edgekd.search.workers import workers_from_text
from edgekd.search.workers.cores import usable_cores

CLASSES = 10
S0_WIDTHS = [16, 16, 32, 64]
BEST_CELL = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_1x1~2|"
"""Of NAS-Bench-201 on CIFAR-10: the teacher that the reference takes."""
EPOCH_IMAGES = 50_000
TRAINING_BATCH = 64
TRAINED, WARMUP_STEPS, TIMED_STEPS = 5, 2, 5


@dataclass(frozen=True, kw_only=True)
class Space:
    """Networks that both sides score.

    Attributes:
        name: Of the space.
        teacher: Ours.
        recipes: Ours, one for each network.
        reference: Scores the network of that number with the reference code.
    """

    name: str
    teacher: ModelRecipe
    recipes: tuple[ModelRecipe, ...]
    reference: Callable[[int], float]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One way to score with edgekd.

    Attributes:
        proxy: Of `edgekd search`.
        draws: Random networks for each candidate.
        images: That they see.
        workers: As in `--workers`.
    """

    proxy: str
    draws: int
    images: int
    workers: str

    @property
    def name(self) -> str:
        return f"{self.proxy}, draws {self.draws}, images {self.images}, workers {self.workers}"


def main() -> None:
    arguments = _arguments()
    # Whatever OMP_NUM_THREADS says: the reference and the training are entitled to all cores.
    torch.set_num_threads(usable_cores())
    batch = _batch(arguments.data, arguments.batch, arguments.seed)
    default = SearchConfig()
    settings = [
        Setting(proxy=proxy, draws=draws, images=images, workers=workers)
        for proxy, draws, images in (
            *((name, 1, arguments.batch) for name in ("diswot", "diswot-code")),
            (default.proxy, ranking_from_name(default.proxy).draws, default.batch_size),
        )
        for workers in ("1", "auto")
    ]
    summary: dict[str, Any] = {
        "benchmark": "search_cost",
        "command": "python benchmarks/search_cost.py",
        "setting": {name: getattr(arguments, name) for name in ("s0", "cells", "block", "batch", "seed")},
        "machine": machine(),
        "versions": versions(),
        "seed": arguments.seed,
        "batch": arguments.batch,
        "load_before": os.getloadavg(),
        "spaces": {},
    }
    began = time.monotonic()
    for space in _spaces(arguments, batch):
        print(f"{space.name}: {len(space.recipes)} networks")
        result = _throughput(space, batch, settings, arguments.block)
        row = result["rows"][settings[-1].name]
        result["training"] = _against_training(space, row, default.evaluations, batch)
        summary["spaces"][space.name] = result
    summary["load_after"] = os.getloadavg()
    summary["seconds"] = time.monotonic() - began
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(summary, indent=1) + "\n")


def _spaces(arguments: argparse.Namespace, batch: Batch) -> list[Space]:
    from diswot_reference import Reference

    reference = Reference(arguments.reference, batch.images, batch.labels, classes=CLASSES)
    shuffle = np.random.default_rng(arguments.seed).permutation
    depths = [list(d) for d in itertools.product((1, 3, 5, 7), repeat=3)]
    depths = [depths[place] for place in shuffle(len(depths))[: arguments.s0]]
    cells = _cells(arguments.data)
    cells = [cells[place] for place in shuffle(len(cells))[: arguments.cells]]
    s0_teacher, cell_teacher = reference.s0_teacher(), reference.cell_teacher(BEST_CELL)
    return [
        Space(
            name="s0",
            teacher=_residual([18, 18, 18]),
            recipes=tuple(_residual(d) for d in depths),
            reference=lambda number: reference.s0_score(s0_teacher, depths[number]),
        ),
        Space(
            name="nasbench201",
            teacher=recipe_from_cell(BEST_CELL, classes=CLASSES, preprocessing=PREPROCESSING),
            recipes=tuple(recipe_from_cell(c, classes=CLASSES, preprocessing=PREPROCESSING) for c in cells),
            reference=lambda number: reference.cell_score(cell_teacher, cells[number]),
        ),
    ]


def _throughput(space: Space, batch: Batch, settings: Sequence[Setting], block: int) -> dict[str, Any]:
    """Candidates per second of both sides, block by block, with the ratio of each setting to the reference."""
    numbers = range(len(space.recipes))
    blocks = [numbers[start : start + block] for start in range(0, len(numbers), block)]
    names = ["reference", *(setting.name for setting in settings)]
    rates: dict[str, list[float]] = {name: [] for name in names}
    skipped, start_s = 0, {}
    with ExitStack() as stack:
        started = {}
        for setting in settings:
            began = time.perf_counter()
            workers = stack.enter_context(closing(workers_from_text(setting.workers, _spec(space, batch, setting))))
            workers.scores(space.recipes[:1] * workers.width)
            started[setting.name], start_s[setting.name] = workers, time.perf_counter() - began
        space.reference(0)
        for members in blocks:
            began = time.perf_counter()
            for number in members:
                space.reference(number)
            rates["reference"].append(len(members) / (time.perf_counter() - began))
            for name, workers in started.items():
                began = time.perf_counter()
                scores = workers.scores([space.recipes[number] for number in members])
                rates[name].append(len(members) / (time.perf_counter() - began))
                skipped = max(skipped, sum(score.skipped is not None for score in scores))
    table = {name: _row(rates[name], rates["reference"]) for name in names}
    for name, row in table.items():
        row["start_s"] = start_s.get(name)
        print(f"  {name:52} {row['candidates_per_s']:8.2f} /s   {row['times_reference']:6.1f}x", end="")
        print(f"   {min(row['times_reference_by_block']):.1f} to {max(row['times_reference_by_block']):.1f}")
    return {"networks": len(numbers), "block": block, "most_skipped_in_a_block": skipped, "rows": table}


def _row(rates: list[float], reference: list[float]) -> dict[str, Any]:
    """Rates are harmonic means over the blocks, which have the same number of networks: all networks over all time."""
    ratios = [own / other for own, other in zip(rates, reference, strict=True)]
    return {
        "candidates_per_s": statistics.harmonic_mean(rates),
        "candidates_per_s_by_block": rates,
        "times_reference": statistics.harmonic_mean(rates) / statistics.harmonic_mean(reference),
        "times_reference_by_block": ratios,
    }


def _against_training(space: Space, row: dict[str, Any], evaluations: int, batch: Batch) -> dict[str, Any]:
    """A search that scores so many candidates, against one epoch of supervised training for each of them."""
    by_size = sorted(space.recipes, key=lambda recipe: sum(p.numel() for p in module_from_recipe(recipe).parameters()))
    chosen = [by_size[round(place)] for place in np.linspace(0, len(by_size) - 1, TRAINED)]
    epochs = [_epoch_s(recipe, batch) for recipe in chosen]
    search_s = row["start_s"] + evaluations / row["candidates_per_s"]
    training_s = evaluations * statistics.fmean(epochs)
    print(f"search of {evaluations}: {search_s:.0f} s; one epoch each: {training_s / 3600:.1f} h, ", end="")
    print(f"extrapolated: {training_s / search_s:.0f} times as long")
    return {
        "evaluations": evaluations,
        "search_s": search_s,
        "epoch_s": epochs,
        "epoch_of": [dict(recipe.kwargs) for recipe in chosen],
        "epoch_is": f"extrapolated from {TIMED_STEPS} steps of batch {TRAINING_BATCH}, all cores, SGD, no teacher",
        "training_s": training_s,
        "times_search": training_s / search_s,
    }


def _epoch_s(recipe: ModelRecipe, batch: Batch) -> float:
    """Seconds of one epoch on all cores: the median step times the steps of an epoch."""
    student = module_from_recipe(recipe).train()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    images, labels = batch.images[:TRAINING_BATCH], batch.labels[:TRAINING_BATCH]
    seconds = []
    for _ in range(WARMUP_STEPS + TIMED_STEPS):
        began = time.perf_counter()
        optimizer.zero_grad()
        F.cross_entropy(student(images), labels).backward()
        optimizer.step()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[WARMUP_STEPS:]) * EPOCH_IMAGES / len(images)


def _spec(space: Space, batch: Batch, setting: Setting) -> ScorerSpec:
    return scorer_spec(
        module_from_recipe(space.teacher),
        space.teacher,
        Batch(images=batch.images[: setting.images], labels=batch.labels[: setting.images]),
        proxies=ranking_from_name(setting.proxy).proxies,
        seeds=range(setting.draws),
    )


def _residual(depths: list[int]) -> ModelRecipe:
    kwargs = {"depths": depths, "widths": S0_WIDTHS, "classes": CLASSES, "in_channels": 3}
    return ModelRecipe(builder="edgekd:residual", kwargs=kwargs, preprocessing=PREPROCESSING)


def _batch(data: Path, size: int, seed: int) -> Batch:
    """CIFAR-10 images, drawn by the seed."""
    stored = np.load(data / "cifar10" / "test_jpeg.npz")
    chosen = np.random.default_rng(seed).permutation(len(stored["labels"]))[:size]
    mean, std = np.array(PREPROCESSING.mean), np.array(PREPROCESSING.std)
    offsets, files = stored["offsets"], stored["jpeg"].tobytes()
    pixels = [np.asarray(Image.open(io.BytesIO(files[offsets[n] : offsets[n + 1]])).convert("RGB")) for n in chosen]
    images = ((np.stack(pixels) / 255 - mean) / std).transpose(0, 3, 1, 2)
    return Batch(
        images=torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32)),
        labels=torch.from_numpy(stored["labels"][chosen].astype(np.int64)),
    )


def _cells(data: Path) -> list[str]:
    """Distinct cells of NAS-Bench-201, the first string of each."""
    with gzip.open(data / "nasbench" / "nb201_accuracy.csv.gz", "rt") as file:
        rows = {row["unique_cell_id"]: row for row in reversed(list(csv.DictReader(file)))}
    return [row["arch_str"] for row in sorted(rows.values(), key=lambda row: int(row["arch_index"]))]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with cifar10/ and nasbench/")
    parser.add_argument("--reference", type=Path, required=True, help="checkout of lliai/DisWOT-CVPR2023")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/search_cost.json"))
    parser.add_argument("--s0", type=int, default=64, help="networks of S0, of 64")
    parser.add_argument("--cells", type=int, default=24, help="cells of NAS-Bench-201")
    parser.add_argument("--block", type=int, default=8, help="networks in a turn")
    parser.add_argument("--batch", type=int, default=64, help="images that the reference sees, and ours in its rows")
    parser.add_argument("--seed", type=int, default=0, help="of images, networks and order")
    return parser.parse_args()


if __name__ == "__main__":
    main()
