"""Every distillation objective on CIFAR-10 at one small budget, for two pairs of networks; and what did not help.

    python benchmarks/objectives_table.py --data ../shared/data --work out/objectives_table
    python benchmarks/objectives_table.py --quick        (a handful of objectives, few images: does it run?)

ResNet-56 teaches a ResNet-20 (same family) and a small inverted residual network (another one). Images, epochs,
schedule, learning rate, augmentation and the views of the images that it makes are the same for all rows; each
objective has its own default arguments and weights, none is tuned. The last epoch is judged on test images that no
decision has seen, but for `dho`, which chooses how to mix its two heads on half of them. Two rows are controls: `no-kd`
trains on the labels alone, and `kd-random-teacher` distils from a ResNet-56 that was never trained, whose gain over
`no-kd` should be none. `--objectives` takes sums too, as the command line does; one is among the rows. Each finished
training is a line in `--work`: a run that was killed goes on there.

With `--leading N` every row has the first seed; the best N of each pair, `kd` and the controls have the others too. The
seed that chose the leaders flatters them, so their mean over the other seeds (`top1_unchosen`) stands beside.

`seconds` are those of training alone. Objectives that read logits share the teacher's stored answers; those that look
inside the teacher run it once per view, and those that train it do in every step, so their time holds that too: compare
times within `inside`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cifar10 import cifar10_npz, command, machine, resnet56, versions
from torch import nn

from edgekd.cli.console import ConsoleReporter
from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.graph import Graph, Node
from edgekd.core.recipe import ModelRecipe
from edgekd.core.runner import Runner, RunSettings
from edgekd.core.stage import Execution
from edgekd.core.store import LocalStore
from edgekd.data.transform import FloatArray
from edgekd.nn.build import module_from_bundle, module_from_recipe
from edgekd.nn.save import bundle_from_module
from edgekd.pipeline.prepare import prepare, resources_of
from edgekd.pipeline.request import Request
from edgekd.pipeline.stages import STAGES
from edgekd.pipeline.training import loss_of
from edgekd.tasks.classification import agreement, top1
from edgekd.train.evaluate_torch import module_logits
from edgekd.train.objective import OBJECTIVES, TAPPED, Objective
from edgekd.train.terms import terms_from_text

AUGMENT = {"pad_px": 4, "flip": True, "crop_scale_min": 1.0}
NO_KD, RANDOM_TEACHER = "no-kd", "kd-random-teacher"
COMPARED = (NO_KD, RANDOM_TEACHER, "kd")
"""What all others are compared with: these have every seed."""
SUMS = ("kd+fitnet",)
"""Answers and feature maps together, each with its own default weight."""
QUICK = (NO_KD, "kd", "soft", "pskd", "ofa", "reviewkd", RANDOM_TEACHER)
STUDENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet20": ("module:models:CifarResNet", {"depth": 20}),
    "inverted": (
        "edgekd:inverted",
        {
            "stem": 16,
            "stages": [
                {"channels": 16, "expansion": 1},
                {"channels": 24, "expansion": 4, "depth": 2, "stride": 1},
                {"channels": 32, "expansion": 4, "depth": 2, "stride": 2},
                {"channels": 64, "expansion": 4, "depth": 2, "stride": 2},
            ],
            "head": 160,
            "classes": 10,
        },
    ),
}
"""(builder, kwargs) of each student of the ResNet-56."""


class Bench:
    """The teacher, the images and the store; trains one row at a time.

    Args:
        arguments: Of the command line.
        reporter: Where progress goes.
        request: Teacher and data.
        students: (builder, kwargs) by name.
    """

    def __init__(
        self,
        arguments: argparse.Namespace,
        reporter: ConsoleReporter,
        request: Request,
        students: dict[str, tuple[str, dict[str, Any]]],
    ) -> None:
        self.arguments, self.reporter, self.students = arguments, reporter, students
        self.store = LocalStore(arguments.work / "store")
        self.situation = prepare(request, self.store, reporter)
        assert self.situation.dataset is not None
        self.held = self.situation.dataset.select, self.situation.dataset.test
        self.labels = np.concatenate([split.labels for split in self.held if split.labels is not None])
        self.answers: FloatArray | None = None

    def row(self, pair: str, objective: str, seed: int) -> dict[str, Any]:
        """Trains a student and judges its last epoch."""
        nodes = self._nodes(objective)
        bundles = {"teacher": self.situation.teacher, "student": self._student(pair, seed)}
        if objective == RANDOM_TEACHER:
            bundles["random"] = self._bundle(self.situation.teacher.model, seed=1000 + seed)
        graph = Graph(inputs=dict.fromkeys(bundles, BundleKind.TORCH), nodes=tuple(nodes))
        execution = Execution(device=self.arguments.device, threads=self.arguments.threads)
        settings = RunSettings(
            seed=seed, resources=resources_of(self.situation), execution=execution, reporter=self.reporter
        )
        done = Runner(STAGES, self.store).run(graph, bundles, settings).node("distil")
        module = module_from_bundle(done.bundle, self.store.blobs)
        logits = self._logits(module, execution)
        if self.answers is None:
            self.answers = self._logits(module_from_bundle(self.situation.teacher, self.store.blobs), execution)
        return {
            "student": pair,
            "objective": objective,
            "seed": seed,
            "top1": top1(logits, self.labels),
            "agreement": agreement(logits, self.answers),
            "seconds": done.metrics["seconds"],
            "images_per_s": done.metrics["images_per_s"],
            "params_m": done.metrics["params_m"],
        }

    def _logits(self, module: nn.Module, execution: Execution) -> FloatArray:
        p = self.situation.teacher.model.preprocessing
        return np.concatenate([module_logits(module, split, p, execution) for split in self.held])

    def _nodes(self, objective: str) -> list[Node]:
        arguments = self.arguments
        config: dict[str, Any] = {
            "epochs": arguments.epochs,
            "batch_size": arguments.batch_size,
            "lr": arguments.lr,
            "augment": AUGMENT,
            "grad_clip": 5.0,
        }
        # What `teacher_views` is to the others, for trainings that store no answers: the same views, epoch by epoch.
        repeated = {"augment": {**AUGMENT, "views": arguments.views}}
        ports: dict[str, tuple[str, ...]] = {"student": ("@student",)}
        if objective == NO_KD:
            config |= {"objective": None, **repeated}
            return [Node(name="distil", stage="distill", config=config, inputs=ports)]
        config |= loss_of(terms_from_text("kd" if objective == RANDOM_TEACHER else objective))
        config["teacher_views"] = arguments.views
        if objective == RANDOM_TEACHER:
            # Beside the labels, not instead of them: with the weights of `kd` it would be noise alone.
            config |= {"supervised_weight": 1.0, "distill_weight": 1.0}
            ports["teacher"] = ("@random",)
            return [Node(name="distil", stage="distill", config=config, inputs=ports)]
        kinds = kinds_of(objective)
        if not any(kind.needs_teacher for kind in kinds):
            config |= {"teacher_views": 0, **repeated}
            return [Node(name="distil", stage="distill", config=config, inputs=ports)]
        ports["teacher"] = ("@teacher",)
        if any(kind.trains_teacher for kind in kinds):
            config |= {"teacher_views": 0, **repeated}
        if looks_inside(objective):
            return [Node(name="distil", stage="distill", config=config, inputs=ports)]
        asked = {"views": arguments.views, "augment": AUGMENT}
        ports["answers"] = ("answers",)
        return [
            Node(name="teacher-fp32", stage="export", inputs={"model": ("@teacher",)}),
            Node(name="answers", stage="teach", config=asked, inputs={"teacher": ("teacher-fp32",)}),
            Node(name="distil", stage="distill", config=config, inputs=ports),
        ]

    def _student(self, pair: str, seed: int) -> ModelBundle:
        builder, kwargs = self.students[pair]
        like = self.situation.teacher.model
        recipe = ModelRecipe(builder=builder, kwargs=kwargs, preprocessing=like.preprocessing, labels=like.labels)
        return self._bundle(recipe, seed=seed)

    def _bundle(self, recipe: ModelRecipe, *, seed: int) -> ModelBundle:
        """A network that was never trained."""
        with tempfile.TemporaryDirectory() as scratch:
            module = module_from_recipe(recipe, seed=seed)
            return bundle_from_module(module, recipe=recipe, blobs=self.store.blobs, scratch=Path(scratch))


def main() -> None:
    arguments = _arguments()
    with ConsoleReporter() as reporter:
        request = Request(model=resnet56(arguments.data), target="host", data=str(_images(arguments)))
        bench = Bench(arguments, reporter, request, STUDENTS)
        rows = train_rows(bench, arguments)
    summary = summarised(rows, arguments)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(summary, indent=1) + "\n")
    print_table(summary)


Key = tuple[str, str, int]
"""Student, objective, seed."""


def train_rows(bench: Bench, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Every row of this setting, trained now or read from the lines of an earlier run; the first seed first."""
    lines: Path = arguments.work / "rows.jsonl"
    setting = _setting(arguments)
    found = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    done = {_key(row): row for row in found if row["setting"] == setting}

    def train(wanted: list[Key]) -> list[Key]:
        for number, key in enumerate(wanted):
            if key not in done:
                bench.reporter.message(f"{number + 1} of {len(wanted)}: {' '.join(map(str, key))}")
                done[key] = {"setting": setting, **bench.row(*key)}
                with lines.open("a") as stream:
                    stream.write(json.dumps(done[key]) + "\n")
                    stream.flush()
                    os.fsync(stream.fileno())
        return wanted

    first = train([(pair, objective, 0) for pair in arguments.students for objective in arguments.objectives])
    again = [key for key in first if arguments.leading is None or key in _leading(done, first, arguments.leading)]
    rest = train([(pair, objective, seed) for seed in range(1, arguments.seeds) for pair, objective, _ in again])
    return [done[key] for key in first + rest]


