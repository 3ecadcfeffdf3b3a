"""ncnn on the board's CPU, with the settings of `edgekd/runtimes/ncnn.py`: one engine, two places.

Standard library of Python 3.10, and inside functions ncnn with the NumPy that it brings.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgekd.profiling.agent.cpu import CpuEngine, one_image
from edgekd.profiling.agent.engines import AGAIN, NOT_LOADED
from edgekd.profiling.agent.wire import AgentError
from edgekd.runtimes.engines.ncnn_network import NcnnError, NcnnNetwork, arithmetic


class NcnnEngine(CpuEngine):
    """A network and its image. Times of layers the library does not tell."""

    def __init__(self, network: NcnnNetwork, image: Any, facts: dict[str, Any]) -> None:
        super().__init__(facts)
        self._network, self._image = network, image

    def run(self) -> None:
        self._found = [self._network.answer(self._image)]

    def close(self) -> None:
        self._network.close()


def opened(spec: dict[str, Any], paths: Sequence[Path], cache: Path) -> NcnnEngine:
    """An engine on a `.param` and a `.bin` file.

    Raises:
        AgentError: They do not load.
        ImportError: ncnn is not installed.
    """
    import ncnn

    (image,) = one_image(spec)
    param, weights = paths
    half, began = spec["precision"] == "fp16", time.perf_counter()
    try:
        network = NcnnNetwork(param, weights, threads=int(spec["threads"]), half=half)
    except NcnnError as err:
        raise AgentError(NOT_LOADED, f"ncnn {ncnn.__version__} cannot load the model: {err}", AGAIN) from err
    return NcnnEngine(
        network,
        image,
        {
            "runtime": "ncnn",
            "version": ncnn.__version__,
            "provider": "cpu",
            "threads": spec["threads"],
            "images_per_run": 1,
            "arithmetic": arithmetic(half=half),
            "load_ms": (time.perf_counter() - began) * 1e3,
        },
    )
