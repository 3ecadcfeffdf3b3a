"""Clocks of a board: fixed only when asked, and given back whatever happens in between.

A Jetson is fixed with NVIDIA's `jetson_clocks`; its power mode (`nvpmodel`) is read and left alone, for a change may
need a restart. Any other board gets the `performance` governor. What was found is written to a file before anything is
changed, so that the next measurement gives it back when this one was killed. Standard library of Python 3.10 only.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgekd.profiling.agent.wire import AgentError, read_json, write_json

CANNOT_LOCK = "cannot-lock-clocks"
SAVED_FILE = "clocks.saved.json"
JETSON_FILE = "clocks.jetson"
CPU_FOLDER = Path("/sys/devices/system/cpu")
STEADY = "performance"
_LIMIT_S = 30.0


def clock_state() -> dict[str, Any]:
    """What `jetson_clocks` says, beside the governor and the power mode that `facts.state` reads; empty elsewhere."""
    if not shutil.which("jetson_clocks"):
        return {}
    said = _said([*_as_root(), "jetson_clocks", "--show"])  # only root may ask: without a password, or not at all
    return {"jetson_clocks": said.splitlines() or None}


@contextmanager
def locked(folder: Path, cpu_folder: Path = CPU_FOLDER) -> Iterator[list[str]]:
    """Fixes the clocks for a block and gives sentences on what was done; they are restored at its end in any case.

    Args:
        folder: Of the agent; what has to be restored is noted there.
        cpu_folder: Where the system shows its governors.

    Raises:
        AgentError: The board has nothing to fix, or this user may not.
    """
    if shutil.which("jetson_clocks"):
        before = folder / JETSON_FILE
        before.unlink(missing_ok=True)
        _must([*_as_root(), "jetson_clocks", "--store", str(before)])
        write_json(folder / SAVED_FILE, {"jetson": str(before)})
        done, change = "clocks were fixed with jetson_clocks and restored afterwards", _lock_jetson
    elif governors := _governors(cpu_folder):
        write_json(folder / SAVED_FILE, {"governors": governors})
        done, change = f"the governor was set to {STEADY} and restored afterwards", _lock_governors
    else:
        raise AgentError(
            CANNOT_LOCK,
            "this board has neither jetson_clocks nor a governor that can be set",
            "measure without --lock-clocks; the report says how the clocks were",
        )
    try:
        change(cpu_folder)
        yield [done]
    finally:
        restore(folder, cpu_folder)


def restore(folder: Path, cpu_folder: Path = CPU_FOLDER) -> bool:
    """Gives back what a measurement fixed and did not restore, because it was killed; whether there was anything.

    Raises:
        AgentError: The clocks are still fixed and this user may not restore them.
    """
    saved = read_json(folder / SAVED_FILE)
    if saved is None:
        return False
    if "jetson" in saved:
        _must([*_as_root(), "jetson_clocks", "--restore", str(saved["jetson"])])
        Path(saved["jetson"]).unlink(missing_ok=True)
    for place, governor in dict(saved.get("governors", {})).items():
        if Path(place).parent.parent.parent == cpu_folder:
            _write(Path(place), str(governor))
    (folder / SAVED_FILE).unlink(missing_ok=True)
    return True


def _lock_jetson(cpu_folder: Path) -> None:
    _must([*_as_root(), "jetson_clocks"])


def _lock_governors(cpu_folder: Path) -> None:
    for place in _governors(cpu_folder):
        _write(Path(place), STEADY)


def _governors(cpu_folder: Path) -> dict[str, str]:
    """Governor by file, of every core that shows one."""
    found = {}
    for path in sorted(cpu_folder.glob("cpu[0-9]*/cpufreq/scaling_governor")):
        try:
            found[str(path)] = path.read_text().strip()
        except OSError:
            continue
    return found


def _write(path: Path, text: str) -> None:
    if os.access(path, os.W_OK):
        path.write_text(text)
        return
    _must([*_as_root(), "tee", str(path)], text)


def _as_root() -> list[str]:
    return [] if os.geteuid() == 0 else ["sudo", "-n"]


def _said(command: list[str]) -> str:
    """What a command prints, empty when it fails."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_LIMIT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _must(command: list[str], text: str = "") -> None:
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as err:
        raise AgentError(CANNOT_LOCK, f"`{' '.join(command)}` did not work: {err}") from err
    if done.returncode != 0:
        raise AgentError(
            CANNOT_LOCK,
            f"`{' '.join(command)}` failed on the board: {(done.stderr or done.stdout).strip()[:300]}",
            "log in as root, or let this user run it with sudo without a password (sudoers: NOPASSWD)",
        )
