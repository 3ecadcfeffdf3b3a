"""Does the search pick well? Really distils students of equal predicted latency and ranks the picks among them.

    python benchmarks/search_quality.py --data ../shared/data --work out/search_quality

Draws architectures of the residual space whose predicted latency lies just under the limit, lets every ranking order
them, then distils each ranking's pick and at least eight others, drawn at random, from the ResNet-56 teacher: the same
images, epochs and schedule for all, the last epoch judged on 10,000 images that no decision has seen. Prints and stores
accuracies with their spread over seeds, the place of each pick, and the rank correlation over the students drawn at
random. Everything trained is kept in `--work`: a run that was killed goes on.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cifar10 import PREPROCESSING, cifar10_npz, machine, resnet56, versions
from scipy.stats import kendalltau

from edgekd.cli.console import ConsoleReporter
from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.graph import Graph, Node
from edgekd.core.recipe import ModelRecipe
from edgekd.core.report_io import REPORT_FILE, schema_from_json
from edgekd.core.runner import Runner, RunSettings
from edgekd.core.stage import Execution
from edgekd.core.store import LocalStore
from edgekd.data.calibration import calibration_samples
from edgekd.nn.build import module_from_bundle, module_from_recipe
from edgekd.nn.save import bundle_from_module
from edgekd.pipeline.prepare import prepare, resources_of
from edgekd.pipeline.request import Request
from edgekd.pipeline.situation import Situation
from edgekd.pipeline.stages import STAGES
from edgekd.search.limit import Costs
from edgekd.search.proxy import batch_from_images
from edgekd.search.ranking import ranking_from_name
from edgekd.search.scoring import SEEDS, Scorer
from edgekd.search.space import SPACES, Arch, Task
from edgekd.targets.latency import LatencyModel
from edgekd.train.evaluate_torch import module_accuracy

AUGMENT = {"pad_px": 4, "flip": True, "crop_scale_min": 1.0}
RANKINGS = ("combined", "params+macs", "params", "macs", "diswot", "naswot")
BAND = 0.9
"""Students compared at equal latency take at least this share of the limit."""


def main() -> None:
    arguments = _arguments()
    with ConsoleReporter() as reporter:
        bench = Bench(arguments, reporter)
        pool = bench.pool()
        scores = bench.scores(pool)
        picks = {name: pool[int(np.argmax(values))] for name, values in scores.items()}
        others = random.Random(arguments.seed).sample(pool, arguments.students)
        trained = list(dict.fromkeys([*others, *picks.values()]))
        accuracies = {arch: [] for arch in trained}
        for seed in range(arguments.seeds):
            for arch, accuracy in zip(trained, bench.accuracies(trained, seed), strict=True):
                accuracies[arch].append(accuracy)
    summary = bench.summary(pool, scores, picks, others, accuracies)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(summary, indent=1) + "\n")
    _print(summary)


class Bench:
    """The teacher, its data and this machine's latency model; what was computed is kept in the store."""

    def __init__(self, arguments: argparse.Namespace, reporter: ConsoleReporter) -> None:
        self.arguments, self.reporter = arguments, reporter
        self.began = time.monotonic()
        self.store = LocalStore(arguments.work / "store")
        request = Request(
            model=resnet56(arguments.data),
            target="host",
            data=str(_images(arguments)),
        )
        self.situation: Situation = prepare(request, self.store, reporter)
        nodes = (Node(name="latency-model", stage="latency-model", config={"threads": 1}),)
        done = self._run(Graph(inputs={"teacher": BundleKind.TORCH}, nodes=nodes), {}, 0).node("latency-model")
        path = self.store.blobs.path(done.bundle.file(REPORT_FILE))
        self.model: LatencyModel = schema_from_json(path, LatencyModel, "latency-model")
        self.task = Task(
            preprocessing=PREPROCESSING,
            labels=self.situation.teacher.model.labels,
            classes=10,
            channel_multiple=self.situation.target.channel_multiple,
        )
        self.space = SPACES.get(arguments.space)(self.task)
        self.costs = Costs(self.space, input_shape=PREPROCESSING.input_shape, model=self.model, precision="int8")

    def pool(self) -> list[Arch]:
        """Distinct architectures in the band under the limit, drawn at random."""
        rng, limit, found = random.Random(self.arguments.seed), self.arguments.max_latency_ms, []
        while len(found) < self.arguments.pool:
            arch = self.space.sample(rng)
            predicted = self.costs.of(arch).predicted_ms
            if predicted is not None and BAND * limit <= predicted <= limit and arch not in found:
                found.append(arch)
                self.reporter.progress("draw", len(found), self.arguments.pool)
        return found

    def scores(self, pool: list[Arch]) -> dict[str, list[float]]:
        """By ranking: the score of each architecture."""
        assert self.situation.dataset is not None
        samples = calibration_samples(self.situation.dataset, PREPROCESSING, samples=32, seed=0)
        assert samples.labels is not None
        batch = batch_from_images(torch.from_numpy(samples.images), torch.from_numpy(samples.labels), classes=10)
        proxies = list(dict.fromkeys(proxy for name in RANKINGS for proxy in ranking_from_name(name).proxies))
        scorer = Scorer(
            module_from_bundle(self.situation.teacher, self.store.blobs), batch, proxies=proxies, seeds=SEEDS
        )
        found = []
        for arch in pool:
            found.append(scorer.score(self.space.recipe(arch)).values)
            self.reporter.progress("score", len(found), len(pool))
        table = {proxy: [row[place] for row in found] for place, proxy in enumerate(proxies)}
        return {
            name: list(ranking.scores(list(zip(*(table[proxy] for proxy in ranking.proxies), strict=True))))
            for name, ranking in ((name, ranking_from_name(name)) for name in RANKINGS)
        }

    def accuracies(self, archs: list[Arch], seed: int) -> list[float]:
        """Of each student after distillation, on the held-out images."""
        students = {f"s{place}": self._student(self.space.recipe(arch), seed) for place, arch in enumerate(archs)}
        arguments = self.arguments
        config = {
            "epochs": arguments.epochs,
            "lr": 0.1,
            "objective": "kd",
            "teacher_views": arguments.epochs,
            "augment": AUGMENT,
        }
        nodes = [
            Node(name="teacher-fp32", stage="export", inputs={"model": ("@teacher",)}),
            Node(
                name="answers",
                stage="teach",
                config={"views": arguments.epochs, "augment": AUGMENT},
                inputs={"teacher": ("teacher-fp32",)},
            ),
        ]
        for name in students:
            ports = {"student": (f"@{name}",), "teacher": ("@teacher",), "answers": ("answers",)}
            nodes.append(Node(name=f"distil-{name}", stage="distill", config=config, inputs=ports))
        graph = Graph(
            inputs={"teacher": BundleKind.TORCH, **dict.fromkeys(students, BundleKind.TORCH)}, nodes=tuple(nodes)
        )
        report = self._run(graph, students, seed)
        assert self.situation.dataset is not None
        held = [self.situation.dataset.select, self.situation.dataset.test]
        found = []
        for name in students:
            module = module_from_bundle(report.node(f"distil-{name}").bundle, self.store.blobs)
            found.append(statistics.fmean(module_accuracy(module, split, PREPROCESSING) for split in held))
        return found

    def summary(
        self,
        pool: list[Arch],
        scores: dict[str, list[float]],
        picks: dict[str, Arch],
        others: list[Arch],
        accuracies: dict[Arch, list[float]],
    ) -> dict[str, Any]:
        mean = {arch: statistics.fmean(values) for arch, values in accuracies.items()}
        place = {arch: pool.index(arch) for arch in accuracies}
        return {
            "benchmark": "search_quality",
            "machine": machine(),
            "versions": versions(),
            "command": "python benchmarks/search_quality.py",
            "setting": {
                key: getattr(self.arguments, key)
                for key in ("space", "max_latency_ms", "pool", "students", "images", "epochs", "seeds", "seed")
            },
            "latency_model_error": self.model.relative_error,
            "seconds": time.monotonic() - self.began,
            "students": [
                {
                    "recipe": self.space.recipe(arch).kwargs,
                    "drawn_at_random": arch in others,
                    "picked_by": [name for name, pick in picks.items() if pick == arch],
                    "predicted_ms": self.costs.of(arch).predicted_ms,
                    "params_m": self.costs.of(arch).params / 1e6,
                    "macs_m": self.costs.of(arch).macs / 1e6,
                    "top1": mean[arch],
                    "top1_by_seed": values,
                }
                for arch, values in sorted(accuracies.items(), key=lambda item: -mean[item[0]])
            ],
            "rankings": {
                name: {
                    "top1_of_pick": mean[picks[name]],
                    "better_random_students": sum(mean[arch] > mean[picks[name]] for arch in others),
                    "kendall_over_random_students": float(
                        kendalltau([values[place[arch]] for arch in others], [mean[arch] for arch in others]).statistic
                    ),
                }
                for name, values in scores.items()
            },
        }

    def _student(self, recipe: ModelRecipe, seed: int) -> ModelBundle:
        with tempfile.TemporaryDirectory() as scratch:
            module = module_from_recipe(recipe, seed=seed)
            return bundle_from_module(module, recipe=recipe, blobs=self.store.blobs, scratch=Path(scratch))

    def _run(self, graph: Graph, students: dict[str, ModelBundle], seed: int) -> Any:
        settings = RunSettings(
            seed=seed,
            resources=resources_of(self.situation),
            execution=Execution(device="cpu", threads=2),
            reporter=self.reporter,
        )
        return Runner(STAGES, self.store).run(graph, {"teacher": self.situation.teacher, **students}, settings)


