"""The stages that make samples: drawn from the training data, or made from a model's own statistics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.stage import Context, Inputs, Port, Stage, StageConfig, StageResult, port
from edgekd.data.calibration import (
    CalibrationSamples,
    SamplingMethod,
    calibration_samples,
    drawn_order,
    samples_at,
)
from edgekd.data.choice import k_centres
from edgekd.data.dataset import Dataset
from edgekd.data.synthetic import range_overlap, synthetic_images
from edgekd.nn.build import module_from_bundle
from edgekd.runtimes.samples import Samples, bundle_from_samples
from edgekd.train.responses import embeddings

MOST_LOOKED_AT = 5000
"""Training images that `coverage` chooses from, drawn at random; each is run through the model once."""


class CalibrationConfig(StageConfig):
    """How many samples, and how they are drawn.

    Attributes:
        samples: All of the training split when it has fewer.
        method: `stratified` takes the classes in turn; `random` ignores them; `coverage` takes images that the model
            sees as far apart as possible (k centres of its features, of at most `MOST_LOOKED_AT` images), so that rare
            kinds of images are among few samples.
    """

    samples: int = Field(default=300, ge=1)
    method: SamplingMethod = "stratified"


class CalibrationStage(Stage[CalibrationConfig]):
    """Samples of the training split, preprocessed for the model and bound to that preprocessing."""

    name: ClassVar[str] = "calibration"
    version: ClassVar[int] = 2
    Config: ClassVar[type[StageConfig]] = CalibrationConfig
    ports: ClassVar[Mapping[str, Port]] = {"model": port(BundleKind.TORCH, BundleKind.ONNX)}
    produces: ClassVar[BundleKind] = BundleKind.DATA
    reads: ClassVar[frozenset[str]] = frozenset({"data"})

    def run(self, inputs: Inputs, ctx: Context) -> StageResult:
        preprocessing = inputs.one("model").model.preprocessing
        drawn = self._drawn(inputs.one("model"), ctx)
        bundle = bundle_from_samples(
            Samples(drawn.images, drawn.labels, "real"),
            preprocessing=preprocessing,
            source=drawn.description,
            blobs=ctx.blobs,
            scratch=ctx.scratch,
        )
        return StageResult(
            bundle=bundle,
            metrics={"samples": len(drawn.images)},
            decisions=(f"Calibrated on {drawn.description}.",),
        )

    def _drawn(self, model: ModelBundle, ctx: Context) -> CalibrationSamples:
        data, p, samples = ctx.resource("data", Dataset), model.model.preprocessing, self.config.samples
        if self.config.method != "coverage":
            return calibration_samples(data, p, samples=samples, seed=ctx.seed, method=self.config.method)
        looked_at = drawn_order(len(data.train), ctx.seed)[:MOST_LOOKED_AT]
        points, what = embeddings(model, data.train.subset(looked_at), ctx)
        order, _ = k_centres(points, min(samples, len(points)))
        how = f"chosen to cover the model's {what} of {len(looked_at)} of them"
        # Centres come the farthest first, and graphs are judged on the last samples: these must be like the others.
        mixed = looked_at[order[drawn_order(len(order), ctx.seed)]]
        return samples_at(data, p, mixed, asked=samples, how=how)


class SyntheticSamplesConfig(StageConfig):
    """How many images are made, and how hard they are optimised.

    Attributes:
        samples: Images in all.
        steps: Optimiser steps per chunk of images.
    """

    samples: int = Field(default=64, ge=1)
    steps: int = Field(default=200, ge=1)


class SyntheticSamplesStage(Stage[SyntheticSamplesConfig]):
    """Images made from the model's BatchNorm statistics, for when there is no data at all."""

    name: ClassVar[str] = "synthetic-samples"
    Config: ClassVar[type[StageConfig]] = SyntheticSamplesConfig
    ports: ClassVar[Mapping[str, Port]] = {"model": port(BundleKind.TORCH)}
    produces: ClassVar[BundleKind] = BundleKind.DATA

    def run(self, inputs: Inputs, ctx: Context) -> StageResult:
        model = inputs.one("model")
        module = module_from_bundle(model, ctx.blobs)
        preprocessing = model.model.preprocessing
        images = synthetic_images(
            module,
            preprocessing,
            samples=self.config.samples,
            steps=self.config.steps,
            seed=ctx.seed,
            reporter=ctx.reporter,
        )
        overlap = range_overlap(module, images)
        bundle = bundle_from_samples(
            Samples(images, None, "synthetic"),
            preprocessing=preprocessing,
            source=f"{len(images)} images made from BatchNorm statistics with seed {ctx.seed}",
            blobs=ctx.blobs,
            scratch=ctx.scratch,
        )
        return StageResult(
            bundle=bundle,
            metrics={"samples": len(images), "range_overlap": overlap},
            decisions=(
                f"Calibrated on {len(images)} synthetic images, on which the BatchNorm inputs overlap the remembered "
                f"ranges by {overlap:.0%}; nothing measured on them stands for accuracy on real images.",
            ),
        )
