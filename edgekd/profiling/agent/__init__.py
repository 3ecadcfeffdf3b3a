"""What measures: plain Python 3.10 without a third-party package, so that the same lines run here and on a board.

Modules of this package import the standard library, each other, and the modules of `NEEDS`, which keep the same rule
and travel with them. They print nothing and know nothing of bundles, targets or reports.
"""

from __future__ import annotations

NEEDS = (
    "edgekd.core.stats",
    "edgekd.core.rounds",
    "edgekd.core.packing",
    "edgekd.runtimes.fingerprint",
    "edgekd.runtimes.native_output",
    "edgekd.runtimes.engines.litert_values",
    "edgekd.runtimes.engines.ncnn_network",
    "edgekd.runtimes.engines.openvino_request",
    "edgekd.runtimes.engines.settings",
    "edgekd.runtimes.engines.command",
    "edgekd.runtimes.engines.trtexec",
    "edgekd.runtimes.engines.cuda",
    "edgekd.runtimes.engines.device",
    "edgekd.runtimes.engines.tensorrt_api",
    "edgekd.runtimes.engines.tensorrt_run",
    "edgekd.runtimes.engines.process",
    "edgekd.runtimes.engines.work",
    "edgekd.runtimes.engines.builders",
    "edgekd.runtimes.engines.supervise",
)
"""Modules outside this package that it imports."""
