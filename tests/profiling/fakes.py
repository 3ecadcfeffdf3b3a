"""Engines whose time is told by a clock that they move themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgekd.errors import UserError
from edgekd.profiling.measure import Subject


@dataclass
class Clock:
    """Nanoseconds that pass only when somebody works."""

    now_ns: int = 0

    def __call__(self) -> int:
        return self.now_ns


@dataclass
class FakeSession:
    """Takes `cost_ms(call number)` per inference."""

    clock: Clock
    cost_ms: Callable[[int], float]
    fails_at: int | None = None
    log: list[str] = field(default_factory=list)
    name: str = "engine"
    calls: int = 0
    input_names: tuple[str, ...] = ("images",)

    def infer(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        self.calls += 1
        self.log.append(self.name)
        if self.calls == self.fails_at:
            raise UserError(f"{self.name} broke")
        self.clock.now_ns += round(self.cost_ms(self.calls) * 1e6)
        return {"logits": np.zeros((1, 2), np.float32)}

    def environment(self) -> dict[str, Any]:
        return {"provider": "FakeProvider"}

    def __enter__(self) -> FakeSession:
        return self

    def __exit__(self, *_: object) -> None:
        return None


class FarSession(FakeSession):
    """Runs in another process: the way there takes 5 ms of this process's clock, and its own clock does not see it."""

    load_ms = 1.0

    def timer(self, feeds: Mapping[str, Any]) -> FarTimer:
        return FarTimer(self, feeds)

    def memory_peak_mib(self) -> float | None:
        return 7.0

    def infer(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        self.clock.now_ns += 5_000_000
        return super().infer(feeds)

    def environment(self) -> dict[str, Any]:
        return {"provider": "FakeProvider", "timed_region": "there"}


@dataclass
class FarTimer:
    session: FarSession
    feeds: Mapping[str, Any]

    def warm_up(self, seconds: float) -> tuple[int, int]:
        return 3, min(self.turn(3))

    def turn(self, calls: int) -> list[int]:
        found = []
        for _ in range(calls):
            start = self.session.clock()
            self.session.infer(self.feeds)
            found.append(self.session.clock() - start - 5_000_000)
        return found


def subject(session: FakeSession) -> Subject:
    feeds = {"images": np.zeros((1, 1, 2, 2), np.float32)}
    return Subject(session=session, feeds=feeds, runtime="fake", precision="fp32", threads=1)
