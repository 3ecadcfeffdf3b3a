"""A run that hangs in its third node, to be killed: `python -m tests.core.killed_run STORE`."""

from __future__ import annotations

import sys
from pathlib import Path

from edgekd.core.graph import Graph
from edgekd.core.runner import Runner, RunSettings
from edgekd.core.store import LocalStore
from tests.core import fakes


def interrupted_graph() -> Graph:
    """Two quick nodes, one slow, one quick."""
    return fakes.graph(
        {"name": "a", "stage": "append", "config": {"letters": "a"}},
        {"name": "b", "stage": "append", "config": {"letters": "b"}, "inputs": {"model": "a"}},
        {"name": "slow", "stage": "slow", "config": {"letters": "wxyz"}, "inputs": {"model": "b"}},
        {"name": "c", "stage": "append", "config": {"letters": "c"}, "inputs": {"model": "slow"}},
    )


if __name__ == "__main__":
    fakes.hang_at = 4
    Runner(fakes.STAGES, LocalStore(Path(sys.argv[1]))).run(interrupted_graph(), {}, RunSettings())
