"""Which layers INT8 hurts: each is quantized alone, and the noise that it puts into the logits is measured.

    noise_l = sum (z - z_l)^2 / sum z^2,   z the FP32 logits, z_l those with only layer l in INT8

Errors of layers are nearly uncorrelated, so noises add up, and what reverting a layer gains is close to its own noise.
It costs one inference of some samples per layer; ranges are known, so nothing is calibrated again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
from pydantic import Field

from edgekd.core.report import REPORT_SCHEMA_VERSION
from edgekd.core.schema import Schema
from edgekd.quant.form import Int8Form, quantized_nodes
from edgekd.quant.layers import GraphView
from edgekd.quant.ptq import PtqConfig
from edgekd.quant.ranges import Range
from edgekd.quant.reconstruct import Refined, apply_refined_
from edgekd.quant.trial import Judge, Score

SAMPLES = 32
"""Enough for a signal to noise ratio; agreement on so few says little and is there to be seen beside it."""


class LayerSensitivity(Schema):
    """One layer quantized alone.

    Attributes:
        layer: Name of the node in the FP32 graph.
        op: Operator.
        weights: Elements of its weight; 0 without one.
        sqnr_db: Signal to noise of the logits, in decibels.
        agreement: Share of samples with the FP32 answer, in [0, 1].
        noise_share: Of the sum of all layers' noises, in [0, 1].
    """

    layer: str
    op: str
    weights: int = 0
    sqnr_db: float
    agreement: float
    noise_share: float


class SensitivityReport(Schema):
    """All layers, the most sensitive first.

    Attributes:
        scheme: Form of INT8.
        options: That the graphs were made with.
        calib_method: That found the ranges.
        samples: That were measured on.
        sqnr_db: With all layers in INT8.
        agreement: With all layers in INT8.
        layers: Most sensitive first.
    """

    schema_version: int = REPORT_SCHEMA_VERSION
    scheme: str
    options: PtqConfig
    calib_method: str
    samples: int = Field(ge=1)
    sqnr_db: float
    agreement: float
    layers: tuple[LayerSensitivity, ...]

    def worst(self, count: int) -> tuple[str, ...]:
        """Names of the most sensitive layers."""
        return tuple(entry.layer for entry in self.layers[:count])


def sensitivity(
    form: Int8Form,
    ranges: Mapping[str, Range],
    judge: Judge,
    *,
    scheme: str,
    options: PtqConfig,
    calib_method: str,
    refined: Mapping[str, Refined] | None = None,
    part: slice = slice(None),
    on_layer: Callable[[int, int], None] = lambda done, total: None,
) -> SensitivityReport:
    """The sensitivity of every node that computes in INT8.

    Args:
        form: That is built.
        ranges: By value name.
        judge: Knows the samples.
        scheme: For the report.
        options: For the report.
        calib_method: For the report.
        refined: Better weights, which then count.
        part: Which samples; the first 32 of them are used.
        on_layer: Called with (done, all).
    """

    def built(exclude: tuple[str, ...]) -> onnx.ModelProto:
        made = form.build(ranges, exclude)
        apply_refined_(made, dict(refined or {}))
        return made

    few = slice(part.start or 0, min((part.start or 0) + SAMPLES, part.stop or len(judge.images)))
    whole = built(())
    names = quantized_nodes(whole)
    total = judge.score(whole, few)
    scores = {}
    for done, name in enumerate(names):
        scores[name] = judge.score(built(tuple(other for other in names if other != name)), few)
        on_layer(done + 1, len(names))
    return SensitivityReport(
        scheme=scheme,
        options=options,
        calib_method=calib_method,
        samples=total.n,
        sqnr_db=total.sqnr_db,
        agreement=total.agreement,
        layers=_table(GraphView(form.full), scores),
    )


def _table(view: GraphView, scores: Mapping[str, Score]) -> tuple[LayerSensitivity, ...]:
    noises = {name: 10 ** (-score.sqnr_db / 10) for name, score in scores.items()}
    everything = sum(noises.values()) or 1.0
    return tuple(
        LayerSensitivity(
            layer=name,
            op=view.nodes[name].op_type,
            weights=_weights(view, name),
            sqnr_db=scores[name].sqnr_db,
            agreement=scores[name].agreement,
            noise_share=noises[name] / everything,
        )
        for name in sorted(noises, key=lambda name: -noises[name])
    )


def _weights(view: GraphView, name: str) -> int:
    constants = [view.constants[value].dims for value in view.nodes[name].input[1:2] if value in view.constants]
    return int(np.prod(constants[0])) if constants and len(constants[0]) > 1 else 0
