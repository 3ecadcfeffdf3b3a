"""The pruning curves of a run: each network that was cut, with the engines that it gave at every width.

All numbers are those of the candidates, so a point is what would be deployed there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from edgekd.core.report import LatencyReport
from edgekd.pipeline.results import Results
from edgekd.pipeline.steps import RECOVERED, title_of_label, trained_parts
from edgekd.report.data import CurveEngine, CurvePoint, PruningCurve, Step


def curves_of(results: Results, steps: Sequence[Step]) -> tuple[PruningCurve, ...]:
    """A curve for each network that was cut, in the order of the steps, where it and a cut have engines with latencies.

    A cut whose engines have none is missing and named.

    Args:
        results: Of the run.
        steps: Of the same run.
    """
    by_model: dict[str, list[Step]] = {}
    for step in steps:
        by_model.setdefault(step.model, []).append(step)
    made_from = {step.detail: step.model for step in steps}
    found = []
    for label, cuts in _chains(by_model).items():
        whole = made_from.get(by_model[cuts[0]][0].parent, "")
        points = tuple(_points([whole, *cuts], by_model, results))
        drawn = {point.cut for point in points}
        # Everything is compared with the whole network.
        if len(points) > 1 and 0 in drawn:
            origin = by_model[cuts[0]][0].latency_origin
            missing = tuple(cut for cut in range(1, len(cuts) + 1) if cut not in drawn)
            found.append(PruningCurve(name=title_of_label(label), origin=origin, points=points, missing=missing))
    return tuple(found)


def _chains(models: Mapping[str, Sequence[Step]]) -> dict[str, list[str]]:
    """By label, its recovered networks, the widest first: a step comes after what it was made from."""
    cuts: dict[str, list[str]] = {}
    for model in models:
        label, done, _ = trained_parts(model)
        if done == RECOVERED:
            cuts.setdefault(label, []).append(model)
    return cuts


def _points(models: Sequence[str], steps: Mapping[str, Sequence[Step]], results: Results) -> Iterator[CurvePoint]:
    """A point for each network that has engines with a latency and whose size is known."""
    whole = next((step.macs_m for step in steps.get(models[0], ()) if step.macs_m), None)
    for cut, model in enumerate(models):
        engines = _engines(steps.get(model, ()), results)
        macs_m = next((step.macs_m for step in steps.get(model, ()) if step.macs_m), None)
        if engines and macs_m and whole:
            yield CurvePoint(kept=macs_m / whole, cut=cut, engines=engines)


def _engines(steps: Sequence[Step], results: Results) -> tuple[CurveEngine, ...]:
    """The fastest engine of each precision; the chosen one stands for its precision wherever it is."""
    best: dict[str, CurveEngine] = {}
    for step in steps:
        latency = results.latency(step.detail)
        if latency is None:
            continue
        precision = str(results.run.bundle(step.detail).tags.get("precision", "fp32"))
        low_ms = high_ms = latency.median_ms
        if isinstance(latency, LatencyReport):
            low_ms, high_ms = latency.median_low_ms, latency.median_high_ms
        engine = CurveEngine(
            name=step.detail,
            precision=precision,
            runtime=latency.runtime,
            median_ms=latency.median_ms,
            low_ms=low_ms,
            high_ms=high_ms,
            accuracy=step.accuracy,
            chosen=step.chosen,
        )
        other = best.get(precision)
        if other is None or (not engine.chosen, engine.median_ms) < (not other.chosen, other.median_ms):
            best[precision] = engine
    return tuple(best.values())
