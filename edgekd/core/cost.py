"""What one operation costs, as plain numbers: the common language of counting (nn) and predicting (targets)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

OpKind = Literal["conv", "depthwise", "linear", "norm", "activation", "pool", "add", "other"]


@dataclass(frozen=True, kw_only=True)
class OpCost:
    """Cost of one executed operation for one image (batch 1).

    Attributes:
        name: Module path, or the operator's name where there is no module.
        kind: Family; latency models give each its own efficiency.
        macs: Multiply-accumulates.
        params: Stored values.
        activations: Elements read plus elements written.
        fused: Whether runtimes fold the operation into its predecessor (BatchNorm, activations), so that it costs no
            kernel of its own.
    """

    name: str
    kind: OpKind
    macs: int
    params: int
    activations: int
    fused: bool = False
