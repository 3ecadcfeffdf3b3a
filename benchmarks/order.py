"""In which order should a network be distilled, pruned and quantized? The same steps in others, for as many epochs.

    python benchmarks/order.py --data ../shared/data --out benchmarks/results/order.json

Two beginnings: a residual student of random weights beside its ResNet-56 teacher, and the trained teacher itself. Every
order distils for the same number of epochs in all, keeps the same share of multiply-accumulates, and ends in the same
post-training INT8 graph, but for the `brief` and `whole` ones, which say what a searched student and its twin cost
(`ORDERS`); `joint` spends its last epochs at quantized weights (quantized distillation). Accuracies are
taken on test images that no decision has seen, before and after quantization, for each seed; engines are measured by
turns. Orders are plain recipes of existing stages, and steps that two orders share are computed once. A run that was
killed goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from cifar10 import PREPROCESSING, cifar10_npz, command, machine, resnet56, versions

from edgekd.cli.console import ConsoleReporter
from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.graph import Graph
from edgekd.core.plan import RunReport
from edgekd.core.recipe import ModelRecipe
from edgekd.core.report import EvaluationReport, ProfileReport
from edgekd.core.report_io import REPORT_FILE, schema_from_json
from edgekd.core.runner import Runner, RunSettings
from edgekd.core.stage import Execution
from edgekd.core.store import LocalStore
from edgekd.nn.build import module_from_recipe
from edgekd.nn.save import bundle_from_module
from edgekd.pipeline.draft import TEACHER, Draft
from edgekd.pipeline.prepare import prepare, resources_of
from edgekd.pipeline.request import Options, Request
from edgekd.pipeline.stages import STAGES
from edgekd.pipeline.training import train_config

STUDENT = "@student"
Step = tuple[str, float]
"""(`distil`, share of the epochs), (`prune`, share of the MACs that this cut keeps, as a power of the whole share), or
(`joint`, share of the epochs): distillation at quantized weights."""
ORDERS: dict[str, tuple[str, tuple[Step, ...]]] = {
    "student-distil-prune": (STUDENT, (("distil", 1.0), ("prune", 1.0))),
    "student-prune-distil": (STUDENT, (("prune", 1.0), ("distil", 1.0))),
    "student-distil-prune-distil": (STUDENT, (("distil", 2 / 3), ("prune", 1.0), ("distil", 1 / 3))),
    "student-joint": (STUDENT, (("distil", 2 / 3), ("prune", 1.0), ("joint", 1 / 3))),
    "student-prune-brief": (STUDENT, (("prune", 1.0), ("distil", 2 / 3))),
    "student-whole": (STUDENT, (("distil", 1.0),)),
    "student-whole-brief": (STUDENT, (("distil", 2 / 3),)),
    "teacher-distil-prune": (TEACHER, (("distil", 1.0), ("prune", 1.0))),
    "teacher-prune-distil": (TEACHER, (("prune", 1.0), ("distil", 1.0))),
    "teacher-rounds": (TEACHER, (("prune", 1 / 2), ("distil", 1 / 3), ("prune", 1 / 2), ("distil", 2 / 3))),
    "teacher-joint": (TEACHER, (("prune", 1.0), ("distil", 2 / 3), ("joint", 1 / 3))),
}
"""All of them are quantized after training at the end.

