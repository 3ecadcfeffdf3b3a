"""A connection to a Ray cluster (Moritz et al. 2018, arXiv 1712.05889), for whatever outgrows one machine.

What the cluster is given to do is the affair of those who connect. Ray itself is imported inside functions only.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import socket
from typing import Any

from edgekd.errors import DeviceUnavailable, UserError

PREFIX = "ray://"
"""Begins the text that names a cluster."""
NAMED = ("local", "auto")
_ANSWER_S = 10.0


def check_ray(address: str) -> None:
    """Refuses an address that no cluster can have, and a machine without Ray.

    Args:
        address: What stands behind `ray://`.

    Raises:
        UserError: See above.
    """
    host, _, port = address.rpartition(":")
    if address not in NAMED and not (host and port.isdecimal()):
        raise UserError(
            f"A Ray cluster is ray://HOST:PORT, ray://auto or ray://local; got 'ray://{address}'.",
            hint="the client server of a cluster listens on port 10001 of its head: ray start --head",
        )
    if importlib.util.find_spec("ray") is None:
        raise UserError("A Ray cluster needs Ray, which is not installed.", hint="pip install 'edgekd[ray]'")


class RayConnection:
    """A connection of this process; one that it has already is used as it is, and left open by `close`.

    Args:
        address: What stands behind `ray://`: `HOST:PORT` of a client server, `auto` for the cluster that this machine
            is part of, `local` for one that lives as long as the connection.
        cores: Of the cluster that `local` starts.

    Raises:
        DeviceUnavailable: No cluster answers.

    Attributes:
        ray: The library.
    """

    def __init__(self, address: str, *, cores: int) -> None:
        if address not in NAMED:
            _check_answers(address)
        import ray

        self.ray: Any = ray
        self._owns = not ray.is_initialized()
        if self._owns:
            self._connect(address, cores)

    def close(self) -> None:
        """Ends it, if it was made here."""
        if self._owns:
            self.ray.shutdown()

    def losses(self) -> tuple[type[Exception], ...]:
        """What Ray raises when a process or a machine has gone."""
        known = self.ray.exceptions
        return (known.WorkerCrashedError, known.NodeDiedError, known.OutOfMemoryError, known.LocalRayletDiedError)

    def _connect(self, address: str, cores: int) -> None:
        settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
        if address == "local":
            # A cluster of ours reports nothing to the makers of Ray.
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            settings |= {"num_cpus": cores, "include_dashboard": False}
        try:
            self.ray.init(address=address if address in NAMED else f"{PREFIX}{address}", **settings)
        except (ConnectionError, RuntimeError, self.ray.exceptions.RayError) as err:
            raise _no_answer(address, err) from err


def brief(err: Exception) -> str:
    """The first line: Ray's messages go on for pages."""
    return next((line.strip() for line in str(err).splitlines() if line.strip()), type(err).__name__)


def _check_answers(address: str) -> None:
    """Ray itself would try again for half a minute."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=_ANSWER_S).close()
    except OSError as err:
        raise _no_answer(address, err) from err


def _no_answer(address: str, err: Exception) -> DeviceUnavailable:
    return DeviceUnavailable(
        f"No Ray cluster answers at {PREFIX}{address}: {brief(err)}",
        hint="start one with `ray start --head`, and the Python and Ray versions of this machine",
    )
