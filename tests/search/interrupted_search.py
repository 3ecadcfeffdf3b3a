"""A search to be interrupted: `python -m tests.search.interrupted_search STARTED`."""

from __future__ import annotations

import signal
import sys
from contextlib import closing

from edgekd.search.workers.processes import ProcessWorkers
from tests.search.scoring_toys import factory, toy_spec

if __name__ == "__main__":
    # A shell that runs the tests in the background leaves SIGINT ignored, and processes inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with closing(ProcessWorkers(toy_spec(), processes=2)) as workers:
        workers.scores([factory("sleeper", started=sys.argv[1], seconds=60.0)] * 2)
