"""Target cards for tests."""

from __future__ import annotations

from typing import Literal

from edgekd.targets.schema import Peak, RuntimeSupport, Target


def card(
    *, here: bool, runtime: str = "onnxruntime", kind: Literal["cpu", "gpu"] = "cpu", error: float | None = 0.3
) -> Target:
    """A device with one runtime."""
    return Target(
        name="toy-board",
        description="a board that exists in tests only",
        kind=kind,
        measured_here=here,
        runtimes=(RuntimeSupport(runtime=runtime, precisions=("fp32", "fp16")),),
        memory_mib=1024,
        peak=Peak(
            gmacs_per_s={"fp32": 50.0, "fp16": 100.0},
            bandwidth_gb_s=10.0,
            efficiency={"other": 0.5},
            op_overhead_us=5.0,
            relative_error=error,
            sources=("invented",),
        ),
    )
