"""From the text of `--workers` to workers: `auto`, a number of processes, or the address of a Ray cluster."""

from __future__ import annotations

from edgekd.errors import UserError
from edgekd.search.scorer_spec import ScorerSpec
from edgekd.search.workers.contract import Workers
from edgekd.search.workers.cores import usable_cores
from edgekd.search.workers.local import LocalWorker
from edgekd.search.workers.processes import ProcessWorkers

_RAY = "ray://"


def check_workers(text: str) -> None:
    """Refuses what `workers_from_text` would refuse, before any work is done.

    Raises:
        UserError: Not one of the forms, or Ray is not installed.
    """
    if text.startswith(_RAY):
        from edgekd.core.ray_cluster import check_ray

        check_ray(text.removeprefix(_RAY))
    elif text != "auto" and not (text.isdecimal() and int(text) > 0):
        raise UserError(
            f"Workers are `auto` (one process per core), a number of processes, or a Ray cluster; got {text!r}.",
            hint="a cluster is ray://HOST:PORT, or ray://auto on one of its machines; ray://local starts one here",
        )


def workers_from_text(text: str, spec: ScorerSpec) -> Workers:
    """Workers that score what `spec` describes; `close` them.

    Args:
        text: `auto` takes a process for each core, and none where the proxies only count, which is done before a
            process has started. A number takes so many; 1 is this process. `ray://HOST:PORT` is the client server of
            a Ray cluster, `ray://auto` the cluster that this machine is part of, `ray://local` one that lives as long
            as the workers.
        spec: Of the scorer, the same for all workers.

    Raises:
        UserError: Not one of the forms, or Ray is not installed.
        DeviceUnavailable: No cluster answers.
    """
    check_workers(text)
    if text.startswith(_RAY):
        from edgekd.search.workers.ray import RayWorkers

        return RayWorkers(spec, address=text.removeprefix(_RAY))
    wanted = int(text) if text != "auto" else usable_cores() if spec.draws_weights else 1
    return LocalWorker(spec.scorer()) if wanted == 1 else ProcessWorkers(spec, processes=wanted)