def _leading(done: dict[Key, dict[str, Any]], keys: list[Key], count: int) -> set[Key]:
    """The best `count` of each pair, and what they are compared with."""
    chosen = {key for key in keys if key[1] in COMPARED}
    for pair in {key[0] for key in keys}:
        chosen |= set(sorted((key for key in keys if key[0] == pair), key=lambda key: -done[key]["top1"])[:count])
    return chosen


def summarised(rows: list[dict[str, Any]], arguments: argparse.Namespace) -> dict[str, Any]:
    """The JSON result: per pair and objective the mean and spread of the last epoch, best first."""
    pairs: dict[str, list[dict[str, Any]]] = {}
    for pair in arguments.students:
        table = [_entry([row for row in rows if (row["student"], row["objective"]) == (pair, name)], name)
                 for name in arguments.objectives]  # fmt: skip
        plain = next((entry["top1_by_seed"] for entry in table if entry["objective"] == NO_KD), None)
        for entry in table:  # over the seeds that both have
            gains = [own - other for own, other in zip(entry["top1_by_seed"], plain or (), strict=False)]
            entry["gain_over_no_kd"] = statistics.fmean(gains) if gains else None
        pairs[pair] = sorted(table, key=lambda entry: -entry["top1"])
    return {
        "benchmark": "objectives_table",
        "machine": machine() | ({"gpu": torch.cuda.get_device_name()} if arguments.device == "cuda" else {}),
        "versions": versions(),
        "command": command(),
        "setting": _setting(arguments) | {"seeds": arguments.seeds, "leading": arguments.leading},
        "students": {name: {"builder": STUDENTS[name][0], "kwargs": STUDENTS[name][1]} for name in arguments.students
                     if name in STUDENTS},
        "pairs": pairs,
    }  # fmt: skip


