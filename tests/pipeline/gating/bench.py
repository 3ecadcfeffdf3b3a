"""Bundles whose engines are clockwork: what they cost is written beside them, and time moves only when they work."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import onnx
import pytest

from edgekd.core.blobs import Blobs, FolderBlobs
from edgekd.core.events import RecordingReporter
from edgekd.export.package import write_package
from edgekd.gate.report import GateReport
from edgekd.pipeline.gating.judge import gate_bundle
from edgekd.pipeline.gating.request import GateRequest
from edgekd.pipeline.gating.units import Opened
from edgekd.profiling.agent.loop import CallTimer
from edgekd.profiling.isolated import Engine
from edgekd.targets.load import load_target
from edgekd.testing.toy_graphs import toy_graph, toy_onnx_bundle
from tests.profiling.fakes import Clock, FakeSession


@dataclass
class Bench:
    """A folder with bundles, and the clock that their engines move.

    Attributes:
        noise: Multiplies every call.
        opened: Number of openings.
    """

    folder: Path
    clock: Clock = field(default_factory=Clock)
    costs_ms: dict[str, float] = field(default_factory=dict)
    noise: Callable[[], float] = lambda: 1.0
    opened: int = 0
    opening_ms: float = 1.0

    def graph(self, name: str, cost_ms: float, seed: int) -> Path:
        """A bare `.onnx` file."""
        path = self.folder / f"{name}.onnx"
        onnx.save(toy_graph(seed=seed), path)
        self.costs_ms[_key(path.read_bytes())] = cost_ms
        return path

    def package(self, name: str, cost_ms: float, seed: int, target: str = "host", **tags: str) -> Path:
        """A package as `compress` writes it."""
        blobs, scratch = FolderBlobs(self.folder / "blobs"), self.folder / f"scratch-{name}"
        scratch.mkdir()
        bundle = toy_onnx_bundle(blobs, scratch, seed=seed)
        bundle = bundle.model_copy(update={"tags": {**bundle.tags, **tags}})
        write_package(bundle, blobs, self.folder / name, target=load_target(target), versions={}, extra={})
        self.costs_ms[_key((self.folder / name / "model.onnx").read_bytes())] = cost_ms
        return self.folder / name

    def open(self, name: str, engine: Engine, blobs: Blobs) -> Opened:
        """Opens clockwork: a bench is an `Opener`."""
        self.opened += 1
        self.clock.now_ns += round(self.opening_ms * 1e6)
        cost = self.costs_ms[_key(blobs.path(engine.bundle.file("model.onnx")).read_bytes())]
        session = FakeSession(self.clock, lambda _: cost * self.noise())
        return CallTimer(lambda: session.infer({}), self.clock), session.environment()

    def close(self) -> None:
        """Clockwork needs no closing."""

    def gate(self, request: GateRequest) -> GateReport:
        return gate_bundle(request, RecordingReporter(), opener=self, clock_s=lambda: self.clock.now_ns / 1e9)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A bench with one percent of noise."""
    rng = random.Random(0)
    made = Bench(folder=tmp_path, noise=lambda: 1 + 0.01 * rng.random())
    monkeypatch.setattr("edgekd.pipeline.gating.judge.state", dict)
    return made


def _key(data: bytes) -> str:
    return str(hash(data))
