"""A TensorRT engine built on a board: sends what is missing, starts or finds the job, and knows how to fetch its files.

Which engine is kept is decided at home (`edgekd/export/tensorrt_choice.py`), where the reference is.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekd.core.digest import Digest, digest, file_digest
from edgekd.core.events import Reporter
from edgekd.errors import DeviceUnavailable
from edgekd.profiling.agent.builds import KEPT_FILES
from edgekd.profiling.remote.archive import agent_archive
from edgekd.profiling.remote.board import Board, refusal
from edgekd.profiling.remote.link import PATIENCE_S, Link
from edgekd.runtimes.engines.supervise import CANCELLED, FAILED, NO_DEVICE, NOT_THIS_VERSION, TIME_LIMIT, Order

QUEUE_S = 14_400.0


class BoardRefused(Exception):
    """The board's supervisor gave no engine.

    Args:
        code: See `edgekd.runtimes.engines.supervise`.
        message: Why, in a clause.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, kw_only=True)
class BoardBuild:
    """What was built on a board.

    Attributes:
        result: See `Supervisor.result`; digests in the place of paths.
        board: Where the files are.
        reporter: Told of what is fetched.
        folder: Takes them.
    """

    result: Mapping[str, Any]
    board: Board
    reporter: Reporter
    folder: Path

    def file(self, build: Mapping[str, Any], key: str) -> Path:
        """A file of a build, fetched now.

        Raises:
            DeviceUnavailable: The connection broke, or the file is gone.
        """
        path = self.folder / f"{key}.fetched"
        self.board.fetch(Digest(str(build[key])), path, self.reporter)
        return path

    def forget(self) -> None:
        """Removes from the board what was built there; an engine is large, and a board's disk is small."""
        made = [str(build[key]) for build in self.result["builds"] for key in KEPT_FILES if build.get(key) is not None]
        with contextlib.suppress(DeviceUnavailable):  # the agent removes it in a week
            self.board.ask("forget", *dict.fromkeys(made))


def built_on_board(
    board: Board,
    order: Order,
    folder: Path,
    *,
    reporter: Reporter,
    patience_s: float = PATIENCE_S,
    clock_s: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> BoardBuild:
    """The engines of an order, built on a board.

    Args:
        board: Reached over ssh.
        order: Its files are here.
        folder: Takes what is fetched.
        reporter: Told of progress.
        patience_s: How long a lost connection is tried again.
        clock_s: Monotonic seconds.
        sleep: Waits.

    Raises:
        BoardRefused: There is no GPU or no builder there, or no engine could be built.
        DeviceUnavailable: The board cannot be reached, or the job failed for another reason.
    """
    paths = [order.onnx, *(path for probe in order.probes for path in probe.values())]
    paths += [] if order.timing_cache is None else [order.timing_cache]
    files = {file_digest(path): path for path in paths}
    known = board.hello(*files)
    board.push({name: path for name, path in files.items() if name in known["missing"]}, reporter)
    job_id, spec = _job(order, files)
    link = Link(board, reporter, patience_s, clock_s, sleep, failed=_refused)
    result = link.result_of(job_id, spec)
    return BoardBuild(result=result, board=board, reporter=reporter, folder=folder)


def _refused(name: str, status: Mapping[str, Any]) -> Exception:
    """The error for a job that failed: what the builder said, or what kept the job from working."""
    code = str(status.get("error", ""))
    if code in (NO_DEVICE, FAILED, TIME_LIMIT, CANCELLED, NOT_THIS_VERSION):
        return BoardRefused(code, f"{name}: {status.get('message', '')}")
    return refusal(name, status)


def _job(order: Order, files: Mapping[Digest, Path]) -> tuple[str, dict[str, Any]]:
    """The id of a job and the job."""
    names = {path: name for name, path in files.items()}
    build = {
        "onnx": names[order.onnx],
        "settings": order.settings.plain(),
        "shapes": {name: list(shape) for name, shape in order.shapes.items()},
        "probes": [{name: names[path] for name, path in probe.items()} for probe in order.probes],
        "builder": order.builder,
        "builds": order.builds,
        "limit_s": order.limit_s,
        "timing_cache": None if order.timing_cache is None else names[order.timing_cache],
        "timing_cache_from": None if order.timing_cache_from is None else dict(order.timing_cache_from),
        "run_s": order.run_s,
    }
    spec: dict[str, Any] = {
        "engines": [],
        "files": sorted(files),
        "build": build,
        "lock_clocks": False,
        "queue_s": QUEUE_S,
    }
    return digest("board-job", agent_archive().digest, spec)[:32], spec