def print_table(summary: dict[str, Any]) -> None:
    for pair, table in summary["pairs"].items():
        print(f"\nResNet-56 -> {pair}\n{'objective':<20}{'top-1':>8}{'+-':>6}{'gain':>8}{'agrees':>8}{'s':>7}  inside")
        for entry in table:
            spread = "" if entry["top1_sd"] is None else f"{100 * entry['top1_sd']:.2f}"
            gain = "" if entry["gain_over_no_kd"] is None else f"{100 * entry['gain_over_no_kd']:+.2f}"
            print(
                f"{entry['objective']:<20}{100 * entry['top1']:>7.2f}%{spread:>6}{gain:>8}"
                f"{100 * entry['agreement']:>7.1f}%{entry['seconds']:>7.0f}  {'yes' if entry['inside'] else 'no'}"
            )


def _entry(rows: list[dict[str, Any]], objective: str) -> dict[str, Any]:
    top1 = [row["top1"] for row in rows]
    return {
        "objective": objective,
        "top1": statistics.fmean(top1),
        "top1_sd": statistics.stdev(top1) if len(top1) > 1 else None,
        "top1_by_seed": top1,
        "top1_unchosen": statistics.fmean(top1[1:]) if len(top1) > 1 else None,
        "agreement": statistics.fmean(row["agreement"] for row in rows),
        "seconds": statistics.fmean(row["seconds"] for row in rows),
        "inside": looks_inside(objective),
    }


