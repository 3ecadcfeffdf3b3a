"""Where a board is: `ssh://user@host[:port]`, in the form that the OpenSSH client is called with.

A host may be a name from `~/.ssh/config`. Passwords have no place here: they would stand in the list of processes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgekd.errors import UserError

_FORM = re.compile(
    r"^ssh://(?:(?P<user>[^@/]+)@)?(?P<host>\[[0-9A-Fa-f:.%\w]+\]|[^@:/\[\]]+)(?::(?P<port>\d{1,5}))?/?$"
)
_WORD = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9_.%:+-]*$")
_HINT = "ssh://user@host or ssh://user@host:2222; the host may be a name from ~/.ssh/config"


@dataclass(frozen=True)
class Address:
    """A board as ssh knows it.

    Attributes:
        host: Name, address, or alias of the ssh configuration.
        user: None leaves it to the configuration.
        port: None leaves it to the configuration.
    """

    host: str
    user: str | None = None
    port: int | None = None

    @property
    def destination(self) -> str:
        """`user@host`, the argument of ssh."""
        return self.host if self.user is None else f"{self.user}@{self.host}"

    @property
    def command(self) -> str:
        """What a person types to log in there."""
        return f"ssh {self.destination}" if self.port is None else f"ssh -p {self.port} {self.destination}"

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        user = "" if self.user is None else f"{self.user}@"
        return f"ssh://{user}{host}" + ("" if self.port is None else f":{self.port}")


def parse_address(text: str, where: str) -> Address:
    """The address in `text`.

    Args:
        text: As a user wrote it.
        where: The flag or the key that it came from.

    Raises:
        UserError: Another form, a password in it, or a name that ssh would read as an option.
    """
    found = _FORM.match(text)
    if not found:
        raise UserError(f"{where} {text!r}: expected ssh://user@host[:port].", hint=_HINT)
    user, host, port = found["user"], found["host"].strip("[]"), found["port"]
    if user is not None and ":" in user:
        raise UserError(
            f"{where}: a password in the address would be visible to everyone on this machine; edgekd takes none.",
            hint=f"log in with a key: ssh-copy-id {user.partition(':')[0]}@{host}, then ssh://"
            f"{user.partition(':')[0]}@{host}",
        )
    if not _WORD.match(host) or (user is not None and not _WORD.match(user)):
        raise UserError(f"{where} {text!r}: the user or the host has characters that no such name has.", hint=_HINT)
    if port is not None and not 0 < int(port) < 65536:
        raise UserError(f"{where} {text!r}: {port} is not a port (1 to 65535).", hint=_HINT)
    return Address(host=host, user=user, port=None if port is None else int(port))
