"""What is asked of an engine after its latency, from engines that have a device clock, have none, or fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgekd.core.packing import unpacked
from edgekd.profiling.agent.extras import BURST, FEWEST_BURSTS, LAYER_CALLS, extras_of


class Device:
    """An engine on a device that takes a tenth of a second for a burst."""

    def __init__(self, *, clock: bool = True, layers: Callable[[int], Any] = lambda calls: {"calls": calls}) -> None:
        self.now_s = 0.0
        self.beats = 0
        self.clock, self.told = clock, layers

    def device_ns(self, calls: int) -> list[int] | None:
        self.now_s += 0.1
        return [1000 + call for call in range(calls)] if self.clock else None

    def layers(self, calls: int) -> Any:
        return self.told(calls)

    def run(self) -> None: ...
    def close(self) -> None: ...
    def outputs(self) -> list[list[float]]:
        return []

    def facts(self) -> dict[str, Any]:
        return {}

    def beat(self) -> None:
        self.beats += 1


def found(device: Device, *, layers: bool = True) -> dict[str, Any]:
    return extras_of(device, layers=layers, beat=device.beat, clock_s=lambda: device.now_s)


def test_times_of_the_device_come_in_bursts_each_after_a_sign_of_life() -> None:
    device = Device()
    extras = found(device)
    rounds = unpacked(extras["compute"])
    assert len(rounds) >= FEWEST_BURSTS
    assert {len(burst) for burst in rounds} == {BURST}
    assert device.beats == len(rounds) + 1
    assert extras["layers"] == {"calls": LAYER_CALLS}


def test_a_device_without_a_clock_has_no_such_times_and_layers_come_only_when_asked() -> None:
    assert found(Device(clock=False), layers=False) == {}


def test_an_extra_that_fails_is_a_sentence_and_costs_nothing_else() -> None:
    def broken(calls: int) -> Any:
        raise RuntimeError("no profiler")

    extras = found(Device(layers=broken))
    assert "compute" in extras
    assert extras["failed"] == ["its layers were not recorded: no profiler"]
