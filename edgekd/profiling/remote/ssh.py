"""Runs commands on a board with the OpenSSH client: the user's keys and `~/.ssh/config`, no library of our own.

Host keys are always verified, and nothing is ever asked: a password prompt would hang a CI job. Forwardings of the
user's configuration are left out, since a second connection would collide with them.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from edgekd.errors import UserError
from edgekd.profiling.remote.address import Address
from edgekd.profiling.remote.failures import failure_from_ssh, no_answer

CONNECT_S = 15
SSH_FAILED = 255
_CHUNK = 1 << 16
OPTIONS = (
    "BatchMode=yes",
    "StrictHostKeyChecking=yes",
    f"ConnectTimeout={CONNECT_S}",
    # A dead link is noticed after half a minute instead of after hours.
    "ServerAliveInterval=10",
    "ServerAliveCountMax=3",
    "ClearAllForwardings=yes",
    "ForwardAgent=no",
    "LogLevel=ERROR",
)


@dataclass(frozen=True)
class Done:
    """A command that ran on the board.

    Attributes:
        code: Its exit code.
        out: Its standard output.
        err: Its standard error, the client's messages included.
    """

    code: int
    out: str
    err: str


class Ssh:
    """A board's command line.

    Args:
        address: Of the board.
    """

    def __init__(self, address: Address) -> None:
        self.address = address
        found = shutil.which("ssh")
        if found is None:
            raise UserError(
                "Boards are reached with the OpenSSH client, and there is no `ssh` on the PATH.",
                hint="sudo apt-get install openssh-client",
            )
        self._program = found

    def run(self, command: Sequence[str], *, data: bytes | None = None, timeout_s: float) -> Done:
        """Runs a command to its end.

        Args:
            command: Words without a meaning for any shell.
            data: What it reads; nothing when not given.
            timeout_s: How long it may take.

        Raises:
            ConnectionFailed: ssh could not connect, lost the connection, or the time was up.
        """
        arguments = self._arguments(command)
        try:
            # An empty input in place of none: it must not read this process's own.
            done = subprocess.run(arguments, input=data or b"", capture_output=True, timeout=timeout_s, check=False)
        except subprocess.TimeoutExpired as err:
            raise no_answer(self.address, timeout_s) from err
        return self._checked(done.returncode, _text(done.stdout), _text(done.stderr))

    def send(
        self, command: Sequence[str], paths: Sequence[Path], *, timeout_s: float, on_sent: Callable[[int], None]
    ) -> Done:
        """Runs a command that reads files, one after the other, and tells how much of them has left.

        A command that ends before it has read everything is no error of the connection: what it said is returned.

        Args:
            command: Words without a meaning for any shell.
            paths: Whose bytes it reads.
            timeout_s: How long all of it may take.
            on_sent: Called with the number of bytes so far.

        Raises:
            ConnectionFailed: ssh could not connect, lost the connection, or the time was up.
        """
        process = subprocess.Popen(
            self._arguments(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdin is not None
        said: tuple[list[bytes], list[bytes]] = ([], [])
        readers = [
            threading.Thread(target=_read_all, args=(pipe, into), daemon=True)
            for pipe, into in zip((process.stdout, process.stderr), said, strict=True)
        ]
        for reader in readers:
            reader.start()
        watchdog = _Watchdog(process, timeout_s)
        try:
            with contextlib.suppress(BrokenPipeError), process.stdin:
                _pour(paths, process.stdin, on_sent)
            process.wait()
        finally:
            watchdog.stop()
            process.kill()
            process.wait()
            for reader in readers:
                reader.join(1.0)
        if watchdog.bit:
            raise no_answer(self.address, timeout_s)
        return self._checked(process.returncode, *(_text(b"".join(lines)) for lines in said))

    def follow(self, command: Sequence[str], on_line: Callable[[str], None], *, silence_s: float) -> Done:
        """Runs a command and hands each line of its output on as it comes.

        Args:
            command: Words without a meaning for any shell.
            on_line: Called for each line.
            silence_s: Without a line for so long, the connection is given up.

        Raises:
            ConnectionFailed: ssh could not connect, lost the connection, or the board fell silent.
        """
        process = subprocess.Popen(
            self._arguments(command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdout is not None
        assert process.stderr is not None
        errors: list[bytes] = []
        drain = threading.Thread(target=_read_all, args=(process.stderr, errors), daemon=True)
        drain.start()
        watchdog = _Watchdog(process, silence_s)
        try:
            for line in process.stdout:
                watchdog.heard()
                on_line(_text(line))
            process.wait()
        finally:
            watchdog.stop()
            process.kill()
            process.wait()
            drain.join(1.0)
            process.stdout.close()
        if watchdog.bit:
            raise no_answer(self.address, silence_s)
        return self._checked(process.returncode, "", _text(b"".join(errors)))

    def _arguments(self, command: Sequence[str]) -> list[str]:
        options = [word for option in OPTIONS for word in ("-o", option)]
        port = [] if self.address.port is None else ["-p", str(self.address.port)]
        return [self._program, "-T", "-x", *options, *port, "--", self.address.destination, " ".join(command)]

    def _checked(self, code: int, out: str, err: str) -> Done:
        if code == SSH_FAILED or code < 0:
            raise failure_from_ssh(self.address, err or "Connection closed")
        return Done(code, out, err)


class _Watchdog:
    """Ends a process that has said nothing for too long."""

    def __init__(self, process: subprocess.Popen[bytes], silence_s: float) -> None:
        self.bit = False
        self._process = process
        self._silence_s = silence_s
        self._timer: threading.Timer | None = None
        self.heard()

    def heard(self) -> None:
        self.stop()
        self._timer = threading.Timer(self._silence_s, self._bite)
        self._timer.daemon = True
        self._timer.start()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _bite(self) -> None:
        self.bit = True
        self._process.kill()


def _pour(paths: Sequence[Path], into: IO[bytes], on_sent: Callable[[int], None]) -> None:
    sent = 0
    for path in paths:
        with path.open("rb") as source:
            while chunk := source.read(_CHUNK):
                into.write(chunk)
                sent += len(chunk)
                on_sent(sent)


def _read_all(stream: IO[bytes], into: list[bytes]) -> None:
    into.extend(stream)


def _text(data: bytes) -> str:
    return data.decode("utf-8", errors="replace")
