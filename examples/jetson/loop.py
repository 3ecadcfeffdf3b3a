"""A plain loop on a board: classifies the images of a folder and says where the time goes.

    python examples/jetson/loop.py model.edgekd images/ [--rebuild] [--strict]

On a Jetson, use the system's Python, where JetPack installed TensorRT. The first start with --rebuild builds an engine
if none in the bundle fits, which takes minutes; later starts take it from the cache.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from edgekd_runtime import Engine, RuntimeFailure

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm")


def main(arguments: Sequence[str] | None = None, clock: Callable[[], float] = time.perf_counter) -> int:
    """0, or the exit code of what went wrong.

    Args:
        arguments: Of the command line.
        clock: Monotonic seconds.
    """
    parser = argparse.ArgumentParser(description="Classifies the images of a folder.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--rebuild", action="store_true", help="build a TensorRT engine here if none fits")
    parser.add_argument("--strict", action="store_true", help="an error instead of falling back to the next engine")
    options = parser.parse_args(arguments)
    paths = sorted(path for path in options.images.iterdir() if path.suffix.lower() in SUFFIXES)
    try:
        with Engine.load(options.bundle, rebuild=options.rebuild, strict=options.strict) as engine:
            sys.stderr.write(f"{engine.info['engine']} in {engine.info['runtime']} on {engine.info['provider']}\n")
            prepared, computed = [], []
            for path in paths:
                start = clock()
                images = engine.preprocess(path)
                ready = clock()
                logits = engine.run(images)[0]
                prepared.append(ready - start)
                computed.append(clock() - ready)
                best = int(logits.argmax())
                sys.stdout.write(f"{path.name}\t{engine.labels[best] if engine.labels else best}\n")
    except RuntimeFailure as err:
        sys.stderr.write(f"error: {err}\n")
        return err.exit_code
    if paths:
        decode, infer = (statistics.median(times) * 1e3 for times in (prepared, computed))
        sys.stderr.write(f"median of {len(paths)}: {decode:.2f} ms decode and resize, {infer:.2f} ms inference\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