`student-whole` is not cut. The `brief` ones train for two thirds: a chain that keeps both a whole student and a cut one
pays for `student-distil-prune-distil` in all, or for two brief ones, which is a third more.
"""


def main() -> None:
    arguments = _arguments()
    began = time.monotonic()
    store = LocalStore(arguments.work / "store")
    path = arguments.work / f"cifar10-{arguments.images}-{arguments.judged_images}.npz"
    data = cifar10_npz(arguments.data, path, images=arguments.images, held_out=arguments.judged_images)
    runs = []
    with ConsoleReporter() as reporter:
        for seed in arguments.seeds:
            request = Request(model=resnet56(arguments.data), target="host", data=str(data), seed=seed)
            situation = prepare(request, store, reporter)
            settings = RunSettings(
                seed=seed,
                resources=resources_of(situation),
                execution=Execution(device="cpu", threads=arguments.threads),
                reporter=reporter,
            )
            given = {"teacher": situation.teacher, "student": _student(situation.teacher, store, seed)}
            graph, steps = _graph(arguments, situation.target.channel_multiple)
            report = Runner(STAGES, store).run(graph, given, settings)
            runs.append(_rows(report, store, seed, steps))
    summary = {
        "benchmark": "order",
        "machine": machine(),
        "versions": versions(),
        "command": command(),
        "setting": {
            key: getattr(arguments, key)
            for key in ("images", "judged_images", "epochs", "views", "keep", "seeds", "importance")
        },
        "seconds": time.monotonic() - began,
        "orders": {name: [list(step) for step in ORDERS[name][1]] for name in arguments.orders},
        "rows": [row for rows in runs for row in rows],
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(summary, indent=1) + "\n")
    _print(summary)


def _student(teacher: ModelBundle, store: LocalStore, seed: int) -> ModelBundle:
    """A residual network of the teacher's family, a third as deep, with random weights."""
    recipe = ModelRecipe(
        builder="edgekd:residual",
        kwargs={"depths": [3, 3, 3], "widths": [16, 16, 32, 64], "classes": 10, "in_channels": 3},
        preprocessing=teacher.model.preprocessing,
        labels=teacher.model.labels,
    )
    with tempfile.TemporaryDirectory() as scratch:
        module = module_from_recipe(recipe, seed=seed)
        return bundle_from_module(module, recipe=recipe, blobs=store.blobs, scratch=Path(scratch))


def _graph(arguments: argparse.Namespace, multiple: int) -> tuple[Graph, dict[str, list[str]]]:
    """The graph, and the nodes of each order's steps."""
    draft = Draft()
    draft.add("calibration", "calibration", {}, {"model": TEACHER})
    shared = _training(arguments, epochs=1, fresh=False)
    asked = {"views": shared["teacher_views"], "augment": shared["augment"]}
    draft.add("answers", "teach", asked, {"teacher": draft.add("teacher-fp32", "export", {}, {"model": TEACHER})})
    engines, made, chains = [], dict[tuple[Any, ...], str](), dict[str, list[str]]()
    for name in arguments.orders:
        start, steps = ORDERS[name]
        node, told, trained = start, (start,), start == TEACHER
        chains[name] = []
        for number, (what, share) in enumerate(steps):
            told = (*told, (what, share))
            if told not in made:  # two orders may begin alike
                made[told] = _step(draft, arguments, f"{name}-{number}-{what}", node, what, share, trained, multiple)
            node, trained = made[told], trained or what != "prune"
            chains[name].append(node)
        full = draft.add(f"{name}-fp32", "export", {}, {"model": node, "samples": "calibration"})
        config = {"scheme": "ort-u8s8"}
        engines += [full, draft.add(f"{name}-int8", "quantize", config, {"model": full, "calibration": "calibration"})]
    for engine in engines:
        config = {"splits": ["select", "test"], "runtimes": ["onnxruntime"], "candidate": engine, "exact": True}
        draft.add(f"{engine}-accuracy", "evaluate", config, {"model": engine})
    measured = {"runtimes": ["onnxruntime"], "threads": [1], "duration_s": arguments.duration_s}
    draft.add("profile", "profile", measured, {"candidates": engines})
    inputs = {"teacher": BundleKind.TORCH, "student": BundleKind.TORCH}
    return Graph(inputs=inputs, nodes=tuple(draft.nodes)), chains