def kinds_of(objective: str) -> list[type[Objective[Any]]]:
    """The objectives of a row: several for a sum, none for the controls."""
    return [] if objective in (NO_KD, RANDOM_TEACHER) else [OBJECTIVES.get(t.name) for t in terms_from_text(objective)]


def looks_inside(objective: str) -> bool:
    """Whether the teacher runs along, because its stored answers do not tell enough."""
    return any(k.needs_teacher and (k.trains_teacher or bool(k.needs_of_teacher & TAPPED)) for k in kinds_of(objective))


def _key(row: dict[str, Any]) -> Key:
    return row["student"], row["objective"], row["seed"]


def _setting(arguments: argparse.Namespace) -> dict[str, Any]:
    """What a row depends on beside its own name."""
    names = ("images", "held_out", "epochs", "batch_size", "lr", "views", "device", "threads")
    return {name: getattr(arguments, name) for name in names}


def _images(arguments: argparse.Namespace) -> Path:
    path: Path = arguments.work / f"cifar10-{arguments.images}-{arguments.held_out}.npz"
    return cifar10_npz(arguments.data, path, images=arguments.images, held_out=arguments.held_out)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with cifar10/ and weights/")
    parser.add_argument("--work", type=Path, default=Path("out/objectives_table"), help="rows and store, kept")
    parser.add_argument("--out", type=Path, help="JSON result; benchmarks/results/objectives_table.json if not --quick")
    parser.add_argument("--objectives", nargs="+", metavar="NAME", help="names, sums of them, or controls")
    parser.add_argument("--students", nargs="+", choices=list(STUDENTS), default=list(STUDENTS))
    parser.add_argument("--images", type=int, default=10_000, help="training images")
    parser.add_argument("--held-out", type=int, default=10_000, help="test images")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--views", type=int, default=4, help="different views of each image")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--leading", type=int, help="how many of each pair have all the seeds; all if unset")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="few objectives, images and epochs: a test of the script")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.images, arguments.held_out, arguments.epochs, arguments.views = 128, 100, 2, 1
        arguments.seeds = 1
    arguments.objectives = arguments.objectives or (
        list(QUICK) if arguments.quick else [NO_KD, *OBJECTIVES, *SUMS, RANDOM_TEACHER]
    )
    for name in arguments.objectives:
        kinds_of(name)  # a name that there is none of is refused before the first training
    folder = arguments.work if arguments.quick else Path("benchmarks/results")
    arguments.out = arguments.out or folder / "objectives_table.json"
    return arguments


if __name__ == "__main__":
    main()
