"""Predicts latency from operation counts: a roofline per operation plus overheads.

    t = fixed + sum over unfused operations of max(macs / (rate * efficiency), bytes / bandwidth) + overhead

(Williams, Waterman and Patterson 2009, "Roofline".) It is what search and pruning steer by when there is nothing to
measure on. A prediction is never a measurement: `origin` and `relative_error` go wherever the number goes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

from pydantic import Field, model_validator

from edgekd.core.cost import OpCost, OpKind
from edgekd.core.digest import Digest, digest
from edgekd.core.schema import Schema
from edgekd.errors import UserError
from edgekd.targets.schema import Precision, Target

_BYTES: dict[Precision, int] = {"fp32": 4, "fp16": 2, "int8": 1}


class LatencyModel(Schema):
    """A roofline with overheads.

    Attributes:
        target: Name of the device it speaks about.
        fixed_us: Cost of one inference, whatever the network.
        overhead_us_per_op: Cost of each operation that is not fused.
        gmacs_per_s: Peak rate by precision, 10^9 multiply-accumulates per second.
        efficiency: Share of the peak reached, by kind of operation; `other` serves kinds that are not listed.
        bandwidth_gb_s: Bandwidth reached, in 10^9 bytes per second.
        origin: `card`: data sheet and published latencies; `fitted`: timed on the device.
        relative_error: Median relative error on networks that it was not fitted to; None when unknown.
    """

    target: str
    fixed_us: float = Field(default=0.0, ge=0)
    overhead_us_per_op: float = Field(ge=0)
    gmacs_per_s: dict[Precision, float]
    efficiency: dict[OpKind, float]
    bandwidth_gb_s: float = Field(gt=0)
    origin: Literal["card", "fitted"]
    relative_error: float | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _usable(self) -> Self:
        if not self.gmacs_per_s or min(self.gmacs_per_s.values()) <= 0:
            raise ValueError("gmacs_per_s needs a positive rate for at least one precision")
        if "other" not in self.efficiency or min(self.efficiency.values()) <= 0:
            raise ValueError("efficiency needs 'other', and every share must be positive")
        return self

    @property
    def digest(self) -> Digest:
        return digest("latency-model", self.plain())

    def predict_ms(self, costs: Sequence[OpCost], precision: Precision, batch: int = 1) -> float:
        """Milliseconds of one inference.

        Args:
            costs: Operations of one image, in any order.
            precision: Of weights and activations.
            batch: Images per inference; weights are read once for all of them.

        Raises:
            UserError: The device has no rate for this precision.
        """
        return self.fixed_us / 1e3 + sum(self.op_ms(cost, precision, batch) for cost in costs)

    def op_ms(self, cost: OpCost, precision: Precision, batch: int = 1) -> float:
        """Share of one operation; zero when it is fused into its predecessor."""
        if cost.fused:
            return 0.0
        rate = self.gmacs_per_s.get(precision)
        if rate is None:
            known = ", ".join(self.gmacs_per_s)
            raise UserError(f"Latency model of {self.target}: no rate for {precision} (it has: {known}).")
        reached = rate * self.efficiency.get(cost.kind, self.efficiency["other"])
        compute_ms = batch * cost.macs / reached / 1e6
        moved = _BYTES[precision] * (batch * cost.activations + cost.params)
        memory_ms = moved / self.bandwidth_gb_s / 1e6
        return max(compute_ms, memory_ms) + self.overhead_us_per_op / 1e3


def latency_model_from_target(target: Target) -> LatencyModel:
    """The model that the target's card implies, or the calibration that took its place."""
    peak = target.peak
    return LatencyModel(
        target=target.name,
        fixed_us=peak.fixed_us,
        overhead_us_per_op=peak.op_overhead_us,
        gmacs_per_s={
            precision: rate * peak.precision_efficiency.get(precision, 1.0)
            for precision, rate in peak.gmacs_per_s.items()
        },
        efficiency=peak.efficiency,
        bandwidth_gb_s=peak.bandwidth_gb_s * peak.bandwidth_efficiency,
        origin="card" if target.calibrated is None else "fitted",
        relative_error=peak.relative_error,
    )
