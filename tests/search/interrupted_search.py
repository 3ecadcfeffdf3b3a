"""A search to be interrupted: `python -m tests.search.interrupted_search STARTED`."""

from __future__ import annotations

import sys
from contextlib import closing

from edgekd.search.workers.processes import ProcessWorkers
from tests.search.scoring_toys import factory, toy_spec

if __name__ == "__main__":
    with closing(ProcessWorkers(toy_spec(), processes=2)) as workers:
        workers.scores([factory("sleeper", started=sys.argv[1], seconds=60.0)] * 2)
