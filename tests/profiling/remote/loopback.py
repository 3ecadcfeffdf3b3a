"""A board that is this machine: a real OpenSSH server on the loopback interface, with keys and a home of its own."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

SYSTEM_PATH = "/usr/bin:/bin"


def sshd_program() -> str:
    """The server's program; skips the test where something is missing, and says what."""
    found = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is None:
        pytest.skip("needs an OpenSSH server: apt-get install openssh-server")
    if shutil.which("ssh") is None or shutil.which("ssh-keygen") is None:
        pytest.skip("needs the OpenSSH client: apt-get install openssh-client")
    return found


@dataclass
class LoopbackBoard:
    """A running server and the files of both sides.

    Attributes:
        folder: Holds everything.
        port: That it listens on.
        process: The listening server.
    """

    folder: Path
    port: int
    process: subprocess.Popen[bytes]

    @property
    def home(self) -> Path:
        """The home of the board's user."""
        return self.folder / "home"

    @property
    def cache(self) -> Path:
        """The agent's folder on the board."""
        return self.home / ".cache" / "edgekd"

    @property
    def bin(self) -> Path:
        """Programs of the board, before the system's."""
        return self.folder / "board-bin"

    @property
    def client_path(self) -> str:
        """A PATH whose `ssh` reads our configuration; the user's own one stays out of it."""
        return f"{self.folder / 'client-bin'}:{os.environ['PATH']}"

    def set_python(self, line: str | None) -> None:
        """Puts a `python3` on the board that runs this shell line, or none."""
        program = self.bin / "python3"
        program.unlink(missing_ok=True)
        if line is not None:
            _script(program, line)

    def set_system_path(self, path: str) -> None:
        """What follows the board's own programs on its PATH."""
        _write_shell(self.folder, path)

    def kill_connections(self) -> int:
        """Ends every connection as a lost link would, and leaves the server; how many there were."""
        found = psutil.Process(self.process.pid).children()
        for child in found:
            with contextlib.suppress(psutil.NoSuchProcess):  # a connection that ended by itself meanwhile
                child.kill()
        return len(found)

    def stop(self) -> None:
        """Ends the server and its connections."""
        if self.process.poll() is not None:
            return
        self.kill_connections()
        self.process.terminate()
        self.process.wait(10)


def start_board(folder: Path) -> LoopbackBoard:
    """A board in an empty folder; its Python is this one."""
    program = sshd_program()
    for name in ("home", "board-bin", "client-bin"):
        (folder / name).mkdir(parents=True)
    for key in ("host_key", "user_key", "other_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True, timeout=30)
    shutil.copy(folder / "user_key.pub", folder / "authorized_keys")
    port = _free_port()
    host_key = (folder / "host_key.pub").read_text().split()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key[0]} {host_key[1]}\n")
    _write_shell(folder, SYSTEM_PATH)
    _write_client(folder, port)
    config = folder / "sshd_config"
    config.write_text(_server_config(folder, port))
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where the server separates its privileges
    with (folder / "sshd.log").open("wb") as log:
        process = subprocess.Popen([program, "-D", "-e", "-f", str(config)], stdout=log, stderr=log)
    board = LoopbackBoard(folder, port, process)
    board.set_python(f'exec {sys.executable} "$@"')
    _wait_for(board)
    return board


def _server_config(folder: Path, port: int) -> str:
    return f"""
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
ForceCommand {folder}/shell
MaxStartups 100
"""


def _write_shell(folder: Path, system_path: str) -> None:
    """What the board runs for each login: its home and programs are not those of the user of this machine."""
    _script(
        folder / "shell",
        f'export HOME={folder}/home PATH={folder}/board-bin:{system_path}; cd "$HOME"; '
        'exec /bin/sh -c "$SSH_ORIGINAL_COMMAND"',
    )


def _write_client(folder: Path, port: int) -> None:
    (folder / "ssh_config").write_text(
        f"""
Host board
  HostName 127.0.0.1
  Port {port}
  User {getpass.getuser()}
Host *
  IdentityFile {folder}/user_key
  IdentitiesOnly yes
  IdentityAgent none
  UserKnownHostsFile {folder}/known_hosts
  GlobalKnownHostsFile /dev/null
"""
    )
    _script(folder / "client-bin" / "ssh", f'exec {shutil.which("ssh")} -F {folder}/ssh_config "$@"')


def _script(path: Path, line: str) -> None:
    made = path.with_name(f".{path.name}")
    made.write_text(f"#!/bin/sh\n{line}\n")
    made.chmod(0o755)
    os.replace(made, path)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(board: LoopbackBoard) -> None:
    for _ in range(200):
        if board.process.poll() is not None:
            pytest.skip(f"the OpenSSH server does not start: {(board.folder / 'sshd.log').read_text()[-300:]}")
        try:
            socket.create_connection(("127.0.0.1", board.port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.05)
    board.stop()
    raise AssertionError("the OpenSSH server does not listen")
