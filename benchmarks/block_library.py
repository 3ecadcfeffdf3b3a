"""Is a student of the teacher's own blocks better than a searched one that starts from nothing, at equal latency?

    python benchmarks/block_library.py --data ../shared/data --out benchmarks/results/block_library.json

Makes a block library of the CIFAR-10 ResNet-56, assembles the student that keeps the limit, searches a student under
the same limit, and distils both from the same teacher for the same images, epochs and schedule, each with the learning
rate that the pipeline gives its kind. Prints and stores accuracies before and after, on test images that no decision
has seen, predicted latencies, and what each stage took. A run that was killed goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from cifar10 import PREPROCESSING, cifar10_npz, machine, resnet56, versions

from edgekd.cli.console import ConsoleReporter
from edgekd.core.bundle import BundleKind
from edgekd.core.graph import Graph
from edgekd.core.plan import RunReport
from edgekd.core.runner import Runner, RunSettings
from edgekd.core.stage import Execution
from edgekd.core.store import LocalStore
from edgekd.nn.build import module_from_bundle
from edgekd.pipeline.draft import TEACHER, Draft
from edgekd.pipeline.prepare import prepare, resources_of
from edgekd.pipeline.request import Options, Request
from edgekd.pipeline.situation import Situation
from edgekd.pipeline.stages import STAGES
from edgekd.pipeline.training import train_config
from edgekd.train.evaluate_torch import module_accuracy

BEFORE = {"assembled": "assemble", "searched": "pick"}
AFTER = {"assembled": "assembled-distill", "searched": "searched-distill"}


def main() -> None:
    arguments = _arguments()
    began = time.monotonic()
    store = LocalStore(arguments.work / "store")
    request = Request(
        model=resnet56(arguments.data),
        target="host",
        data=str(_images(arguments)),
        seed=arguments.seed,
    )
    with ConsoleReporter() as reporter:
        situation = prepare(request, store, reporter)
        settings = RunSettings(
            seed=arguments.seed,
            resources=resources_of(situation),
            execution=Execution(device="cpu", threads=arguments.threads),
            reporter=reporter,
        )
        report = Runner(STAGES, store).run(_graph(arguments), {"teacher": situation.teacher}, settings)
    summary = _summary(arguments, report, situation, store) | {"seconds": time.monotonic() - began}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(summary, indent=1) + "\n")
    _print(summary)


def _graph(arguments: argparse.Namespace) -> Graph:
    """Two branches that share the limit, the teacher and its answers."""
    draft = Draft()
    limit = {"budget_ms": arguments.max_latency_ms, "precision": arguments.precision}
    draft.add("latency-model", "latency-model", {"threads": 1})
    library = {
        "images": arguments.library_images,
        "held_out": arguments.library_images // 4,
        "training": {"epochs": arguments.library_epochs},
        "time_limit_s": arguments.library_limit_s,
        "channel_multiple": 8,
    }
    draft.add("block-library", "block-library", library, {"teacher": TEACHER})
    ports = {"teacher": TEACHER, "latency_model": "latency-model"}
    draft.add("assemble", "assemble", limit, {**ports, "library": "block-library"})
    draft.add("search", "search", {**limit, "space": "residual", "evaluations": arguments.evaluations}, ports)
    draft.add("pick", "pick", {"rank": 0}, {"search": "search", "teacher": TEACHER})
    options = Options(teacher_views=min(arguments.epochs, 2))
    for label, student in BEFORE.items():
        config = train_config(
            options,
            epochs=arguments.epochs,
            fresh=label == "searched",
            size=PREPROCESSING.size,
            images=arguments.images,
        )
        if label == "assembled" and arguments.lr is not None:
            config["lr"] = arguments.lr
        if "answers" not in [node.name for node in draft.nodes]:
            shared = {"views": config["teacher_views"], "augment": config["augment"]}
            draft.add("teacher-fp32", "export", {}, {"model": TEACHER})
            draft.add("answers", "teach", shared, {"teacher": "teacher-fp32"})
        draft.add(AFTER[label], "distill", config, {"student": student, "teacher": TEACHER, "answers": "answers"})
    return Graph(inputs={"teacher": BundleKind.TORCH}, nodes=tuple(draft.nodes))


def _summary(
    arguments: argparse.Namespace, report: RunReport, situation: Situation, store: LocalStore
) -> dict[str, Any]:
    dataset = situation.dataset
    assert dataset is not None
    held = (dataset.select, dataset.test)

    def accuracy(bundle: Any) -> float:
        module = module_from_bundle(bundle, store.blobs)
        return statistics.fmean(module_accuracy(module, split, PREPROCESSING) for split in held)

    library, assembled = report.node("block-library"), report.node("assemble")
    return {
        "benchmark": "block_library",
        "machine": machine(),
        "versions": versions(),
        "command": "python benchmarks/block_library.py",
        "setting": {
            key: getattr(arguments, key)
            for key in ("max_latency_ms", "precision", "images", "judged_images", "epochs", "library_images", "seed")
        },
        "stage_seconds": {node.name: round(node.seconds, 1) for node in report.nodes},
        "teacher_top1": accuracy(situation.teacher),
        "replacements": library.metrics["replacements"],
        "divergence": {"as a whole": assembled.metrics["kl"], "sum of single": assembled.metrics["kl_expected"]},
        "students": {
            label: {
                "predicted_ms": report.node(BEFORE[label]).metrics["predicted_ms"],
                "macs_m": report.node(BEFORE[label]).metrics["macs_m"],
                "params_m": report.node(BEFORE[label]).metrics["params_m"],
                "top1_before": accuracy(report.node(BEFORE[label]).bundle),
                "top1": accuracy(report.node(AFTER[label]).bundle),
            }
            for label in BEFORE
        },
        "decisions": {node.name: list(node.decisions) for node in report.nodes if node.decisions},
        "blocks": assembled.metrics["blocks"],
    }


def _print(summary: dict[str, Any]) -> None:
    print(f"\n{'first':<12}{'last':<12}{'by':<12}{'cost ms':>9}{'error':>8}{'KL':>9}")
    for row in summary["blocks"]:
        if row["chosen"]:
            error = "" if row["error"] is None else f"{row['error']:.3f}"
            print(f"{row['first']:<12}{row['last']:<12}{row['by']:<12}{row['cost']:>9.4f}{error:>8}{row['kl']:>9.4f}")
    print(f"\n{'student':<12}{'predicted ms':>13}{'MACs M':>8}{'params M':>10}{'before':>9}{'distilled':>11}")
    for label, entry in summary["students"].items():
        print(
            f"{label:<12}{entry['predicted_ms']:>13.3f}{entry['macs_m']:>8.1f}{entry['params_m']:>10.3f}"
            f"{100 * entry['top1_before']:>8.2f}%{100 * entry['top1']:>10.2f}%"
        )
    setting = summary["setting"]
    print(
        f"teacher {100 * summary['teacher_top1']:.2f} %; both distilled on {setting['images']:,} images x "
        f"{setting['epochs']} epochs; {summary['replacements']} replacements in "
        f"{summary['stage_seconds']['block-library']:.0f} s; {summary['seconds'] / 60:.1f} min in all"
    )


def _images(arguments: argparse.Namespace) -> Path:
    """Training images, and test images that no decision sees as the held-out part."""
    images, judged = arguments.images, arguments.judged_images
    path: Path = arguments.work / f"cifar10-{images}-{judged}.npz"
    return cifar10_npz(arguments.data, path, images=images, held_out=judged)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with cifar10/ and weights/")
    parser.add_argument("--work", type=Path, default=Path("out/block_library"), help="store, kept between runs")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/block_library.json"))
    parser.add_argument("--max-latency-ms", type=float, default=0.38)
    parser.add_argument("--precision", choices=("fp32", "int8"), default="int8")
    parser.add_argument("--images", type=int, default=20_000, help="training images of both distillations")
    parser.add_argument("--judged-images", type=int, default=10_000, help="on which accuracies are taken")
    parser.add_argument("--epochs", type=int, default=4, help="of both distillations")
    parser.add_argument("--lr", type=float, help="of the assembled student; default: the pipeline's")
    parser.add_argument("--library-images", type=int, default=1024)
    parser.add_argument("--library-epochs", type=int, default=4)
    parser.add_argument("--library-limit-s", type=float, help="limit of time; default: none")
    parser.add_argument("--evaluations", type=int, default=200, help="architectures that the search scores")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
