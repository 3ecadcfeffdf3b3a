"""The command line: classify images with a bundle, list what is in it, or time it.

python -m edgekd_runtime model.edgekd image.jpg [--top 5]
python -m edgekd_runtime model.edgekd --list
python -m edgekd_runtime model.edgekd --benchmark
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from edgekd_runtime.bundle import Bundle
from edgekd_runtime.engine import Engine
from edgekd_runtime.errors import FallbackWarning, RuntimeFailure

WARM_CALLS, CALLS = 20, 200


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0, 2 for a bad bundle or image, 3 when no engine works here."""
    options = _parser().parse_intermixed_args(arguments)  # flags may stand before, between and behind the images
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", FallbackWarning)
            warnings.showwarning = _shown
            return _list(options.bundle) if options.list else _run(options)
    except RuntimeFailure as err:
        sys.stderr.write(f"error: {err}\n")
        return err.exit_code


def timed(
    engine: Engine, calls: int = CALLS, warm_calls: int = WARM_CALLS, clock_ns: Callable[[], int] = time.perf_counter_ns
) -> dict[str, Any]:
    """Latency of one preprocessed image, in ms, from numpy to numpy: `median_ms`, `p99_ms`, `min_ms`, `calls`.

    Args:
        engine: A loaded one.
        calls: That are timed.
        warm_calls: Before them.
        clock_ns: Monotonic nanoseconds.
    """
    shape = (1, engine.preprocessing.channels, *engine.preprocessing.size)
    images = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    for _ in range(warm_calls):
        engine.run(images)
    found = []
    for _ in range(calls):
        before = clock_ns()
        engine.run(images)
        found.append((clock_ns() - before) / 1e6)
    median, p99 = (float(value) for value in np.percentile(found, [50, 99]))
    return {"median_ms": median, "p99_ms": p99, "min_ms": min(found), "calls": calls}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m edgekd_runtime", description="Runs a bundle that edgekd wrote.")
    parser.add_argument("bundle", type=Path, help="model.edgekd, or the folder of a bundle")
    parser.add_argument("images", nargs="*", help="image files to classify; none shows what would run")
    parser.add_argument("--top", type=int, default=5, help="classes per image (default: 5)")
    parser.add_argument("--list", action="store_true", help="show the engines of the bundle, load none")
    parser.add_argument("--benchmark", action="store_true", help=f"time {CALLS} calls with one image, as JSON")
    parser.add_argument("--runtime", help="use this runtime only, onnxruntime for example")
    parser.add_argument("--engine", help="use this engine only")
    parser.add_argument("--threads", type=int, help="CPU threads (default: those that the engine was measured with)")
    parser.add_argument("--strict", action="store_true", help="an error instead of falling back to the next engine")
    parser.add_argument("--rebuild", action="store_true", help="build a TensorRT engine here when none fits")
    parser.add_argument("--cache", type=Path, help="folder of engines that were built here")
    return parser


def _loaded(options: argparse.Namespace) -> Engine:
    return Engine.load(
        options.bundle,
        runtime=options.runtime,
        engine=options.engine,
        threads=options.threads,
        strict=options.strict,
        rebuild=options.rebuild,
        cache=options.cache,
    )


def _run(options: argparse.Namespace) -> int:
    with _loaded(options) as engine:
        if options.benchmark:
            _say(json.dumps({**engine.info, "timing": timed(engine)}, indent=2))
        elif not options.images:
            _say(json.dumps(engine.info, indent=2))
        for image in options.images:
            for label, score in zip(*engine(image, top=options.top), strict=True):
                _say(f"{image}\t{score:.4f}\t{label}" if len(options.images) > 1 else f"{score:.4f}\t{label}")
    return 0


def _list(path: Path) -> int:
    with Bundle(path) as bundle:
        deploy = bundle.deploy
        _say(f"{deploy.task}, input {deploy.input.name} {'x'.join(map(str, deploy.input.shape))} {deploy.input.dtype}")
        for entry in deploy.engines:
            known = entry.latency or {}
            latency = f"{known['median_ms']:.3g} ms ({known['origin']})" if known else "latency unknown"
            accuracy = "" if entry.accuracy is None else f", accuracy {entry.accuracy:.4f}"
            mark = "*" if entry.chosen else " "
            runtimes = ", ".join(entry.runtimes)
            _say(f"{mark} {entry.name}: {entry.format}, {entry.precision}, {latency}{accuracy}, for {runtimes}")
    return 0


def _shown(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Writes a warning as one line, without the place in this file."""
    prefix = "warning" if issubclass(category, FallbackWarning) else category.__name__
    sys.stderr.write(f"{prefix}: {message}\n")


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")


if __name__ == "__main__":
    sys.exit(main())