def _step(
    draft: Draft,
    arguments: argparse.Namespace,
    name: str,
    node: str,
    what: str,
    share: float,
    trained: bool,
    multiple: int,
) -> str:
    """One step as a node; a share of the epochs is at least one epoch."""
    if what == "prune":
        cut = {
            "macs_keep": arguments.keep**share,
            "channel_multiple": multiple,
            "importance": arguments.importance if trained else "l2",
            "scope": "uniform",
        }
        return draft.add(name, "prune", cut, {"model": node, "teacher": TEACHER})
    epochs = max(1, round(arguments.epochs * share))
    training = _training(arguments, epochs=epochs, fresh=not trained)
    stage = "distill" if what == "distil" else "quantized-distill"
    return draft.add(name, stage, training, {"student": node, "teacher": TEACHER, "answers": "answers"})


def _training(arguments: argparse.Namespace, *, epochs: int, fresh: bool) -> dict[str, Any]:
    return train_config(
        Options(teacher_views=arguments.views),
        epochs=epochs, fresh=fresh, size=PREPROCESSING.size, images=arguments.images,
    )  # fmt: skip


def _rows(report: RunReport, store: LocalStore, seed: int, steps: dict[str, list[str]]) -> list[dict[str, Any]]:
    def read(node: str, kind: type[Any]) -> Any:
        return schema_from_json(store.blobs.path(report.bundle(node).file(REPORT_FILE)), kind, node)

    def accuracy(engine: str) -> float:
        found: EvaluationReport = read(f"{engine}-accuracy", EvaluationReport)
        return sum(e.value * e.n for e in found.evaluations) / sum(e.n for e in found.evaluations)

    profile: ProfileReport = read("profile", ProfileReport)
    times = {entry.candidate: entry.latency.p50_ms for entry in profile.entries if entry.latency is not None}
    return [
        {
            "order": name,
            "seed": seed,
            "macs_m": report.node(f"{name}-fp32").metrics["macs_m"],
            "top1_fp32": accuracy(f"{name}-fp32"),
            "top1_int8": accuracy(f"{name}-int8"),
            "p50_ms_fp32": times.get(f"{name}-fp32"),
            "p50_ms_int8": times.get(f"{name}-int8"),
            "seconds": sum(report.node(step).seconds for step in nodes),
        }
        for name, nodes in steps.items()
    ]


def _print(summary: dict[str, Any]) -> None:
    print(f"\n{'order, then PTQ':<30}{'seeds':>6}{'MACs M':>8}{'FP32':>9}{'INT8':>9}{'spread':>8}{'INT8 ms':>10}")
    for name in summary["orders"]:
        rows = [row for row in summary["rows"] if row["order"] == name]
        full, int8 = ([row[key] for row in rows] for key in ("top1_fp32", "top1_int8"))
        times = [row["p50_ms_int8"] for row in rows if row["p50_ms_int8"] is not None]
        print(
            f"{name:<30}{len(rows):>6}{statistics.fmean(row['macs_m'] for row in rows):>8.1f}"
            f"{100 * statistics.fmean(full):>8.2f}%{100 * statistics.fmean(int8):>8.2f}%"
            f"{100 * (max(int8) - min(int8)):>8.2f}" + (f"{statistics.median(times):>10.3f}" if times else "")
        )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with cifar10/ and weights/")
    parser.add_argument("--work", type=Path, default=Path("out/order"), help="store, kept between runs")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/order.json"))
    parser.add_argument("--orders", nargs="+", choices=list(ORDERS), default=list(ORDERS), help="all unless given")
    parser.add_argument("--images", type=int, default=10_000, help="training images")
    parser.add_argument("--judged-images", type=int, default=10_000, help="on which accuracies are taken")
    parser.add_argument("--epochs", type=int, default=9, help="of distillation, over all steps of an order")
    parser.add_argument("--views", type=int, default=4, help="different views of each image")
    parser.add_argument("--keep", type=float, default=0.6, help="share of multiply-accumulates after all cuts")
    parser.add_argument("--importance", default="kd", help="of cuts of trained networks; l2 before any training")
    parser.add_argument("--duration-s", type=float, default=3.0, help="measuring time per engine")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
