"""Why a connection failed: OpenSSH's one exit code and its words, told apart and answered with what fixes it.

The patterns are messages of the OpenSSH client from 8 to 10; what none of them knows is passed on as it was said.
"""

from __future__ import annotations

import re
from typing import Literal

from edgekd.errors import DeviceUnavailable
from edgekd.profiling.remote.address import Address

Kind = Literal["unreachable", "refused", "key", "unknown-host", "changed-host", "config", "dropped", "timeout", "other"]

_PATTERNS: tuple[tuple[Kind, str], ...] = (
    ("changed-host", r"REMOTE HOST IDENTIFICATION HAS CHANGED|Host key for .+ has changed"),
    ("unknown-host", r"No \S+ host key is known for|Host key verification failed"),
    ("config", r"[Bb]ad configuration option|[Bb]ad owner or permissions|terminating, \d+ bad configuration|Bad port"),
    ("refused", r"Connection refused"),
    (
        "unreachable",
        r"Could not resolve hostname|No route to host|Network is unreachable|Host is down"
        r"|connect to \S+ .*timed out|Connection timed out|Operation timed out|Connection to \S+ port \d+ timed out",
    ),
    ("key", r"Permission denied|Too many authentication failures|No supported authentication methods"),
    (
        "dropped",
        r"Connection (closed|reset)|Broken pipe|not responding|kex_exchange_identification|closed by remote host"
        r"|Connection aborted|banner exchange",
    ),
)
PASSING: frozenset[Kind] = frozenset({"unreachable", "refused", "dropped", "timeout"})
"""Failures that may be over in a minute: a board that restarts, a radio link."""


class ConnectionFailed(DeviceUnavailable):
    """ssh could not reach the board, or lost it.

    Args:
        kind: What happened.
        message: In a sentence.
        hint: The command or the step that fixes it.
    """

    def __init__(self, kind: Kind, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.kind = kind


def failure_from_ssh(address: Address, said: str) -> ConnectionFailed:
    """The error for an ssh that ended with its own exit code 255.

    Args:
        address: Of the board.
        said: Its standard error.
    """
    kind: Kind = next((kind for kind, pattern in _PATTERNS if re.search(pattern, said)), "other")
    message, hint = _MESSAGES[kind]
    words = _last_line(said)
    return ConnectionFailed(
        kind,
        f"{address}: {message}" + (f" ssh says: {words}" if words else ""),
        hint=hint.format(login=address.command, forget=_forget(address, said), copy=_copy_id(address)),
    )


def no_answer(address: Address, seconds: float) -> ConnectionFailed:
    """The error for a board that accepted a command and did not answer it."""
    return ConnectionFailed(
        "timeout",
        f"{address}: the board did not answer within {seconds:.0f} s.",
        hint=f"see whether it still reacts: {address.command} uptime",
    )


_MESSAGES: dict[Kind, tuple[str, str]] = {
    "unreachable": (
        "the board cannot be reached; it is off, elsewhere, or its name is wrong.",
        "check power, network and name; `{login}` must work",
    ),
    "refused": (
        "the machine is there, but nothing listens for ssh on that port.",
        "start its ssh server (sudo systemctl start ssh), or give the right port: ssh://user@host:PORT",
    ),
    "key": (
        "the board refused every key of yours.",
        "let your key in: `{copy}`; or name the right one in ~/.ssh/config (IdentityFile, User); keys with a "
        "passphrase have to be in the agent: ssh-add",
    ),
    "unknown-host": (
        "this machine does not know the board's host key, and an unverified board is not used.",
        "log in once with `{login}`, compare the fingerprint it shows with `ssh-keygen -lf "
        "/etc/ssh/ssh_host_ed25519_key.pub` on the board, and answer yes",
    ),
    "changed-host": (
        "the board's host key is not the one that this machine knows. It was set up anew, or it is another machine.",
        "if you know why it changed: `{forget}`, then log in once with `{login}` and compare the fingerprint",
    ),
    "config": ("the ssh configuration has an error.", "correct it; `{login}` must work"),
    "dropped": ("the connection broke off.", "see whether it is back: `{login}`"),
    "timeout": ("the board did not answer in time.", "see whether it still reacts: `{login}`"),
    "other": ("ssh failed.", "`{login}` must work without a question"),
}


def _forget(address: Address, said: str) -> str:
    """The command that removes the old key: as ssh proposed it (Debian's does), else for the default file."""
    proposed = re.search(r"^\s*(ssh-keygen -f .+ -R .+?)\s*$", said, re.MULTILINE)
    if proposed:
        return proposed[1]
    place = re.search(r"Offending \S+ key in (.+):\d+", said)
    where = f'-f "{place[1]}" ' if place else ""
    name = address.host if address.port in (None, 22) else f"[{address.host}]:{address.port}"
    return f'ssh-keygen {where}-R "{name}"'


def _copy_id(address: Address) -> str:
    port = "" if address.port is None else f"-p {address.port} "
    return f"ssh-copy-id {port}{address.destination}"


def _last_line(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip() and not line.startswith("@")]
    return lines[-1][:300] if lines else ""
