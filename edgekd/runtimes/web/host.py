"""The programs that run a JavaScript engine: Node.js, and a browser without a window. Found, started, and ended.

Both are told to die with the process that started them, where the system can do that. Nothing is downloaded, and the
browser has a new profile in a temporary folder, so that no page, extension or cookie of the user takes part.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Literal

import psutil

from edgekd.core.orphan import ending_with_this

HostName = Literal["node", "browser"]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
BROWSER_VARIABLE = "EDGEKD_BROWSER"
NODE_MAJOR = 18
"""The first Node.js with `fetch`."""
_BROWSER_FLAGS = (
    "--headless=new",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-background-timer-throttling",
    "--disable-renderer-backgrounding",
    "--disable-backgrounding-occluded-windows",
    "--no-first-run",
    "--no-default-browser-check",
    "--mute-audio",
)
_ENDING_S = 3.0
_LAST_WORDS = 300


def program_of(host: HostName) -> str | None:
    """The path of the program, None when it is not installed; `EDGEKD_BROWSER` names a browser."""
    if host == "node":
        return shutil.which("node") or shutil.which("nodejs")
    named = os.environ.get(BROWSER_VARIABLE)
    return next((found for name in ([named] if named else BROWSERS) if (found := shutil.which(name))), None)


class HostProcess:
    """A running host.

    Args:
        host: Which one.
        program: Its path.
        address: Of the link.
        library: The folder of ONNX Runtime Web, its `dist`.
    """

    def __init__(self, host: HostName, program: str, address: str, library: Path) -> None:
        self.host = host
        self._folder = tempfile.TemporaryDirectory(prefix="edgekd-web-", ignore_cleanup_errors=True)
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `end`
        if host == "node":
            command = [program, str(Path(__file__).parent / "node.mjs"), address, str(library)]
        else:
            command = _browser_command(program, address, self._folder.name)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._errors,
            stderr=self._errors,
            preexec_fn=ending_with_this(),
            start_new_session=True,
        )

    def ended(self) -> str | None:
        """None while it runs, else how it ended, with its last words."""
        code = self._process.poll()
        if code is None:
            return None
        how = (
            f"{self.host} ended by {signal.Signals(-code).name}" if code < 0 else f"{self.host} ended with code {code}"
        )
        self._errors.seek(0)
        words = " ".join(self._errors.read().decode(errors="replace").split())[-_LAST_WORDS:]
        return f"{how}. {words}".strip()

    def memory_mib(self) -> float | None:
        """Resident MiB of the process that runs the engine: Node.js itself, or the browser's largest renderer."""
        try:
            whole = psutil.Process(self._process.pid)
            if self.host == "node":
                return float(whole.memory_info().rss / 2**20)
            below = whole.children(recursive=True)
            renderers = [p for p in below if "--type=renderer" in " ".join(p.cmdline())]
            return max((p.memory_info().rss / 2**20 for p in renderers), default=None)
        except psutil.Error:
            return None

    def end(self) -> None:
        """Waits shortly for it to end by itself, then kills it with all its children."""
        try:
            self._process.wait(timeout=_ENDING_S)
        except subprocess.TimeoutExpired:
            _kill_group(self._process)
        self._errors.close()
        self._folder.cleanup()


def _browser_command(program: str, address: str, profile: str) -> list[str]:
    # A browser's sandbox does not work for root; the only page it opens is ours.
    unboxed = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    return [program, *_BROWSER_FLAGS, *unboxed, f"--user-data-dir={profile}", f"{address}/page.html"]


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    try:
        if sys.platform == "win32":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()
