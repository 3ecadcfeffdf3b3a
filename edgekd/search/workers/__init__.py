"""Where candidates are scored: in this process, in one process for each core, or on a Ray cluster.

Which worker scores a candidate never changes its score, so a search gives the same result on any number of them:
networks and batches come from seeds, and every network is computed on one thread (`edgekd.search.scoring`). Machines
with other instruction sets round differently; that is all the difference there is.
"""

from __future__ import annotations

from edgekd.search.workers.choice import workers_from_text
from edgekd.search.workers.contract import Workers
from edgekd.search.workers.local import LocalWorker

__all__ = ["LocalWorker", "Workers", "workers_from_text"]
