"""A board whose engines are clockwork: it runs the jobs of the real host side with the real unit loop of the agent."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from edgekd.core.packing import packed
from edgekd.profiling.agent.loop import CallTimer, Plan
from edgekd.profiling.agent.units import Units
from tests.profiling.fakes import Clock

MACHINE = {"cpu_model": "Toy board", "cores": 4, "architecture": platform.machine()}


@dataclass
class FakeBoard:
    """Stands where `Board` stands.

    Attributes:
        cost_ms: By the label of an engine's candidate.
        noise: Multiplies every call.
        throttles: The board says that it was slowed in its jobs.
        specs: Of the jobs that were submitted.
    """

    cost_ms: Mapping[str, float]
    noise: Callable[[], float] = lambda: 1.0
    throttles: bool = False
    runtimes: tuple[str, ...] = ("onnxruntime",)
    name: str = "ssh://toy"
    python: str = "python3"
    machine: Mapping[str, Any] = field(default_factory=lambda: MACHINE)
    specs: list[dict[str, Any]] = field(default_factory=list)
    pushed: list[str] = field(default_factory=list)
    released: int = 0
    ssh: Any = field(default_factory=lambda: SimpleNamespace(address=SimpleNamespace(command="ssh toy")))

    @property
    def offers(self) -> dict[str, Any]:
        return {n: {"ok": True, "version": "1.2", "install": ""} for n in self.runtimes}

    def hello(self, *digests: str) -> dict[str, Any]:
        return {"machine": self.machine, "runtimes": self.offers, "missing": list(digests)}

    def push(self, files: Mapping[str, Path], reporter: object) -> None:
        self.pushed += list(files)

    def submit(self, job_id: str, spec: dict[str, Any]) -> dict[str, Any]:
        self.specs.append(spec)
        return {"state": "queued", "joined": False}

    def watch(self, job_id: str, on_status: Callable[[dict[str, Any]], None]) -> None:
        on_status({"state": "running", "progress": 0.5})
        on_status({"state": "done"})

    def ask(self, verb: str, *arguments: str) -> dict[str, Any]:
        if verb == "release":
            self.released += 1
            return {}
        return self._result(self.specs[-1])

    def _result(self, spec: dict[str, Any]) -> dict[str, Any]:
        """What the agent's measuring process would find."""
        clock, asked = Clock(), spec["units"]
        names = [engine["label"].partition("@")[0] for engine in spec["engines"]]

        def open_one(name: str) -> CallTimer:
            def call() -> None:
                clock.now_ns += round(self.cost_ms[name] * self.noise() * 1e6)

            return CallTimer(call, clock)

        units = Units(
            names, open_one, plan=Plan(**asked["plan"]), seed=spec["seed"], clock_s=lambda: clock.now_ns / 1e9
        )
        found, ends = [], list[float]()
        while not ends or (ends[-1] < asked["seconds"] and len(ends) < asked["most"]):
            found.append(units())
            ends.append(clock.now_ns / 1e9)
        entries = [
            {
                "units": [packed(unit[name].rounds_ns) for unit in found],
                "warmup_n": sum(unit[name].warmup_n for unit in found),
                "facts": {"provider": "CPUExecutionProvider", "load_ms": 1.0},
            }
            for name in names
        ]
        before, after = ({"throttle_counts": {"core": count}} for count in (0, int(self.throttles)))
        run = {"before": before, "after": after, "took_s": ends[-1], "floating": None, "unit_ends_s": ends}
        return {"entries": entries, "runs": [run], "clocks": [], "machine": self.machine, "runtimes": self.offers}
