"""Images per second of distilling ResNet-56 into ResNet-20 on CIFAR shapes, beside a plain mdistiller-style loop.

    python benchmarks/distillation_speed.py --mdistiller PATH --out benchmarks/results/distillation_speed.json

PATH is a checkout of megvii-research/mdistiller; it is not part of this repository. Networks, loss and transforms of
the plain loop are its own (CIFAR-100 transforms through torchvision, a DataLoader with worker processes, SGD); the
order of events in a step is that of its trainer, without logging. The very same networks are trained by edgekd with the
same batch size, optimizer and augmentation. Rounds alternate between both in one process, so that a busy machine hits
both.

edgekd is timed three ways: with a live teacher, in epochs that fill the teacher cache, and in epochs that read it. A
schedule of E epochs over V views is V filling and E - V reading ones.

Images are random: speed does not depend on what they show. Accuracies are the business of `objectives_table.py`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from cifar10 import machine, versions
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from edgekd.core.digest import digest
from edgekd.core.preprocess import Preprocessing
from edgekd.core.stage import Context, Execution
from edgekd.data import dataset as images
from edgekd.data.augment import Augment
from edgekd.testing.harness import make_context
from edgekd.train.config import TrainConfig
from edgekd.train.fit import distil_

CLASSES = 100
MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
PREPROCESSING = Preprocessing(size=(32, 32), mean=MEAN, std=STD)
SCHEDULE = {"epochs": 240, "views": 8}


class LogitsOnly(nn.Module):
    """A network of mdistiller, which returns features too, as images to logits."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.module(x)[0]
        return out


class Clock:
    """A reporter that remembers when epochs ended; for progress and messages it has no use."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.ends: list[float] = []

    def message(self, text: str, *, level: str = "info") -> None:
        return None

    def progress(self, task: str, done: int, total: int, values: Mapping[str, float] | None = None) -> None:
        if done % self.steps == 0:
            self.ends.append(time.perf_counter())

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


class Pictures(Dataset[tuple[Any, int, int]]):
    """As mdistiller's instance data sets: a transformed picture, its label, its index."""

    def __init__(self, pixels: np.ndarray, labels: np.ndarray, transform: Any) -> None:
        self.pixels, self.labels, self.transform = pixels, labels, transform

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[Any, int, int]:
        return self.transform(Image.fromarray(self.pixels[index])), int(self.labels[index]), index


