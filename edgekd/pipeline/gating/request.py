"""What `edgekd gate` was asked, as data."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from edgekd.core.report import Budget
from edgekd.core.stage import BoardAccess
from edgekd.gate.baseline import Baseline

DEFAULT_TIME_S = 60.0
DEFAULT_REGRESSION = 0.05


@dataclass(frozen=True, kw_only=True)
class GateRequest:
    """A gate on a bundle that is measured now.

    Attributes:
        target: Bundle folder or `.onnx` file.
        budget: Limits.
        baseline: Accepted numbers, with the tolerances that apply.
        baseline_path: Their file, which the path of the accepted bundle is relative to.
        baseline_bundle: The accepted bundle, where it was named.
        max_regression: Share by which the candidate may be slower than the baseline; None takes the baseline's own
            tolerance.
        runtime: Where to run; None takes what each bundle was chosen for.
        threads: CPU threads.
        time_limit_s: Of measuring.
        data: Labelled data to count the drop on.
        seed: Of orders, and of the split of the data where it is given.
        allow_predicted: A predicted latency may decide.
        board: Where to measure; None measures on this machine where it is the bundle's target.
    """

    target: Path
    budget: Budget = field(default_factory=Budget)
    baseline: Baseline | None = None
    baseline_path: Path | None = None
    baseline_bundle: Path | None = None
    max_regression: float | None = None
    runtime: str | None = None
    threads: int = 1
    time_limit_s: float = DEFAULT_TIME_S
    data: str | None = None
    seed: int | None = None
    allow_predicted: bool = False
    board: BoardAccess | None = None
