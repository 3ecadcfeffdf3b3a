"""What measures: plain Python 3.10 without a third-party package, so that the same lines run here and on a board.

Modules of this package import the standard library, each other, and the modules of `NEEDS`, which keep the same rule
and travel with them. They print nothing and know nothing of bundles, targets or reports.
"""

from __future__ import annotations

NEEDS = ("edgekd.core.stats", "edgekd.core.rounds", "edgekd.core.packing")
"""Modules outside this package that it imports."""
