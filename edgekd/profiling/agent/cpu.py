"""What engines on the board's CPU have in common. Standard library of Python 3.10, and NumPy inside functions."""

from __future__ import annotations

from typing import Any

from edgekd.profiling.agent.engines import input_shape, input_values
from edgekd.profiling.agent.wire import BAD_REQUEST, AgentError


class CpuEngine:
    """An engine on the processor that calls it; see `Engine` for the contract. A subclass runs and closes it.

    Args:
        facts: What `facts` tells.
    """

    def __init__(self, facts: dict[str, Any]) -> None:
        self._facts = facts
        self._found: list[Any] = []

    def outputs(self) -> list[list[float]]:
        return [value.astype("float64").ravel().tolist() for value in self._found]

    def device_ns(self, calls: int) -> list[int] | None:
        return None  # the processor that calls is the device

    def layers(self, calls: int) -> dict[str, Any] | None:
        return None

    def facts(self) -> dict[str, Any]:
        return dict(self._facts)


def feeds_of(spec: dict[str, Any]) -> dict[str, Any]:
    """An array for each input of an entry of a job, equal on every machine."""
    import numpy

    feeds = {}
    for number, entry in enumerate(spec["inputs"]):
        shape = input_shape(entry, int(spec["batch"]))
        feeds[entry["name"]] = numpy.frombuffer(input_values(shape, number), dtype=numpy.float32).reshape(shape)
    return feeds


def one_image(spec: dict[str, Any]) -> Any:
    """(1, C, H, W): what an engine is fed that takes one image a run.

    Raises:
        AgentError: The job asks for another batch, or several inputs.
    """
    (*others, images) = feeds_of(spec).values()
    if others or len(images) != 1:
        raise AgentError(BAD_REQUEST, f"{spec['runtime']} takes one image a run here, not {spec['inputs']}")
    return images
