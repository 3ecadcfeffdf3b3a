"""Networks with groups of equal kind, and a device whose times are planted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgekd.core.cost import OpCost
from edgekd.nn.channels.analysis import Analysis, analyse
from edgekd.nn.channels.groups import ChannelGroup
from edgekd.nn.channels.widths import Corrections, Stairs, WidthLatency
from edgekd.profiling.table.effective import Calibrated, Series, calibrated
from edgekd.profiling.table.kinds import Kind, kinds_of
from edgekd.targets.latency import LatencyModel
from edgekd.targets.latency_table import LatencyTable, Timed
from tests.prune.nets import PaddedBlock

SHAPE = (3, 8, 8)
MODEL = LatencyModel(
    target="toy-board",
    fixed_us=3.0,
    gmacs_per_s={"fp32": 1.0},
    bandwidth_gb_s=10.0,
    efficiency={"other": 0.5},
    overhead_us_per_op=1.0,
    origin="card",
)


class PaddedBlocks(nn.Module):
    """Two blocks of 64 channels and one of 128: the inner groups of the first two are of one kind."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.first = PaddedBlock(width, width)
        self.second = PaddedBlock(width, width)
        self.third = PaddedBlock(width, 2 * width)
        self.classifier = nn.Linear(2 * width, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.third(self.second(self.first(F.relu(self.stem(x))))).mean((2, 3)))
        return logits


def blocks(width: int = 64) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return PaddedBlocks(width).eval()


def model_price(cost: OpCost) -> float:
    return MODEL.op_ms(cost, "fp32")


def edges_of(block: int) -> Stairs:
    """Kernels that compute whole blocks."""
    return lambda kept: -(-kept // block) * block


@dataclass
class Planted:
    """A device: another roofline than the model's, and stairs that the model does not know.

    Attributes:
        stairs: By the beginning of a group's name.
        noise: Half width of each median's interval, as a fraction.
    """

    stairs: Mapping[str, Stairs] = field(default_factory=dict)
    noise: float = 1e-6
    module: nn.Module = field(default_factory=blocks)

    def __post_init__(self) -> None:
        self.analysis: Analysis = analyse(self.module, SHAPE)
        self.groups = self.analysis.groups
        self.followed = WidthLatency(self.module, SHAPE, self.groups, model_price)
        self.truth = WidthLatency(self.module, SHAPE, self.groups, device_price)
        self.truth.correct(
            Corrections(
                stairs={
                    group.name: stairs
                    for group in self.groups
                    for start, stairs in self.stairs.items()
                    if group.name.startswith(start)
                },
                fixed_ms=0.05,
            )
        )

    def time(self, groups: Sequence[ChannelGroup] = (), kept: int = 0) -> Timed:
        """Of the engine in which the groups keep so many units."""
        for group in groups:
            self.truth.remove(group, group.units - kept)
        p50 = self.truth.now_ms
        self.truth.reset()
        return Timed(p50_ms=p50, low_ms=p50 * (1 - self.noise), high_ms=p50 * (1 + self.noise))

    def kinds(self, multiple: int = 8) -> tuple[Kind, ...]:
        return kinds_of(self.followed, self.groups, multiple)

    def calibrated(self, multiple: int = 8, only: Callable[[int], bool] = lambda kept: True) -> Calibrated:
        self.followed.correct(Corrections())
        times = [
            (kind, {kept: Series(self.time(kind.groups, kept)) for kept in kind.kept if only(kept)})
            for kind in self.kinds(multiple)
        ]
        return calibrated(self.followed, Series(self.time()), times)

    def table(self, multiple: int = 8, only: Callable[[int], bool] = lambda kept: True) -> LatencyTable:
        found = self.calibrated(multiple, only)
        return LatencyTable(
            target="toy-board",
            runtime="onnxruntime",
            precision="fp32",
            threads=1,
            whole=self.time(),
            kinds=found.kinds,
            model=MODEL,
            scales=dict(found.scales),
            otherwise=found.otherwise,
            fixed_ms=found.fixed_ms,
        )


def device_price(cost: OpCost) -> float:
    """Slower than the model says, by a factor that differs from kind to kind."""
    return (1.7 if "third" in cost.name else 2.6) * model_price(cost) + cost.macs * 4e-10
