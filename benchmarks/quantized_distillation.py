"""Weights in few bits: quantized distillation and learned levels against rounding after training, with sizes.

    python benchmarks/quantized_distillation.py --data ../shared/data --work out/quantized_distillation

Distils one student per seed from the ResNet-56 teacher, then brings the same student to 2, 3 and 4 bits: rounded after
training with one grid per tensor, in buckets and per channel (PTQ), by quantized distillation (QD, in buckets and per
channel), and by differentiable quantization (DQ, in buckets), the student its own teacher, as Polino et al. have it, or
taught by the ResNet-56 as QD is. Beside them stands what as many further epochs bring in float. All see the same
images; the last epoch is judged on 10,000 images that no decision has seen. Sizes are those of the numbers alone, by
formula, packed and with a Huffman code for the whole model; a file adds its header, 17 kB here. What was trained is
kept in `--work`: a run that was killed goes on.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from cifar10 import PREPROCESSING, cifar10_npz, command, machine, resnet56, versions
from torch import nn

from edgekd.cli.console import ConsoleReporter
from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.graph import Graph, Node
from edgekd.core.recipe import ModelRecipe
from edgekd.core.runner import Runner, RunSettings
from edgekd.core.stage import Execution
from edgekd.core.store import LocalStore
from edgekd.nn.build import module_from_bundle, module_from_recipe
from edgekd.nn.save import bundle_from_module
from edgekd.pipeline.prepare import prepare, resources_of
from edgekd.pipeline.request import Request
from edgekd.pipeline.stages import STAGES
from edgekd.quant.bucket import Quantized, WeightGrid
from edgekd.quant.codes import CODES_FILE, code_counts, huffman_bits, packed_bytes, read_codes
from edgekd.quant.quantized_distillation import QuantizedWeights, outer_layers
from edgekd.train.evaluate_torch import module_accuracy

AUGMENT = {"pad_px": 4, "flip": True, "crop_scale_min": 1.0}
WHOLE = 1 << 30
"""A bucket that every tensor fits into: one grid for the whole tensor."""
ROUNDED = {
    "PTQ, one grid per tensor": ("bucket", WHOLE),
    "PTQ, buckets of 256": ("bucket", 256),
    "PTQ, per channel": ("channel", 256),
}
FURTHER = "float, trained further"
"""A control: as many further epochs in float as QD has at few bits."""
QD, QD_CHANNEL = "QD, buckets of 256", "QD, per channel"
DQ, DQ_TAUGHT = "DQ, buckets of 256", "DQ, buckets of 256, taught by the ResNet-56"


def main() -> None:
    arguments = _arguments()
    with ConsoleReporter() as reporter:
        bench = Bench(arguments, reporter)
        rows = [row for seed in range(arguments.seeds) for row in bench.rows(seed)]
    summary = bench.summary(rows)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(summary, indent=1) + "\n")
    _print(summary)


class Bench:
    """The teacher and its data; what was trained is kept in the store."""

    def __init__(self, arguments: argparse.Namespace, reporter: ConsoleReporter) -> None:
        self.arguments, self.reporter = arguments, reporter
        self.store = LocalStore(arguments.work / "store")
        images = cifar10_npz(
            arguments.data,
            arguments.work / f"cifar10-{arguments.images}-{arguments.held_out or 'all'}.npz",
            images=arguments.images,
            held_out=arguments.held_out,
        )
        request = Request(model=resnet56(arguments.data), target="host", data=str(images))
        self.situation = prepare(request, self.store, reporter)
        assert self.situation.dataset is not None
        self.dataset = self.situation.dataset

    def rows(self, seed: int) -> Iterator[dict[str, Any]]:
        """One result of each way at each number of bits, the float student first."""
        done = self._trained(seed)
        student = self._module(done["distil"])
        yield self._row(seed, "float", 32, student, {})
        yield self._row(seed, FURTHER, 32, self._module(done["further"]), {})
        exclude = outer_layers(student, PREPROCESSING.input_shape)
        for bits in self.arguments.bits:
            for name, (granularity, size) in ROUNDED.items():
                grid = WeightGrid.parse({"bits": bits, "granularity": granularity, "bucket_size": size}, name)
                rounded = copy.deepcopy(student)
                weights = QuantizedWeights(grid, exclude)
                weights.bind(rounded)
                weights.project_()
                yield self._row(seed, name, bits, rounded, weights.codes())
            for name, kind in ((QD, "qd"), (QD_CHANNEL, "qdc"), (DQ, "dq"), (DQ_TAUGHT, "dqt")):
                bundle = done[f"{kind}{bits}"].bundle
                _, coded = read_codes(self.store.blobs.path(bundle.file(CODES_FILE)))
                yield self._row(seed, name, bits, module_from_bundle(bundle, self.store.blobs), coded)

    def _trained(self, seed: int) -> dict[str, Any]:
        """Reports of the nodes that train, by name."""
        a = self.arguments
        common = {"objective": "kd", "augment": AUGMENT}
        taught = {"student": ("distil",), "teacher": ("@teacher",), "answers": ("answers",)}
        views = {"teacher_views": a.epochs}
        tune = {**common, **views, "epochs": a.tune_epochs}
        nodes = [
            Node(name="teacher-fp32", stage="export", inputs={"model": ("@teacher",)}),
            Node(
                name="answers",
                stage="teach",
                config={"views": a.epochs, "augment": AUGMENT},
                inputs={"teacher": ("teacher-fp32",)},
            ),
            Node(
                name="distil",
                stage="distill",
                config={**common, **views, "epochs": a.epochs, "lr": 0.1},
                inputs={**taught, "student": ("@student",)},
            ),
        ]
        further = {**tune, "lr": a.qd_lr}
        nodes.append(Node(name="further", stage="distill", config=further, inputs=taught))
        for bits in self.arguments.bits:
            for name, granularity in (("qd", "bucket"), ("qdc", "channel")):
                grid = {"bits": bits, "granularity": granularity, "lr": a.qd_lr}
                nodes.append(
                    Node(name=f"{name}{bits}", stage="quantized-distill", config={**tune, **grid}, inputs=taught)
                )
            levels = {**common, "epochs": a.tune_epochs, "bits": bits, "lr": a.dq_lr}
            nodes.append(
                Node(name=f"dq{bits}", stage="differentiable-quantize", config=levels, inputs={"student": ("distil",)})
            )
            nodes.append(
                Node(name=f"dqt{bits}", stage="differentiable-quantize", config={**levels, **views}, inputs=taught)
            )
        graph = Graph(inputs={"teacher": BundleKind.TORCH, "student": BundleKind.TORCH}, nodes=tuple(nodes))
        settings = RunSettings(
            seed=seed,
            resources=resources_of(self.situation),
            execution=Execution(device="cpu", threads=a.threads),
            reporter=self.reporter,
        )
        bundles = {"teacher": self.situation.teacher, "student": self._student(seed)}
        report = Runner(STAGES, self.store).run(graph, bundles, settings)
        return {node.name: report.node(node.name) for node in nodes}

    def _student(self, seed: int) -> ModelBundle:
        """A residual network of 0.27 M parameters, the size of ResNet-20, randomly initialised."""
        recipe = ModelRecipe(
            builder="edgekd:residual",
            kwargs={"depths": [3, 3, 3], "widths": [16, 16, 32, 64], "classes": 10},
            preprocessing=PREPROCESSING,
            labels=self.situation.teacher.model.labels,
        )
        with tempfile.TemporaryDirectory() as scratch:
            module = module_from_recipe(recipe, seed=seed)
            return bundle_from_module(module, recipe=recipe, blobs=self.store.blobs, scratch=Path(scratch))

    def _module(self, node: Any) -> nn.Module:
        return module_from_bundle(node.bundle, self.store.blobs)

    def _row(
        self,
        seed: int,
        way: str,
        bits: int,
        module: nn.Module,
        coded: Mapping[str, Quantized],
    ) -> dict[str, Any]:
        """Accuracy and sizes."""
        held = [self.dataset.select, self.dataset.test]
        images = [len(split) for split in held]
        execution = Execution(device="cpu", threads=self.arguments.threads)
        right = [module_accuracy(module, split, PREPROCESSING, execution) for split in held]
        top1 = sum(share * count for share, count in zip(right, images, strict=True)) / sum(images)
        full = sum(x.numel() for name, x in module.state_dict().items() if name not in coded)
        length = huffman_bits(code_counts(coded.values()))
        return {
            "seed": seed,
            "way": way,
            "bits": bits,
            "top1": top1,
            "size_mib_packed": packed_bytes(full=full, coded=coded.values()) / 2**20,
            "size_mib_huffman": packed_bytes(full=full, coded=coded.values(), bits=length) / 2**20,
            "huffman_bits": length if coded else 32.0,
        }

    def summary(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        groups: dict[tuple[int, str], list[dict[str, Any]]] = {}
        for row in rows:
            groups.setdefault((row["bits"], row["way"]), []).append(row)
        table = [
            {
                "bits": bits,
                "way": way,
                "top1": statistics.fmean(row["top1"] for row in found),
                "spread": statistics.stdev(row["top1"] for row in found) if len(found) > 1 else None,
                "top1_by_seed": [row["top1"] for row in found],
                **{
                    key: statistics.fmean(row[key] for row in found)
                    for key in ("size_mib_packed", "size_mib_huffman", "huffman_bits")
                },
            }
            for (bits, way), found in sorted(groups.items(), key=lambda item: -item[0][0])
        ]
        return {
            "benchmark": "quantized_distillation",
            "machine": machine(),
            "versions": versions(),
            "command": command(),
            "setting": {
                key: getattr(self.arguments, key)
                for key in ("images", "held_out", "bits", "epochs", "tune_epochs", "seeds", "qd_lr", "dq_lr")
            },
            "torch_threads": torch.get_num_threads(),
            "table": table,
        }


def _print(summary: dict[str, Any]) -> None:
    print(
        f"\n{'bits':>4}  {'way':<26}{'top-1':>8}{'spread':>9}{'packed MiB':>12}{'Huffman MiB':>13}{'bits/weight':>13}"
    )
    for row in summary["table"]:
        spread = "" if row["spread"] is None else f"{100 * row['spread']:.2f}"
        print(
            f"{row['bits']:>4}  {row['way']:<26}{100 * row['top1']:>7.2f}%{spread:>9}{row['size_mib_packed']:>12.3f}"
            f"{row['size_mib_huffman']:>13.3f}{row['huffman_bits']:>13.2f}"
        )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with cifar10/ and weights/")
    parser.add_argument("--work", type=Path, default=Path("out/quantized_distillation"), help="store, kept")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/quantized_distillation.json"))
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--held-out", type=int, help="images to judge on; all 10,000 without it")
    parser.add_argument("--bits", type=int, nargs="+", choices=(2, 3, 4, 8), default=[2, 3, 4])
    parser.add_argument("--epochs", type=int, default=12, help="of the float student")
    parser.add_argument("--tune-epochs", type=int, default=6, help="of QD and DQ, from the float student on")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--qd-lr", type=float, default=0.02)
    parser.add_argument("--dq-lr", type=float, default=0.1)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
