"""A board with the agent on it: installed when it is missing, asked over ssh, its refusals turned into our errors.

Everything lies in one folder of the login's home, `.cache/edgekd`. The agent and the files have their digests as names
and are pushed once.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekd.core.blobs import disk_errors
from edgekd.core.digest import Digest
from edgekd.core.events import Reporter
from edgekd.core.stage import BoardAccess
from edgekd.errors import DeviceUnavailable, UserError
from edgekd.profiling.agent.jobs import BEAT_S
from edgekd.profiling.agent.wire import FAILED_EXIT, heard
from edgekd.profiling.remote.address import parse_address
from edgekd.profiling.remote.archive import agent_archive
from edgekd.profiling.remote.ssh import Done, Ssh

FOLDER = ".cache/edgekd"
PYTHON = "python3"
ANSWER_S = 60.0
SLOWEST_LINK_BYTES_PER_S = 50_000
_NO_SUCH_FILE = 2
"""Exit code of a Python whose script is missing."""
_NOT_FOUND = (126, 127)
"""Exit codes of a shell that cannot start a command."""


class Board:
    """One board, reached by ssh.

    Args:
        ssh: Its command line.
        python: Its interpreter, a name or a path; the one that has the runtime.

    Raises:
        UserError: An interpreter whose name means something to a shell.
    """

    def __init__(self, ssh: Ssh, python: str = PYTHON) -> None:
        if not re.fullmatch(r"(~/)?[A-Za-z0-9_./+-]+", python) or python.startswith("-"):
            raise UserError(
                f"The board's Python {python!r} is no plain path.", hint="for example /home/user/venv/bin/python"
            )
        self.ssh = ssh
        self.python = python
        self._agent = f"{FOLDER}/{agent_archive().name}"

    @property
    def name(self) -> str:
        """Its address."""
        return str(self.ssh.address)

    def hello(self, *digests: Digest) -> dict[str, Any]:
        """What the board is and has: `machine`, `runtimes`, `clocks`, `python`, `free_mib`; installs the agent.

        Args:
            digests: Of files; those that the board does not have are `missing`.

        Raises:
            DeviceUnavailable: It cannot be reached, has no usable Python, or its disk is full.
        """
        answer = self._asked(["hello", *digests], may_be_missing=True)
        if answer is None:
            self._install()
            answer = self._asked(["hello", *digests])
        assert answer is not None
        return answer

    def push(self, files: Mapping[Digest, Path], reporter: Reporter) -> None:
        """Sends files, all through one connection.

        Raises:
            DeviceUnavailable: The connection broke, the disk is full, or a file arrived damaged.
        """
        if not files:
            return
        sizes = {digest: path.stat().st_size for digest, path in files.items()}
        total = sum(sizes.values())
        what = f"{len(files)} file{'s' if len(files) > 1 else ''}, {total / 2**20:.1f} MiB"
        reporter.message(f"• {self.name}: sending {what}")
        words = [word for digest, size in sizes.items() for word in (digest, str(size))]
        done = self.ssh.send(
            self._command(["receive", *words]),
            list(files.values()),
            timeout_s=ANSWER_S + total / SLOWEST_LINK_BYTES_PER_S,
            on_sent=_Percent(reporter, f"{self.name}: send {what}, percent", total),
        )
        self._answer(done)

    def fetch(self, digest: Digest, path: Path, reporter: Reporter) -> None:
        """Writes a file of the board here; it appears whole and with its digest, or not at all.

        Raises:
            DeviceUnavailable: The connection broke, the file is gone, or it arrived damaged.
        """
        reporter.message(f"• {self.name}: fetching {path.name}")
        made, hasher, last = path.with_name(f".{path.name}.part"), hashlib.sha256(), [""]
        try:
            with disk_errors(path), made.open("wb") as out:

                def hear(line: str) -> None:
                    said = heard(line)
                    if said is not None and "piece" in said:
                        content = base64.b64decode(said["piece"])
                        hasher.update(content)
                        out.write(content)
                    elif said is not None:
                        last[:] = [line]

                done = self.ssh.follow(self._command(["fetch", digest]), hear, silence_s=ANSWER_S)
            self._answer(Done(done.code, last[0], done.err))
            if hasher.hexdigest() != digest:
                raise DeviceUnavailable(
                    f"{self.name}: {path.name} arrived damaged: its SHA-256 is {hasher.hexdigest()[:12]}..., expected "
                    f"was {digest[:12]}...",
                    hint="run the command again",
                )
            os.replace(made, path)
        finally:
            made.unlink(missing_ok=True)

    def ask(self, verb: str, *arguments: str, data: bytes | None = None) -> dict[str, Any]:
        """The agent's answer to one verb.

        Raises:
            DeviceUnavailable: The connection failed, or the agent says why it refuses.
        """
        answer = self._asked([verb, *arguments], data=data)
        assert answer is not None
        return answer

    def submit(self, job_id: str, spec: dict[str, Any]) -> dict[str, Any]:
        """The status of a job that was started, or `joined` because the board has it already.

        Raises:
            DeviceUnavailable: See `ask`.
        """
        return self.ask("submit", job_id, data=json.dumps(spec).encode())

    def watch(self, job_id: str, on_status: Callable[[dict[str, Any]], None]) -> None:
        """Follows a job until it ends or the connection does.

        Raises:
            DeviceUnavailable: See `ask`.
        """
        last: list[str] = []

        def hear(line: str) -> None:
            last[:] = [line]
            if (status := heard(line)) is not None and "state" in status:
                on_status(status)

        done = self.ssh.follow(self._command(["watch", job_id]), hear, silence_s=4 * BEAT_S)
        if done.code != 0:
            self._answer(Done(done.code, "".join(last), done.err))

    def _install(self) -> None:
        """Sends the agent, with a program that stores it, to the board's Python."""
        archive = agent_archive()
        program = importlib.resources.files("edgekd").joinpath("profiling", "agent", "install.py").read_text("utf-8")
        text = base64.b64encode(archive.content).decode("ascii")
        call = f"install({FOLDER!r}, {archive.name!r}, {archive.digest!r}, {text!r})\n"
        done = self.ssh.run([self.python, "-"], data=(program + "\n\n" + call).encode(), timeout_s=ANSWER_S)
        self._answer(done)

    def _asked(
        self,
        words: Sequence[str],
        *,
        data: bytes | None = None,
        may_be_missing: bool = False,
    ) -> dict[str, Any] | None:
        """The agent's answer, or None when the agent is not there and may be missing."""
        done = self.ssh.run(self._command(words), data=data, timeout_s=ANSWER_S)
        if may_be_missing and done.code == _NO_SUCH_FILE and "can't open file" in done.err:
            return None
        return self._answer(done)

    def _command(self, words: Sequence[str]) -> list[str]:
        return [self.python, self._agent, *words]

    def _answer(self, done: Done) -> dict[str, Any]:
        """What the agent said last.

        Raises:
            DeviceUnavailable: It refused, or it could not even speak.
        """
        answers = [answer for line in done.out.splitlines() if (answer := heard(line)) is not None]
        if done.code == FAILED_EXIT or (answers and "error" in answers[-1]):
            said = answers[-1] if answers else {"message": "the agent failed without a word"}
            raise refusal(self.name, said)
        if done.code in _NOT_FOUND:
            raise DeviceUnavailable(
                f"{self.name}: there is no {self.python} on the board, and the agent needs Python 3.10 or newer.",
                hint=f"{self.ssh.address.command} sudo apt-get install python3; or name another one with "
                "--device-python PATH",
            )
        if done.code != 0 or not answers:
            words = " | ".join(line.strip() for line in done.err.splitlines() if line.strip())[-300:]
            raise DeviceUnavailable(
                f"{self.name}: the agent gave no answer (exit code {done.code}): {words or 'it said nothing'}",
                hint=f"the agent lies in {FOLDER} on the board and may be removed; it is sent again",
            )
        return answers[-1]


class _Percent:
    """Reports progress when a whole percent is reached, not at every chunk."""

    def __init__(self, reporter: Reporter, task: str, total: int) -> None:
        self._reporter, self._task, self._total, self._shown = reporter, task, max(1, total), -1

    def __call__(self, done: int) -> None:
        percent = 100 * done // self._total
        if percent != self._shown:
            self._shown = percent
            self._reporter.progress(self._task, percent, 100)


def board_from_access(access: BoardAccess, where: str = "--device") -> Board:
    """The board that is meant; nothing is asked of it yet.

    Args:
        access: How it is reached.
        where: The flag or the key that named it.

    Raises:
        UserError: An address or an interpreter that cannot be one, or no OpenSSH client here.
    """
    return Board(Ssh(parse_address(access.address, where)), access.python)


def refusal(name: str, said: Mapping[str, Any]) -> DeviceUnavailable:
    """The error for an answer in which the agent says why it could not."""
    message = str(said.get("message", "it failed"))
    return DeviceUnavailable(f"{name}: {message}.".replace("..", "."), hint=str(said.get("hint") or "") or None)
