"""Which of several engines is kept: the fastest whose outputs are those of the graph, judged on the same images.

The reference is the very graph that was built, run by ONNX Runtime: what is judged is what the builder did, not what
quantization did. Nothing is run here but that reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.core.bundle import ModelBundle
from edgekd.errors import BuildFailed
from edgekd.runtimes.compare import Tolerance
from edgekd.runtimes.onnxruntime import emulated
from edgekd.runtimes.session import FloatArray

TOLERANCES: Mapping[str, Tolerance] = {
    "fp32": Tolerance(atol=0.02, rtol=0.01),
    "fp16": Tolerance(atol=0.05, rtol=0.02),
    "int8": Tolerance(atol=0.3, rtol=0.05),
}
"""By precision. FP32 leaves room for TensorFloat-32, whose products have 10 bits of mantissa; INT8 for values that lie
on the border of two steps, which two runtimes round to either side."""

Outputs = Mapping[str, FloatArray]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The engine that is kept.

    Attributes:
        number: Of the build.
        decisions: Why this one, and why not others, in sentences.
    """

    number: int
    decisions: tuple[str, ...]


def tolerance_for(precision: str, atol: float | None, rtol: float | None) -> Tolerance:
    """The tolerance of a precision, with what the user sets in its place."""
    base = TOLERANCES[precision]
    return Tolerance(atol=base.atol if atol is None else atol, rtol=base.rtol if rtol is None else rtol)


def reference_outputs(graph: Path, images: FloatArray) -> list[Outputs]:
    """What ONNX Runtime gives for each image alone, by output name, rounding exactly where the graph says.

    Args:
        graph: The ONNX file.
        images: (N, C, H, W) float32.
    """
    # Not on this CPU's 8-bit kernels: without VNNI they saturate, and a right engine would look wrong.
    with emulated(graph) as session:
        (name,) = session.input_names
        return [session.infer({name: np.ascontiguousarray(images[n : n + 1])}) for n in range(len(images))]


def chosen_build(
    builds: Sequence[Mapping[str, Any]], reference: Sequence[Outputs], tolerance: Tolerance, model: ModelBundle
) -> Choice:
    """The fastest build that passes parity.

    Args:
        builds: What `Supervisor.result` gives for each.
        reference: Outputs by probe.
        tolerance: What is accepted.
        model: Names the outputs.

    Raises:
        BuildFailed: Not one passes; the message says by how much the best one differs.
    """
    why: dict[int, str] = {}
    for number, build in enumerate(builds):
        reason = build["failure"] or _difference(build["outputs"], reference, tolerance, model)
        if reason:
            why[number] = reason
    able = [number for number in range(len(builds)) if number not in why]
    refused = [f"Build {number + 1} is not kept: {reason}." for number, reason in why.items()]
    if not able:
        raise BuildFailed(
            f"Not one of {len(builds)} engine(s) computes what its graph does: {next(iter(why.values()))}.",
            hint="where half precision overflows, export --precision fp16 with --data keeps such layers in float32; "
            "where the difference is acceptable, raise --atol or --rtol",
        )
    best = min(able, key=lambda number: (builds[number]["median_ms"] is None, builds[number]["median_ms"] or 0.0))
    said = []
    if len(able) > 1:
        times = ", ".join(_ms(builds[number]["median_ms"]) for number in able)
        said = [f"Of {len(able)} engines that pass parity ({times} GPU compute time) the fastest is kept."]
    return Choice(number=best, decisions=(*refused, *said))


def _difference(
    found: Sequence[Mapping[str, Sequence[float]]],
    reference: Sequence[Outputs],
    tolerance: Tolerance,
    model: ModelBundle,
) -> str:
    """How the outputs differ by more than allowed, as a clause; empty when they do not."""
    if len(found) != len(reference):
        return f"it gave outputs for {len(found)} of {len(reference)} images"
    for number, (mine, wanted) in enumerate(zip(found, reference, strict=True)):
        for spec in model.outputs:
            expected = wanted[spec.name]
            values = np.asarray(mine.get(spec.name, ()), dtype=np.float32)
            if values.size != expected.size:
                return f"its output {spec.name!r} has {values.size} values, the graph's has {expected.size}"
            if not np.isfinite(values).all():
                return f"its output {spec.name!r} is not finite for image {number + 1}"
            if not tolerance.holds(expected, values):
                gap = float(np.abs(values - expected.ravel()).max())
                return (
                    f"its output {spec.name!r} differs by up to {gap:.3g} for image {number + 1}, where the graph's "
                    f"has a spread of {float(expected.std()):.3g}"
                )
    return ""


def _ms(value: float | None) -> str:
    return "not timed" if value is None else f"{value:.3f} ms"