def _print(summary: dict[str, Any]) -> None:
    print(f"\n{'top-1':>8}{'predicted ms':>14}{'params M':>10}{'MACs M':>8}  picked by")
    for student in summary["students"]:
        by = ", ".join(student["picked_by"])
        print(
            f"{100 * student['top1']:>7.2f}%{student['predicted_ms']:>14.3f}{student['params_m']:>10.3f}"
            f"{student['macs_m']:>8.1f}  {by}"
        )
    print(f"\n{'ranking':<14}{'top-1 of pick':>14}{'random students above it':>26}{'Kendall':>9}")
    for name, entry in summary["rankings"].items():
        print(
            f"{name:<14}{100 * entry['top1_of_pick']:>13.2f}%{entry['better_random_students']:>26}"
            f"{entry['kendall_over_random_students']:>9.2f}"
        )


def _images(arguments: argparse.Namespace) -> Path:
    """Training images, and test images that no decision sees as the held-out part."""
    path: Path = arguments.work / f"cifar10-{arguments.images}.npz"
    return cifar10_npz(arguments.data, path, images=arguments.images)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with cifar10/ and weights/")
    parser.add_argument("--work", type=Path, default=Path("out/search_quality"), help="store, kept between runs")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/search_quality.json"))
    parser.add_argument("--space", default="residual")
    parser.add_argument("--max-latency-ms", type=float, default=0.35)
    parser.add_argument("--pool", type=int, default=60, help="architectures that are ranked")
    parser.add_argument("--students", type=int, default=8, help="drawn from them at random and trained")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    return parser.parse_args()


if __name__ == "__main__":
    main()
