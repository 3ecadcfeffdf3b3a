"""Jobs that build TensorRT engines on the board: the same lines as on any machine, with pushed files for paths.

What was built goes into the folder of pushed files under its digest, so that it is fetched as it was sent. Standard
library of Python 3.10 only.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgekd.profiling.agent.folder import Folder, require_space
from edgekd.profiling.agent.jobs import CANCEL_FILE
from edgekd.profiling.agent.wire import AgentError
from edgekd.runtimes.engines.settings import settings_from_plain
from edgekd.runtimes.engines.supervise import BuildError, Order, Supervisor

KEPT_FILES = ("engine", "timing_cache", "layers")


def built(folder: Folder, job: Path, spec: dict[str, Any], tell: Callable[[str, float], None]) -> dict[str, Any]:
    """What the supervisor found, its files replaced by digests in the folder.

    Args:
        folder: Of the agent.
        job: The job's own folder.
        spec: Its `build`: an `Order` in plain data, digests in the place of paths.
        tell: Told what is done, and the part of it that is done, in [0, 1].

    Raises:
        AgentError: No engine was made, with the supervisor's code and reason.
    """
    asked = spec["build"]
    place = job / "build"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    require_space(place, folder.file(asked["onnx"]).stat().st_size)

    def heard(text: str, done: int, total: int) -> None:
        tell(text, done / total if total else 0.0)

    supervisor = Supervisor(
        _order(folder, asked),
        place,
        (sys.executable, str(Path(sys.argv[0]).resolve()), "engine"),
        tell=heard,
        stop=(job / CANCEL_FILE).exists,
    )
    try:
        found = supervisor.result()
    except BuildError as err:
        raise AgentError(err.code, str(err)) from err
    for build in found["builds"]:
        for key in KEPT_FILES:
            if build.get(key) is not None:
                _keep(folder, place / build[key], build[f"{key}_sha256"])
                build[key] = build[f"{key}_sha256"]
    shutil.rmtree(place, ignore_errors=True)
    return found


def _order(folder: Folder, asked: dict[str, Any]) -> Order:
    cache = asked["timing_cache"]
    return Order(
        onnx=folder.file(asked["onnx"]),
        settings=settings_from_plain(asked["settings"]),
        shapes=asked["shapes"],
        probes=[{name: folder.file(digest) for name, digest in probe.items()} for probe in asked["probes"]],
        builder=asked["builder"],
        builds=int(asked["builds"]),
        limit_s=float(asked["limit_s"]),
        timing_cache=None if cache is None else folder.file(cache),
        timing_cache_from=asked["timing_cache_from"],
        run_s=float(asked["run_s"]),
    )


def _keep(folder: Folder, path: Path, digest: str) -> None:
    target = folder.file(digest)
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(path, target)
