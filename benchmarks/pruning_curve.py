"""Latency and accuracy of pruned ResNet-56s against what remains of it, on the engine, beside Torch-Pruning.

    python benchmarks/pruning_curve.py --data ../shared/data --out benchmarks/results/pruning_curve.json

Every ratio of multiply-accumulates is reached in several ways: edgekd's order by l2 and by kd, its steps along the
predicted latency and along a table of engines that are timed first (both may keep more than the ratio, where less would
not be faster), and Torch-Pruning's own pruner (group magnitude), by its defaults, with `round_to=8`, and with the
residual streams left whole besides, whose steps may lead below the ratio. The network's shortcuts pad channels, which
Torch-Pruning takes for equal ones: by its defaults a residual then adds other channels than before the cut, and the
last form, which spares the layers that write to a stream, is the one without that fault. Each network recovers under
one short distillation, is exported and evaluated on test images that no decision has seen, and all engines are measured
by turns in one run. The table is timed in the card's first runtime alone. A cut of Torch-Pruning that does not run is
listed with its error. A run that was killed goes on. `draw_pruning.py` draws the result.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from cifar10 import PREPROCESSING, cifar10_npz, command, machine, resnet56, versions
from torch import nn

from edgekd.cli.console import ConsoleReporter
from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.graph import Graph
from edgekd.core.plan import RunReport
from edgekd.core.report import EvaluationReport, ProfileReport
from edgekd.core.report_io import REPORT_FILE, schema_from_json
from edgekd.core.runner import Runner, RunSettings
from edgekd.core.stage import Execution
from edgekd.core.store import LocalStore
from edgekd.errors import EdgekdError
from edgekd.nn.build import module_from_bundle
from edgekd.nn.count import count_macs
from edgekd.nn.edits import resize_edit
from edgekd.nn.save import bundle_from_module
from edgekd.pipeline.draft import TEACHER, Draft
from edgekd.pipeline.prepare import prepare, resources_of
from edgekd.pipeline.pruning import LATENCY_TABLE, kernel_block, table_config
from edgekd.pipeline.request import Options, Request
from edgekd.pipeline.stages import STAGES
from edgekd.pipeline.training import train_config
from edgekd.targets.schema import Target

WAYS: dict[str, dict[str, Any]] = {
    "macs-l2": {"importance": "l2", "follow": "macs"},
    "macs-kd": {"importance": "kd", "follow": "macs", "scope": "global"},
    "latency-kd": {"importance": "kd", "follow": "latency"},
    "measured-kd": {"importance": "kd", "follow": "measured"},
}
PEERS = {"torch-pruning": (1, False), "torch-pruning-8": (8, False), "torch-pruning-8-inner": (8, True)}
"""Torch-Pruning's `round_to`: its default, and the widths that ours end at; and whether residual streams stay whole."""
PEER_STEPS = 40


def main() -> None:
    arguments = _arguments()
    began = time.monotonic()
    store = LocalStore(arguments.work / "store")
    held_out = arguments.judged_images
    data = cifar10_npz(
        arguments.data, arguments.work / f"cifar10-{arguments.images}-{held_out}.npz",
        images=arguments.images, held_out=held_out,
    )  # fmt: skip
    request = Request(model=resnet56(arguments.data), target="host", data=str(data), seed=arguments.seed)
    with ConsoleReporter() as reporter:
        situation = prepare(request, store, reporter)
        peers, failures = _peer_bundles(situation.teacher, store, arguments.ratios)
        settings = RunSettings(
            seed=arguments.seed,
            resources=resources_of(situation),
            execution=Execution(device="cpu", threads=arguments.threads),
            reporter=reporter,
        )
        graph = _graph(arguments, tuple(peers), situation.target)
        report = Runner(STAGES, store).run(graph, {"teacher": situation.teacher, **peers}, settings)
    summary = _summary(arguments, report, store, failures) | {"seconds": time.monotonic() - began}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(summary, indent=1) + "\n")
    _print(summary)


