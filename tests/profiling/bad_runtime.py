"""A runtime that misbehaves in native code, and the worker program that knows it. The model's file says how."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.core.bundle import BundleKind
from edgekd.errors import UserError
from edgekd.profiling import worker
from edgekd.runtimes.session import RUNTIMES, Availability, Runtime


class BadSession:
    """Runs for a tenth of a millisecond until it is the turn of its misdeed."""

    input_names = ("images",)

    def __init__(self, misdeed: str) -> None:
        self.misdeed, self.calls = misdeed, 0

    def infer(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        self.calls += 1
        time.sleep(1e-4)
        if self.calls == 8:
            _do(self.misdeed)
        return {"logits": np.zeros((1, 2), np.float32)}

    def environment(self) -> dict[str, Any]:
        return {"provider": "BadProvider", "runtime": "bad", "version": "1", "threads": 1}

    def __enter__(self) -> BadSession:
        return self

    def __exit__(self, *_: object) -> None:
        return None


class BadRuntime(Runtime):
    """Opens files that hold `<when> <misdeed>`."""

    name = "bad"
    accepts = frozenset({BundleKind.ONNX})
    model_file = "model.onnx"

    def availability(self) -> Availability:
        return Availability(ok=True, version="1")

    def open(self, path: Path, *, threads: int | None = None, batch: int | None = None) -> BadSession:
        when, misdeed = path.read_text().split()
        if when == "loading":
            _do(misdeed)
        return BadSession(misdeed if when == "running" else "nothing")


def _do(misdeed: str) -> None:
    if misdeed == "segfault":
        os.write(2, b"libbad: index out of range\n")
        ctypes.string_at(0)
    elif misdeed == "hang":
        time.sleep(3600)
    elif misdeed == "exit":
        os._exit(3)
    elif misdeed == "refuse":
        raise UserError("the bad runtime refused")
    elif misdeed == "noise":
        os.write(1, b"a library that prints on standard output\n")


RUNTIME = BadRuntime()
COMMAND = (sys.executable, "-m", "tests.profiling.bad_runtime")
PLACE = "tests.profiling.bad_runtime:RUNTIME"

if __name__ == "__main__":
    RUNTIMES.register("bad", PLACE)
    worker.main()
