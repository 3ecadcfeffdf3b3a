"""The process that runs one engine while it is measured: `python -m edgekd.profiling.worker PARENT`.

A runtime that crashes or hangs in native code takes this process along, and nothing else. It imports the one runtime
that it was told to use. PARENT is the process id of its coordinator, which drives it over its pipes
(`edgekd.profiling.process`): requests are JSON lines on standard input, answers JSON lines on what was standard output;
whatever a library prints goes to standard error, which the coordinator keeps for the message when the process dies.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from edgekd.core.bundle import ModelBundle
from edgekd.core.digest import Digest
from edgekd.core.orphan import end_with_parent
from edgekd.errors import BuildFailed, EdgekdError, UserError
from edgekd.profiling.agent import energy, facts
from edgekd.profiling.agent.loop import CallTimer, settle
from edgekd.runtimes.session import RUNTIMES, OwnClock, Session, open_bundle


class Files:
    """Blobs whose places were told; this process keeps no store."""

    def __init__(self, paths: Mapping[str, str]) -> None:
        self._paths = paths

    def add(self, path: Path) -> NoReturn:
        raise EdgekdError(f"A measuring worker keeps no files, and was asked to keep {path}.")

    def path(self, digest: Digest) -> Path:
        return Path(self._paths[digest])


class Worker:
    """One engine and what may be asked of it; each public method is a request, its result the answer."""

    def __init__(self) -> None:
        self._bundle: ModelBundle | None = None
        self._sessions = ExitStack()
        self._before_mib: float | None = None
        self._own_clock: OwnClock | None = None

    def open(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Loads the engine in the place of an earlier one: how long that took, and what the session says of itself."""
        self._sessions.close()
        self._request = request
        self._bundle = ModelBundle.from_json(request["bundle"])
        self._blobs = Files(request["files"])
        RUNTIMES.get(request["runtime"]).availability()  # imports the library, which is no part of loading a model
        rng = np.random.default_rng(request["seed"])
        # Ordinary numbers: zeros would let a runtime skip work, tiny ones can be slow.
        self._feeds = {n: rng.standard_normal(shape, dtype=np.float32) for n, shape in request["shapes"].items()}
        gc.collect()
        _forget_peak()
        self._before_mib = facts.memory_mib().get("now_mib")
        start = time.perf_counter()
        session = self._sessions.enter_context(self._opened(request["batch"]))
        load_ms = (time.perf_counter() - start) * 1000
        feeds = self._feeds
        self._session = session
        self._own_clock = session if isinstance(session, OwnClock) else None
        if self._own_clock is not None:
            load_ms = self._own_clock.load_ms
        self._timer = CallTimer(lambda: session.infer(feeds)) if not self._own_clock else self._own_clock.timer(feeds)
        return {"load_ms": load_ms, "session": session.environment()}

    def warm_up(self, request: Mapping[str, Any]) -> list[int]:
        """(calls, nanoseconds of the fastest)."""
        found = list(self._timer.warm_up(request["seconds"]))
        settle()
        return found

    def turn(self, request: Mapping[str, Any]) -> list[int]:
        """Nanoseconds of each timed call; answered when the runtime's threads have come to rest."""
        found = self._timer.turn(request["calls"])
        settle()
        return found

    def answers(self, request: Mapping[str, Any]) -> dict[str, str]:
        """Runs the images of a `.npy` file one by one, as they are timed; file names of the outputs by their names.

        `images` is (N, C, H, W) float32, `folder` takes an (N, ...) `.npy` for each output.
        """
        (name,) = self._feeds
        images = np.load(request["images"], mmap_mode="r")
        found = [self._session.infer({name: np.ascontiguousarray(image[None])}) for image in images]
        paths = {}
        for index, output in enumerate(found[0]):
            paths[output] = str(Path(request["folder"]) / f"{index}.npy")
            np.save(paths[output], np.concatenate([part[output] for part in found]))
        return paths

    def memory(self, request: Mapping[str, Any]) -> float | None:
        """Highest resident MiB since just before the model was loaded, less what was resident then."""
        if self._own_clock is not None:
            return self._own_clock.memory_peak_mib()
        peak = facts.memory_mib().get("peak_mib")
        return None if peak is None or self._before_mib is None else max(0.0, peak - self._before_mib)

    def energy(self, request: Mapping[str, Any]) -> dict[str, Any] | None:
        """Energy of calls without pause; None without a meter."""
        meter = energy.meter_here()
        if meter is None:
            return None
        return vars(energy.energy_of_calls(lambda s: self._timer.warm_up(s)[0], meter, request["seconds"]))

    def offline(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Seconds for all samples of one query, in batches of the size asked."""
        batch, samples = request["batch"], request["samples"]
        feeds = {name: np.repeat(value[:1], batch, axis=0) for name, value in self._feeds.items()}
        queries = -(-samples // batch)
        with self._opened(batch) as session:
            if isinstance(session, OwnClock):
                took_s = sum(session.timer(feeds).turn(queries)) / 1e9
            else:
                session.infer(feeds)
                start = time.perf_counter()
                for _ in range(queries):
                    session.infer(feeds)
                took_s = time.perf_counter() - start
        return {"samples": queries * batch, "batch": batch, "took_s": took_s}

    def layers(self, request: Mapping[str, Any]) -> dict[str, Any] | None:
        """Times of the layers; None where the runtime does not tell."""
        asked, feeds = self._request, self._feeds
        runtime = RUNTIMES.get(asked["runtime"])
        found = runtime.layers(self._opened_bundle, self._blobs, feeds, threads=asked["threads"], batch=asked["batch"])
        return None if found is None else found.plain()

    @property
    def runs_elsewhere(self) -> bool:
        """Whether a process besides this one holds the engine: it is to be ended in good order."""
        return self._own_clock is not None

    def close(self) -> None:
        """Ends what runs outside this process."""
        self._sessions.close()

    @property
    def _opened_bundle(self) -> ModelBundle:
        if self._bundle is None:
            raise UserError("The worker was asked to measure before it was told what to open.")
        return self._bundle

    def _opened(self, batch: int | None) -> Session:
        asked: dict[str, Any] = dict(self._request)
        return open_bundle(self._opened_bundle, self._blobs, asked["runtime"], threads=asked["threads"], batch=batch)


def answer(worker: Worker, request: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to one request: `{"ok": ...}`, or the error that stands in its place."""
    asked: Callable[[Mapping[str, Any]], Any] = getattr(worker, request["do"])
    try:
        return {"ok": asked(request)}
    except EdgekdError as err:
        return {"error": err.message, "hint": err.hint, "build_failed": isinstance(err, BuildFailed)}
    except Exception as err:  # noqa: BLE001 - whatever a runtime raises belongs to the one who asked
        return {"error": f"{type(err).__name__}: {err}", "hint": None}


def main() -> None:
    """Answers until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    faulthandler.enable()
    end_with_parent(int(sys.argv[1]))  # a native call that hangs never reads the end of its input
    gc.disable()
    worker = Worker()
    while line := sys.stdin.readline():
        answers.write(json.dumps(answer(worker, json.loads(line))) + "\n")
        answers.flush()
    if worker.runs_elsewhere:
        worker.close()
    os._exit(0)  # libraries that crash while they unload have nothing left to spoil


def _forget_peak() -> None:
    """Sets the high-water mark of resident memory to what is resident now, where the kernel lets us."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


if __name__ == "__main__":
    main()
