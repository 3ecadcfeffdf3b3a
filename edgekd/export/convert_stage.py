"""The convert stage: a model becomes the engine of another runtime, proven there before anything depends on it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import numpy as np
from pydantic import Field, JsonValue

from edgekd.core.bundle import FORMAT_TAG, BundleKind, ModelBundle, TensorSpec
from edgekd.core.digest import Json
from edgekd.core.stage import Context, Inputs, Port, Stage, StageConfig, StageResult, port
from edgekd.errors import BuildFailed, DeviceUnavailable, EdgekdError, UserError
from edgekd.export.convert import CONVERTERS, Conversion, Converted, Converter
from edgekd.export.parity import module_logits
from edgekd.export.stage import model_tags, parity_images, parity_metrics
from edgekd.nn.build import module_from_bundle
from edgekd.runtimes.compare import Comparison, Tolerance, compare_logits, logits_of
from edgekd.runtimes.formats import MODEL_FILES, model_size_mib
from edgekd.runtimes.onnx_file import MODEL_FILE
from edgekd.runtimes.onnxruntime import emulated
from edgekd.runtimes.samples import samples_from_bundle
from edgekd.runtimes.session import RUNTIMES, FloatArray, open_bundle
from edgekd.targets.schema import Precision

LEAST_SQNR_DB = 3.0
"""Lower precision is recorded, not judged: accuracy decides. But answers with half as much noise as signal are no loss
of precision, they are a conversion that went wrong."""
FRESH_TAGS = ("candidate", "runtime", "reference")
"""What `select` says of a choice; no longer true of what is made from it."""


class ConvertConfig(StageConfig):
    """What to make.

    Attributes:
        to: Registry name of the converter, which is the runtime that the engine is for.
        precision: One that the converter writes.
        atol: FP32 only: largest accepted difference of logits, relative to their spread.
        rtol: FP32 only: largest accepted difference, relative to each logit.
    """

    to: str
    precision: Precision = "fp32"
    atol: float = Field(default=1e-3, ge=0)
    rtol: float = Field(default=1e-3, ge=0)


class ConvertStage(Stage[ConvertConfig]):
    """TORCH or ONNX to the ENGINE of a runtime, by its converter.

    The engine's inputs and outputs have a batch of 1: a session runs more images one after the other. Its logits in its
    own runtime are compared with the model's on the samples; FP32 must agree, lower precisions are recorded.

    Metrics: `size_mib`, the parity metrics of `export`, `sqnr_db`, and what the converter counts.
    """

    name: ClassVar[str] = "convert"
    version: ClassVar[int] = 2
    Config: ClassVar[type[StageConfig]] = ConvertConfig
    ports: ClassVar[Mapping[str, Port]] = {
        "model": port(BundleKind.TORCH, BundleKind.ONNX),
        "samples": port(BundleKind.DATA, optional=True),
    }
    produces: ClassVar[BundleKind] = BundleKind.ENGINE

    def requires(self, inputs: Inputs, ctx: Context) -> None:
        converter, model, config = CONVERTERS.get(self.config.to), inputs.one("model"), self.config
        if model.kind is not converter.takes:
            raise UserError(
                f"The converter {config.to!r} takes {converter.takes} bundles, but this is a {model.kind} bundle.",
                hint="convert the model that it was made from",
            )
        if config.precision not in converter.precisions:
            raise UserError(
                f"The converter {config.to!r} does not write {config.precision.upper()}; it writes "
                f"{', '.join(converter.precisions)}."
            )
        if str(model.tags.get("precision", "fp32")) != "fp32":
            raise UserError(
                f"The converter {config.to!r} makes its own {config.precision} from a float32 model, but this one is "
                f"{model.tags['precision']}.",
                hint="convert the FP32 model that it was made from",
            )
        if config.precision in converter.calibrated and inputs.maybe("samples") is None:
            raise UserError(
                f"{config.precision.upper()} needs calibration samples: ranges of activations cannot be guessed.",
                hint="--data FOLDER_OR_NPZ (a few hundred images do)",
            )
        _require_installed(converter)

    def run(self, inputs: Inputs, ctx: Context) -> StageResult:
        converter, model, samples = CONVERTERS.get(self.config.to), inputs.one("model"), inputs.maybe("samples")
        images, origin = parity_images(model, samples, ctx)
        with _folder(ctx.scratch / "converted") as scratch:
            made = converter.convert(
                Conversion(
                    source=model,
                    blobs=ctx.blobs,
                    precision=self.config.precision,
                    images=images if samples is None else _all_images(model, samples, ctx),
                    scratch=scratch,
                )
            )
            bundle = self._bundle(model, converter, made, ctx)
        comparison = self._compared(model, bundle, images, ctx)
        metrics: dict[str, Json] = {
            "size_mib": model_size_mib(bundle, ctx.blobs),
            **parity_metrics(comparison, samples),
            "sqnr_db": comparison.sqnr_db,
            **made.metrics,
        }
        return StageResult(bundle=bundle, metrics=metrics, decisions=(*made.decisions, *origin))

    def ensures(self, inputs: Inputs, result: StageResult, ctx: Context) -> None:
        found, wanted = set(result.bundle.files), set(MODEL_FILES[self.config.to])
        if found != wanted:
            raise BuildFailed(f"{self.config.to} was to write {sorted(wanted)}, but wrote {sorted(found)}.")

    def _bundle(self, model: ModelBundle, converter: Converter, made: Converted, ctx: Context) -> ModelBundle:
        tags: dict[str, JsonValue] = {name: value for name, value in model.tags.items() if name not in FRESH_TAGS}
        if model.kind is BundleKind.TORCH:
            tags |= model_tags(model)
        own: dict[str, JsonValue] = {
            FORMAT_TAG: converter.name,
            "precision": self.config.precision,
            "scheme": made.scheme,
            "converter": f"{converter.tool} {converter.availability().version}",
        }
        return ModelBundle(
            kind=BundleKind.ENGINE,
            inputs=tuple(_of_one(spec) for spec in model.inputs),
            outputs=tuple(_of_one(spec) for spec in model.outputs),
            files={name: ctx.blobs.add(path) for name, path in made.files.items()},
            recipe=model.recipe,
            tags=tags | own,
        )

    def _compared(self, model: ModelBundle, engine: ModelBundle, images: FloatArray, ctx: Context) -> Comparison:
        """The engine's logits against the model's.

        Raises:
            BuildFailed: They differ by more than the precision explains.
        """
        expected = _reference(model, images, ctx)
        name, precision = self.config.to, self.config.precision
        try:
            with open_bundle(engine, ctx.blobs, name, threads=ctx.execution.threads) as session:
                found = logits_of(session, images)
        except EdgekdError as err:
            raise BuildFailed(f"{name} cannot run the engine that was converted: {err.message}", hint=err.hint) from err
        if found.shape != expected.shape:
            raise BuildFailed(f"{name} gives logits of shape {found.shape}, the model {expected.shape}.")
        if not np.isfinite(found).all():
            raise BuildFailed(f"The {precision} engine gives NaN or infinite logits in {name}.")
        comparison = compare_logits(expected, found)
        exact = precision != "fp32" or Tolerance(atol=self.config.atol, rtol=self.config.rtol).holds(expected, found)
        if not exact or comparison.sqnr_db < LEAST_SQNR_DB:
            raise BuildFailed(
                f"In {name} the {precision} engine differs from the model by up to {comparison.max_abs:.3g} on "
                f"{comparison.n} images, where the logits have a spread of {comparison.spread:.3g}: "
                f"{comparison.sqnr_db:.1f} dB of signal to noise.",
                hint="if the difference is acceptable, raise --atol or --rtol" if precision == "fp32" else None,
            )
        return comparison


def _require_installed(converter: Converter) -> None:
    """Both halves: the converter, and the runtime that proves what it makes."""
    for what, found in (
        ("converter", converter.availability()),
        ("runtime", RUNTIMES.get(converter.name).availability()),
    ):
        if not found.ok:
            raise DeviceUnavailable(
                f"The {what} {converter.name!r} cannot work here: {found.reason}.", hint=found.install or None
            )


def _reference(model: ModelBundle, images: FloatArray, ctx: Context) -> FloatArray:
    if model.kind is BundleKind.TORCH:
        return module_logits(module_from_bundle(model, ctx.blobs), images)
    with emulated(ctx.path(model, MODEL_FILE)) as session:
        return logits_of(session, images)


def _all_images(model: ModelBundle, samples: ModelBundle, ctx: Context) -> FloatArray:
    return samples_from_bundle(samples, ctx.blobs, preprocessing=model.model.preprocessing).images


def _of_one(spec: TensorSpec) -> TensorSpec:
    return spec.model_copy(update={"shape": (1, *spec.shape[1:])})


@contextmanager
def _folder(path: Path) -> Iterator[Path]:
    """An empty folder that is gone afterwards, whatever a tool left in it; also one that a killed run left."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
