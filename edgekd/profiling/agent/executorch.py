"""ExecuTorch on the board's CPU, as `edgekd/runtimes/executorch.py` runs it: one engine, two places.

The library has one pool of threads for the process, and programs hold a pointer to it. A process of the agent measures
at one number of threads, so the pool is set before the first program and never again. Standard library of Python 3.10,
and inside functions ExecuTorch with the PyTorch that it brings.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgekd.profiling.agent.cpu import CpuEngine, one_image
from edgekd.profiling.agent.engines import AGAIN, NOT_LOADED, version_of
from edgekd.profiling.agent.wire import AgentError
from edgekd.runtimes.native_output import native_stderr

BACKEND = "XnnpackBackend"
FLOAT = 6
"""float32, as a program's metadata numbers it."""


class ExecuTorchEngine(CpuEngine):
    """A program's `forward` method and its image. Its trace is read with tools that a board need not have."""

    def __init__(self, program: Any, method: Any, images: Any, facts: dict[str, Any]) -> None:
        super().__init__(facts)
        self._program, self._method, self._images = program, method, images

    def run(self) -> None:
        import torch

        # The memory of an output may be the program's own.
        self._found = [out.numpy().copy() for out in self._method.execute([torch.from_numpy(self._images)])]

    def close(self) -> None:
        self._method = self._program = None


def opened(spec: dict[str, Any], paths: Sequence[Path], cache: Path) -> ExecuTorchEngine:
    """An engine on a `.pte` program.

    Raises:
        AgentError: It does not load, or takes something else than one image.
        ImportError: ExecuTorch is not installed.
    """
    with native_stderr():  # it narrates what processor it found
        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Runtime

    images, version, (path,), threads = one_image(spec), version_of("executorch"), paths, int(spec["threads"])
    library, failure = Runtime.get(), ""
    began = time.perf_counter()
    with native_stderr() as said:
        if portable_lib._threadpool_get_thread_count() != threads:
            portable_lib._unsafe_reset_threadpool(threads)
        try:
            program = library.load_program(path)
            method = program.load_method("forward")
        except (RuntimeError, KeyError) as err:
            failure = str(err)
    if failure:
        raise AgentError(NOT_LOADED, f"ExecuTorch {version} cannot load the model: {said.last or failure}", AGAIN)
    load_ms = (time.perf_counter() - began) * 1e3
    taken = [method.metadata.input_tensor_meta(index) for index in range(method.metadata.num_inputs())]
    if [(tuple(entry.sizes()), entry.dtype()) for entry in taken] != [(images.shape, FLOAT)]:
        found = ", ".join(str(tuple(entry.sizes())) for entry in taken)
        raise AgentError(NOT_LOADED, f"the program takes {found}, and its bundle says {images.shape} in float32", AGAIN)
    return ExecuTorchEngine(
        program,
        method,
        images,
        {
            "runtime": "executorch",
            "version": version,
            "provider": BACKEND if library.backend_registry.is_available(BACKEND) else "portable",
            "threads": threads,
            "images_per_run": 1,
            "load_ms": load_ms,
        },
    )
