"""What is known before any work: the teacher, the data, the target and what is installed here."""

from __future__ import annotations

from dataclasses import dataclass

from edgekd.core.bundle import ModelBundle
from edgekd.data.dataset import Dataset
from edgekd.export.convert import CONVERTERS
from edgekd.runtimes.session import RUNTIMES
from edgekd.targets.schema import Precision, RuntimeSupport, Target

AVX = frozenset({"avx2", "avx512f"})
VNNI = frozenset({"avx_vnni", "avx512_vnni"})


@dataclass(frozen=True, kw_only=True)
class Situation:
    """Facts that shape a graph.

    Attributes:
        teacher: The loaded model, a TORCH bundle.
        teacher_macs: Its multiply-accumulates for one image.
        trainable: Whether it was rebuilt into trainable layers; otherwise it can teach and be quantized, not pruned.
        dataset: None without data and for synthetic data.
        target: The device's card.
        license: Of the teacher, where the user or its package states it.
        on_board: Whether the target is reached over ssh.
        runtimes: The target's runtimes that can measure here; all of them, unmeasured, when the target is elsewhere.
    """

    teacher: ModelBundle
    teacher_macs: int
    trainable: bool
    dataset: Dataset | None
    target: Target
    runtimes: tuple[RuntimeSupport, ...]
    license: str | None = None
    on_board: bool = False

    @property
    def measured(self) -> bool:
        """Whether latencies can be measured on the target in this run."""
        return self.target.measured_here and bool(self.runtimes)

    @property
    def graph_runtimes(self) -> tuple[RuntimeSupport, ...]:
        """Those that read ONNX graphs, or build their engines from them; the others have converters."""
        return tuple(support for support in self.runtimes if support.runtime not in CONVERTERS)

    def reads(self, precision: Precision) -> bool:
        """Whether some runtime of the target runs ONNX graphs of the precision."""
        return any(precision in support.precisions for support in self.graph_runtimes)

    def runs(self, precision: Precision) -> bool:
        """Whether some runtime of the target runs the precision."""
        return any(precision in support.precisions for support in self.runtimes)


def runtimes_of(target: Target) -> tuple[tuple[RuntimeSupport, ...], tuple[str, ...]]:
    """The target's usable runtimes, and a sentence for each one that is missing on this machine."""
    if not target.measured_here:
        return target.runtimes, ()
    usable, missing = [], []
    for support in target.runtimes:
        found = RUNTIMES.get(support.runtime).availability()
        if found.ok:
            usable.append(support)
        else:
            missing.append(f"{support.runtime} is not measured: {found.reason} ({found.install})")
    return tuple(usable), tuple(missing)


def saturates(target: Target) -> bool:
    """Whether 8-bit products may overflow: x86 processors with AVX but without VNNI add pairs of them in 16 bits."""
    features = set(target.features)
    return target.kind == "cpu" and bool(features & AVX) and not features & VNNI
