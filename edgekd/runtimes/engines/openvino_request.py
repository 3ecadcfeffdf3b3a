"""How OpenVINO compiles a model for the CPU, memory that stays with a request, times of layers; here and on a board.

Standard library of Python 3.10, and OpenVINO inside functions.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

WARM_CALLS = 3
"""Calls before those whose layers are recorded."""
COUNTING = {"PERF_COUNT": True}
"""What a model is compiled with beside its settings, so that its requests count."""


def cpu_settings(threads: int | None) -> dict[str, Any]:
    """Tuned for latency, in float32 unless the graph says otherwise: the default lowers it on CPUs with bfloat16."""
    own: dict[str, Any] = {} if threads is None else {"INFERENCE_NUM_THREADS": threads}
    return {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", **own}


def bound(compiled: Any, request: Any) -> dict[str, Any]:
    """Input memory by name that stays with the request, for sizes that never change.

    Handing arrays to each call costs the Python binding about 0.1 ms, a third of a small network's latency.
    """
    import openvino

    memory = {}
    for port in compiled.inputs:
        tensor = openvino.Tensor(port.get_element_type(), port.get_shape())
        request.set_tensor(port, tensor)
        memory[port.get_any_name()] = tensor.data
    return memory


def run_bound(request: Any, memory: dict[str, Any], feeds: Any, count: int) -> list[Any]:
    """Copies of the first `count` outputs; the request overwrites its own.

    Args:
        request: With its memory bound.
        memory: What `bound` returned.
        feeds: Arrays by input name.
        count: Of outputs.
    """
    for name, place in memory.items():
        place[...] = feeds[name]
    request.infer()
    return [request.get_output_tensor(index).data.copy() for index in range(count)]


def counters_of(request: Any, call: Callable[[], Any], calls: int) -> list[dict[str, Any]]:
    """The layers in the order they run: `name`, `op`, `kernel`, and `median_ms` over so many calls.

    Args:
        request: Of a model that was compiled with `COUNTING`.
        call: One inference.
        calls: That are counted, after a few that are not.
    """
    times: dict[str, list[float]] = {}
    counters: list[Any] = []
    for number in range(WARM_CALLS + calls):
        call()
        if number >= WARM_CALLS:
            counters = [counter for counter in request.profiling_info if counter.status.name == "EXECUTED"]
            for counter in counters:
                times.setdefault(counter.node_name, []).append(counter.real_time.total_seconds() * 1000)
    return [
        {
            "name": counter.node_name,
            "op": counter.node_type,
            "kernel": counter.exec_type,
            "median_ms": statistics.median(times[counter.node_name]),
        }
        for counter in counters
    ]


def executing(compiled: Any) -> list[str]:
    """The devices that a compiled model runs on, without those that only stand by: AUTO puts them into brackets."""
    return [str(name) for name in compiled.get_property("EXECUTION_DEVICES") if not str(name).startswith("(")]
