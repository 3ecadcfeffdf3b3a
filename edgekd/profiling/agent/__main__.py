"""The agent's command line: what the other machine calls over ssh, and what the agent calls itself.

`hello`, `receive`, `fetch`, `forget`, `submit`, `watch`, `result`, `release` and `cancel` are called from outside,
`work`, `bench` and `engine` by the agent. Arguments are digests and job ids, everything longer comes through standard
input, so that no shell on the way has anything to interpret. Standard library of Python 3.10 only.
"""

from __future__ import annotations

import json
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

from edgekd.profiling.agent import jobs
from edgekd.profiling.agent.clocks import clock_state
from edgekd.profiling.agent.engines import availability
from edgekd.profiling.agent.facts import machine
from edgekd.profiling.agent.folder import Folder
from edgekd.profiling.agent.wire import BAD_REQUEST, FAILED_EXIT, AgentError, say


def main(arguments: list[str]) -> int:
    """Runs one verb; returns the exit code."""
    # The agent lies in its folder: whoever installed it there chose the place.
    folder = Folder(Path(sys.argv[0]).resolve().parent)
    try:
        _run(folder, arguments[0] if arguments else "", arguments[1:])
    except AgentError as err:
        say(err.plain())
        return FAILED_EXIT
    except BrokenPipeError:
        return 0  # whoever watched went away
    return 0


def _run(folder: Folder, verb: str, rest: list[str]) -> None:
    if verb == "hello":
        say({**_hello(folder), "missing": folder.missing(rest)})
    elif verb == "receive":
        for digest, size in zip(rest[::2], rest[1::2], strict=True):
            folder.receive(digest, int(size), sys.stdin.buffer)
        say({"received": rest[::2]})
    elif verb == "submit":
        say(jobs.submit(folder, rest[0], _request()))
    elif verb == "watch":
        jobs.watch(folder, rest[0], say)
    elif verb == "result":
        say(jobs.result(folder, rest[0]))
    elif verb == "release":
        jobs.release(folder, rest[0])
        say({"released": rest[0]})
    elif verb == "cancel":
        say({"cancelled": jobs.cancel(folder, rest[0])})
    elif verb == "work":
        from edgekd.profiling.agent.work import work  # imported late: the short verbs answer sooner without it

        work(folder, rest[0])
    elif verb == "engine":
        from edgekd.runtimes.engines.work import main as engine_work

        engine_work(rest)
    elif verb == "fetch":
        folder.send(rest[0], say)
    elif verb == "forget":
        folder.forget(rest)
        say({"forgotten": rest})
    elif verb == "bench":
        from edgekd.profiling.agent.bench import bench

        low, _, high = rest[2].partition(":")
        bench(folder, rest[0], [int(index) for index in rest[1].split(",")], (float(low), float(high)))
    else:
        raise AgentError(BAD_REQUEST, f"the agent has no verb {verb!r}")


def _hello(folder: Folder) -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "executable": sys.executable,
        "machine": machine(),
        "runtimes": availability(sys.executable),
        "clocks": clock_state(),
        "free_mib": shutil.disk_usage(folder.root).free // 2**20,
    }


def _request() -> dict[str, Any]:
    try:
        value = json.load(sys.stdin)
    except ValueError as err:
        raise AgentError(BAD_REQUEST, f"what was submitted is not JSON: {err}") from err
    if not isinstance(value, dict):
        raise AgentError(BAD_REQUEST, "what was submitted is no object")
    return value


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