def plain_epoch(student: nn.Module, teacher: nn.Module, loader: DataLoader[Any], parts: Any) -> float:
    """Seconds of an epoch as mdistiller trains it, workers started beforehand."""
    distiller = parts.KD(student, teacher, parts.cfg).train()
    optimizer = torch.optim.SGD(distiller.get_learnable_parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    batches = iter(loader)
    first = next(batches)  # starting workers is paid once per epoch there; it is left out in its favour
    began = time.perf_counter()
    for image, target, index in (first, *batches):
        optimizer.zero_grad()
        predicted, losses = distiller(image=image.float(), target=target, index=index, epoch=1)
        loss = sum(part.mean() for part in losses.values())
        loss.backward()
        optimizer.step()
        top = predicted.topk(5, 1)[1].eq(target[:, None])
        float(top[:, 0].sum()), float(top.sum()), float(loss.detach())
    return time.perf_counter() - began


def our_epochs(
    student: nn.Module, teacher: nn.Module, data: images.Dataset, batch: int, views: int, threads: int
) -> list[float]:
    """Seconds of the second and third of three epochs: with two views the second fills the cache, the third reads."""
    steps = -(-len(data.train) // batch)
    config = TrainConfig(
        epochs=3, batch_size=batch, lr=0.05, nesterov=False, augment=Augment(pad_px=4, flip=True), teacher_views=views
    )
    clock = Clock(steps)
    with tempfile.TemporaryDirectory() as folder:
        base = make_context(Path(folder), resources={"data": data})
        ctx = Context(**{**vars(base), "reporter": clock, "execution": Execution(device="cpu", threads=threads)})
        distil_(LogitsOnly(student), LogitsOnly(teacher), data, PREPROCESSING, config, ctx)
    return [end - start for start, end in zip(clock.ends, clock.ends[1:], strict=False)]


def random_data(n: int) -> images.Dataset:
    """n random images of 32x32 as a data set."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
    labels = rng.integers(0, CLASSES, n).astype(np.int64)
    split = images.Split(images.ArrayImages(pixels), np.arange(n, dtype=np.int64), labels)
    names = tuple(str(number) for number in range(CLASSES))
    key = digest("random", n)
    return images.Dataset(name="random", classes=names, train=split, select=split, test=split, digest=key)


def speeds(arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Images per second by way of training, one value per round."""
    sys.path.insert(0, str(arguments.mdistiller))
    from mdistiller.distillers.KD import KD
    from mdistiller.models.cifar.resnet import resnet20, resnet56
    from torchvision import transforms

    weights = SimpleNamespace(CE_WEIGHT=0.1, KD_WEIGHT=0.9)  # of its configs/cifar100/kd.yaml
    parts = SimpleNamespace(KD=KD, cfg=SimpleNamespace(KD=SimpleNamespace(TEMPERATURE=4, LOSS=weights)))
    data = random_data(arguments.images)
    transform = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    rows = np.arange(arguments.images)
    pixels = data.train.images(rows, PREPROCESSING)
    assert data.train.labels is not None
    loader = DataLoader(
        Pictures(pixels, data.train.labels, transform),
        batch_size=arguments.batch,
        shuffle=True,
        num_workers=arguments.loader_workers,
    )
    found: dict[str, list[float]] = {"plain": [], "live": [], "fill": [], "read": []}
    torch.set_num_threads(arguments.threads)
    for _ in range(arguments.rounds):
        student, teacher = resnet20(num_classes=CLASSES), resnet56(num_classes=CLASSES).eval()
        found["plain"].append(arguments.images / plain_epoch(student, teacher, loader, parts))
        student = resnet20(num_classes=CLASSES)
        live = our_epochs(student, teacher, data, arguments.batch, 0, arguments.threads)
        student = resnet20(num_classes=CLASSES)
        filled = our_epochs(student, teacher, data, arguments.batch, 2, arguments.threads)
        found["live"].append(arguments.images / min(live))
        found["fill"].append(arguments.images / filled[0])
        found["read"].append(arguments.images / filled[1])
        print({name: round(values[-1]) for name, values in found.items()}, flush=True)
    return found


def summary(found: Mapping[str, list[float]]) -> dict[str, Any]:
    """Medians and ranges, ratios per round, and the whole schedule."""
    medians = {name: statistics.median(values) for name, values in found.items()}
    ratios = {
        name: [ours / plain for ours, plain in zip(values, found["plain"], strict=True)]
        for name, values in found.items()
        if name != "plain"
    }
    filling, reading = SCHEDULE["views"], SCHEDULE["epochs"] - SCHEDULE["views"]
    schedule = [
        SCHEDULE["epochs"] / (filling / fill + reading / read)
        for fill, read in zip(ratios["fill"], ratios["read"], strict=True)
    ]
    return {
        "images_per_s": {name: {"median": medians[name], "rounds": values} for name, values in found.items()},
        "ratio_to_plain": {
            name: {"median": statistics.median(values), "min": min(values), "max": max(values)}
            for name, values in {**ratios, "schedule": schedule}.items()
        },
        "schedule": SCHEDULE,
    }


def main() -> None:
    """Writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mdistiller", type=Path, required=True, help="a checkout of megvii-research/mdistiller")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=6400, help="of an epoch")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2, help="of torch, in both loops")
    parser.add_argument("--loader-workers", type=int, default=2, help="processes of the plain loop's DataLoader")
    arguments = parser.parse_args()
    found = speeds(arguments)
    options = {name: value for name, value in vars(arguments).items() if name not in ("mdistiller", "out")}
    result = {"machine": machine(), "versions": versions(), "options": options, **summary(found)}
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