def _graph(arguments: argparse.Namespace, peers: tuple[str, ...], target: Target) -> Graph:
    """A branch per way and ratio; one profile for all of them."""
    draft = Draft()
    draft.add("latency-model", "latency-model", {"threads": 1})
    draft.add(
        LATENCY_TABLE, LATENCY_TABLE, table_config(target, "fp32"), {"model": TEACHER, "latency_model": "latency-model"}
    )
    engine = draft.add("teacher-fp32", "export", {}, {"model": TEACHER})
    training = train_config(
        Options(teacher_views=min(arguments.epochs, 2)),
        epochs=arguments.epochs, fresh=False, size=PREPROCESSING.size, images=arguments.images,
    )  # fmt: skip
    shared = {"views": training["teacher_views"], "augment": training["augment"]}
    draft.add("answers", "teach", shared, {"teacher": engine})
    engines = [engine]
    for ratio in arguments.ratios:
        names = [_named(peer, ratio) for peer in PEERS]
        pruned = {name: f"@cut-of-{name}" for name in names if f"cut-of-{name}" in peers}
        for way, config in WAYS.items():
            name = _named(way, ratio)
            cut = {"macs_keep": ratio, "channel_multiple": target.channel_multiple, **config}
            ports = {"model": TEACHER}
            if config["follow"] != "macs":
                cut["kernel_block"] = kernel_block(target)
            if config["follow"] == "latency":
                ports["latency_model"] = "latency-model"
            if config["follow"] == "measured":
                ports["latency_table"] = LATENCY_TABLE
            if config["importance"] == "kd":
                ports["teacher"] = TEACHER
            pruned[name] = draft.add(f"{name}-cut", "prune", cut, ports)
        for name, node in pruned.items():
            ports = {"student": node, "teacher": TEACHER, "answers": "answers"}
            recovered = draft.add(f"{name}-recover", "distill", training, ports)
            engines.append(draft.add(name, "export", {}, {"model": recovered}))
    for name in engines:
        config = {"splits": ["select", "test"], "runtimes": ["onnxruntime"], "candidate": name}
        draft.add(f"{name}-accuracy", "evaluate", config, {"model": name})
    measured = {"runtimes": list(arguments.runtimes), "threads": [1], "duration_s": arguments.duration_s}
    draft.add("profile", "profile", measured, {"candidates": engines})
    inputs = {"teacher": BundleKind.TORCH, **dict.fromkeys(peers, BundleKind.TORCH)}
    return Graph(inputs=inputs, nodes=tuple(draft.nodes))


def _named(way: str, ratio: float) -> str:
    return f"{way}-{round(100 * ratio)}"


def _peer_bundles(
    teacher: ModelBundle, store: LocalStore, ratios: list[float]
) -> tuple[dict[str, ModelBundle], dict[str, str]]:
    """Torch-Pruning's networks by name, and the error of each that cannot be used."""
    bundles, failures = {}, {}
    for ratio, (peer, (round_to, inner)) in itertools.product(ratios, PEERS.items()):
        name = _named(peer, ratio)
        module = module_from_bundle(teacher, store.blobs)
        try:
            pruned = _cut_by_peer(copy.deepcopy(module), ratio, round_to, inner=inner)
            recipe = teacher.model.with_edit(resize_edit(module, pruned))
            with tempfile.TemporaryDirectory() as scratch:
                bundles[f"cut-of-{name}"] = bundle_from_module(
                    pruned, recipe=recipe, blobs=store.blobs, scratch=Path(scratch)
                )
        except (EdgekdError, RuntimeError, ValueError) as err:
            failures[name] = f"{type(err).__name__}: {err}"
    return bundles, failures


