"""The same profile on boards that many machines reach: each board's work runs on a machine of a Ray cluster near it.

Ray places the work; a board's queue and its jobs stay on the board. That is why work may be begun again when a machine
of the cluster is lost: the same question finds the job that is already answering it. Keys, `~/.ssh/config` and known
hosts are those of the machine that reaches the board; nothing of them travels.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import edgekd
from edgekd import errors
from edgekd.core.events import Reporter, SilentReporter
from edgekd.core.ray_cluster import PREFIX, RayConnection, brief, check_ray
from edgekd.errors import DeviceUnavailable, EdgekdError, UserError
from edgekd.profiling.remote.boards import Outcome, board_outcome
from edgekd.profiling.remote.lab import LabBoard
from edgekd.profiling.remote.request import BoardPlan, Candidate

ATTEMPTS = 2
"""A board's work may lose its machine once; twice is no accident."""


def check_cluster(text: str) -> str:
    """What stands behind `ray://` in `--workers`.

    Raises:
        UserError: Not the address of a cluster, or Ray is not installed.
    """
    if not text.startswith(PREFIX):
        raise UserError(
            f"--workers {text!r}: boards are reached from this machine, or from those of a Ray cluster.",
            hint="--workers ray://HOST:PORT, or leave it out",
        )
    check_ray(text.removeprefix(PREFIX))
    return text.removeprefix(PREFIX)


def profile_on_cluster(
    boards: Mapping[str, LabBoard],
    candidates: Sequence[Candidate],
    plan: BoardPlan,
    *,
    address: str,
    concurrency: int,
    reporter: Reporter,
) -> dict[str, Outcome]:
    """What each board found, or the error that stands in its place; see `profile_on_boards`.

    Args:
        address: What stands behind `ray://`.

    Raises:
        DeviceUnavailable: No cluster answers.
    """
    connection = RayConnection(address, cores=1)
    try:
        return _Cluster(connection, candidates, plan, reporter).outcomes(boards, concurrency)
    finally:
        connection.close()


class _Cluster:
    """The work of a lab on a cluster."""

    def __init__(
        self, connection: RayConnection, candidates: Sequence[Candidate], plan: BoardPlan, reporter: Reporter
    ) -> None:
        self._connection, self._ray, self._reporter = connection, connection.ray, reporter
        # In a list they are fetched by the machine that needs them, once for all of its boards.
        self._sent = [self._ray.put([(c, {d: p.read_bytes() for d, p in c.files.items()}) for c in candidates])]
        self._plan = plan
        # The work waits for an ssh client nearly all of its time, so that it takes no core of a machine.
        self._remote = self._ray.remote(num_cpus=0, max_retries=0)(_reach)

    def outcomes(self, boards: Mapping[str, LabBoard], concurrency: int) -> dict[str, Outcome]:
        """Of every board, in their order."""
        there, found = self._ray.cluster_resources(), dict[str, Outcome]()
        waiting = []
        for name, board in boards.items():
            if board.resource is None or there.get(board.resource, 0) > 0:
                waiting.append(name)
            else:
                found[name] = _nobody(name, board.resource)
        attempts, running = dict.fromkeys(boards, 0), dict[Any, str]()
        while waiting or running:
            while waiting and len(running) < concurrency:
                name = waiting.pop(0)
                running[self._start(name, boards[name])] = name
                attempts[name] += 1
            for task in self._ray.wait(list(running), num_returns=1)[0]:
                name = running.pop(task)
                outcome = self._ended(task, name)
                if outcome is None and attempts[name] < ATTEMPTS:
                    waiting.append(name)
                else:
                    found[name] = outcome or _lost(name)
        return {name: found[name] for name in boards}

    def _start(self, name: str, board: LabBoard) -> Any:
        self._reporter.message(f"• {name}: begun on the cluster")
        # A sliver of the resource: it says where, not how many boards a machine may serve.
        where = {} if board.resource is None else {board.resource: 0.001}
        return self._remote.options(resources=where).remote(edgekd.__version__, name, board, self._sent, self._plan)

    def _ended(self, task: Any, name: str) -> Outcome | None:
        """The outcome of work that has ended; None when its machine was lost."""
        try:
            said, result = self._ray.get(task)
        except self._connection.losses() as err:
            self._reporter.message(f"{name}: the machine that reached it was lost ({brief(err)})", level="warning")
            return None
        except self._ray.exceptions.RayError as err:
            return EdgekdError(f"{name}: the work failed on the cluster: {brief(err)}")
        for text in said:
            self._reporter.message(text)
        if isinstance(result, tuple):
            kind, message, hint = result
            failure: EdgekdError = getattr(errors, kind)(message, hint=hint)
            return failure
        outcome: Outcome = result
        return outcome


def _reach(
    version: str, name: str, board: LabBoard, sent: list[Any], plan: BoardPlan
) -> tuple[list[str], Outcome | tuple[str, str, str | None]]:
    """Runs on the cluster: sentences on what was done, and the profile or (class, message, hint) of an error."""
    import ray

    here = f"{name}: reached from {ray.util.get_node_ip_address()}"
    if version != edgekd.__version__:
        message = f"{name}: edgekd {edgekd.__version__} on the machine of the cluster that reaches it, {version} here."
        return [here], ("DeviceUnavailable", message, "install the same version on all machines")
    with tempfile.TemporaryDirectory(prefix="edgekd-") as folder:
        candidates = []
        for candidate, contents in ray.get(sent[0]):
            files = {digest: Path(folder) / digest for digest in contents}
            for digest, path in files.items():
                path.write_bytes(contents[digest])
            candidates.append(replace(candidate, files=files))
        found = board_outcome(name, board, candidates, plan, SilentReporter())
    if isinstance(found, EdgekdError):
        return [here], (_public_class(found), found.message, found.hint)
    return [here], found


def _public_class(err: EdgekdError) -> str:
    """The nearest class of `edgekd.errors`: those of rooms have constructors of their own and do not travel."""
    return next(kind.__name__ for kind in type(err).__mro__ if kind.__module__ == errors.__name__)


def _nobody(name: str, resource: str) -> DeviceUnavailable:
    return DeviceUnavailable(
        f"{name}: no machine of the cluster has the resource {resource!r}, which the lab file names for it.",
        hint=f"ray start --resources '{{\"{resource}\": 1}}' on a machine that reaches the board",
    )


def _lost(name: str) -> DeviceUnavailable:
    return DeviceUnavailable(
        f"{name}: it lost the machine of the cluster that reached it {ATTEMPTS} times.",
        hint="its job may go on on the board: run the same command again to fetch the result",
    )