def _cut_by_peer(module: nn.Module, ratio: float, round_to: int, *, inner: bool) -> nn.Module:
    """The network after as many small steps of Torch-Pruning's magnitude pruner as it takes to reach the ratio."""
    import torch_pruning

    images, shape = torch.zeros(1, *PREPROCESSING.input_shape), PREPROCESSING.input_shape
    whole = count_macs(module, shape)
    spared = [[part for part in module.modules() if isinstance(part, nn.Linear)][-1]]
    if inner:
        spared += [part for name, part in module.named_modules() if name == "conv1" or name.endswith(".conv2")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = torch_pruning.pruner.MagnitudePruner(
            module,
            images,
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
            iterative_steps=PEER_STEPS,
            pruning_ratio=0.9,
            round_to=round_to,
            ignored_layers=spared,
        )
        for _ in range(PEER_STEPS):
            pruner.step()
            if count_macs(module, shape) <= ratio * whole:
                return module.eval()
    raise ValueError(f"its pruner cannot reach {ratio:g} of the multiply-accumulates")


def _summary(
    arguments: argparse.Namespace, report: RunReport, store: LocalStore, failures: dict[str, str]
) -> dict[str, Any]:
    def read(node: str, kind: type[Any]) -> Any:
        return schema_from_json(store.blobs.path(report.bundle(node).file(REPORT_FILE)), kind, node)

    profile: ProfileReport = read("profile", ProfileReport)
    rows = []
    for name in dict.fromkeys(entry.candidate for entry in profile.entries):
        found: EvaluationReport = read(f"{name}-accuracy", EvaluationReport)
        hits = [(e.value * e.n, e.n) for e in found.evaluations]
        way, _, ratio = name.rpartition("-")
        cut = next((node for node in report.nodes if node.name == f"{name}-cut"), None)
        rows.append(
            {
                "engine": name,
                "way": way,
                "ratio": None if name == "teacher-fp32" else int(ratio) / 100,
                "macs_m": report.node(name).metrics["macs_m"],
                "params_m": report.node(name).metrics["params_m"],
                "predicted_ms": None if cut is None else cut.metrics.get("predicted_ms"),
                "top1": sum(h for h, _ in hits) / sum(n for _, n in hits),
                "latency": {
                    entry.runtime: {
                        "p50_ms": entry.latency.p50_ms,
                        "median_95_ms": [entry.latency.median_low_ms, entry.latency.median_high_ms],
                        "n": entry.latency.n,
                    }
                    for entry in profile.entries
                    if entry.candidate == name and entry.latency is not None
                },
            }
        )
    return {
        "benchmark": "pruning_curve",
        "machine": machine() | {"device": profile.device},
        "versions": versions() | {"torch_pruning": _version("torch-pruning")},
        "command": command(),
        "setting": {key: getattr(arguments, key) for key in ("images", "judged_images", "epochs", "ratios", "seed")},
        "failures": failures,
        "stage_seconds": {node.name: round(node.seconds, 1) for node in report.nodes},
        "decisions": {node.name: list(node.decisions) for node in report.nodes if node.decisions},
        "rows": rows,
    }


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)


def _print(summary: dict[str, Any]) -> None:
    runtimes = list(dict.fromkeys(name for row in summary["rows"] for name in row["latency"]))
    print(f"\n{'engine':<24}{'MACs M':>8}{'top-1':>9}" + "".join(f"{name + ' ms':>18}" for name in runtimes))
    for row in summary["rows"]:
        times = "".join(f"{row['latency'][name]['p50_ms']:>18.3f}" for name in runtimes if name in row["latency"])
        print(f"{row['engine']:<24}{row['macs_m']:>8.1f}{100 * row['top1']:>8.2f}%{times}")
    for name, why in summary["failures"].items():
        print(f"{name}: {why}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with cifar10/ and weights/")
    parser.add_argument("--work", type=Path, default=Path("out/pruning_curve"), help="store, kept between runs")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/pruning_curve.json"))
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.85, 0.7, 0.5, 0.35])
    parser.add_argument("--runtimes", nargs="+", default=["onnxruntime", "openvino"])
    parser.add_argument("--images", type=int, default=20_000, help="training images of every recovery")
    parser.add_argument("--judged-images", type=int, default=10_000, help="on which accuracies are taken")
    parser.add_argument("--epochs", type=int, default=2, help="of every recovery")
    parser.add_argument("--duration-s", type=float, default=4.0, help="measuring time per engine and runtime")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
