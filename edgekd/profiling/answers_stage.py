"""The `answers` node: what one engine answers, in a process of its own, held against the reference and the labels.

It answers one image at a time, with the threads it is timed with: that is the engine a latency belongs to. A runtime
that crashes or hangs makes this node fail, and no other. Accuracy of a finished run is the business of `evaluate`,
which takes whole splits; here a few hundred images must tell a right engine from a wrong one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from safetensors.numpy import load_file, save_file

from edgekd.core.agreement import Agreement, AnswersReport
from edgekd.core.blobs import disk_errors
from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.preprocess import Preprocessing
from edgekd.core.report import Evaluation
from edgekd.core.report_io import bundle_from_report, report_from_bundle
from edgekd.core.stage import Context, Inputs, Stage, StageConfig, StageResult, port
from edgekd.data.batches import eval_batches
from edgekd.data.dataset import Dataset
from edgekd.errors import BuildFailed
from edgekd.profiling.isolated import Engine
from edgekd.profiling.process import LIMIT_S, WorkerProcess
from edgekd.runtimes.compare import Tolerance, compare_outputs, is_classification
from edgekd.runtimes.samples import random_images, samples_from_bundle
from edgekd.runtimes.session import RUNTIMES
from edgekd.tasks.classification import predictions, wilson_interval

OUTPUTS_FILE = "outputs.safetensors"
NOISE_IMAGES = 64
"""Noise only shows whether the function is the same; more of it shows nothing more."""
MOST_INPUT_BYTES, MOST_OUTPUT_BYTES = 1 << 30, 1 << 27
"""Of all images, and of all outputs of one engine; comparing takes several times the latter. A segmentation network
gives 20 MB an image, a thousand of which no board holds."""
CHUNK = 32
"""Images for each request to the process: what progress is told in, and what a time limit is for."""
FP32_TOLERANCE = Tolerance(atol=1e-3, rtol=1e-3)
FP16_LEAST_DB = 30.0
"""What a right engine of a precision keeps to. FP32 differs by the order of its sums, in every element. FP16 rounds in
every layer, and the farthest of a million elements says little of that, so its noise as a whole counts: a thirtieth of
the signal at most, where networks with a wide range of weights come to 35 dB, others to 45 to 70, and a wrong layer
leaves 10 or less. INT8, and FP16 within that, are judged by what they lose."""

Outputs = dict[str, NDArray[np.float32]]


class AnswersConfig(StageConfig):
    """Which engine, and how many images.

    Attributes:
        candidate: Name under which it is reported.
        runtime: Registry name.
        threads: CPU threads.
        images: Held-out ones of the data (`held_out`), or samples, or noise where there is neither; at most, and no
            more than memory holds: how many the reference answered, the others answer too.
        dataset: Whether there are data; without, the samples that are connected, or noise.
        keep: Whether the outputs are kept, so that other engines can be compared with them.
        version: Of the runtime: another one may answer differently.
        limit_s: Time after which a process that does not answer counts as hung.
    """

    candidate: str
    runtime: str
    threads: int = Field(default=1, ge=1)
    images: int = Field(default=1000, ge=1)
    dataset: bool = False
    keep: bool = False
    version: str = ""
    limit_s: float = Field(default=LIMIT_S, gt=0)


class _Images(NamedTuple):
    """Preprocessed images (N, C, H, W), their labels and where they come from."""

    images: NDArray[np.float32]
    labels: NDArray[np.int64] | None
    origin: Any

    def first(self, count: int) -> _Images:
        """So many of them."""
        return _Images(self.images[:count], None if self.labels is None else self.labels[:count], self.origin)


class AnswersStage(Stage[AnswersConfig]):
    """Reports how near an engine's outputs are to the reference's, and its accuracy where there are labels."""

    name = "answers"
    version = 3
    Config = AnswersConfig
    ports: ClassVar = {
        "model": port(BundleKind.ONNX, BundleKind.ENGINE, BundleKind.TORCH),
        "samples": port(BundleKind.DATA, optional=True),
        "reference": port(BundleKind.REPORT, optional=True),
    }
    produces = BundleKind.REPORT
    reads = frozenset({"target", "data"})

    def resources_read(self) -> frozenset[str]:
        return self.reads if self.config.dataset else frozenset({"target"})

    def requires(self, inputs: Inputs, ctx: Context) -> None:
        RUNTIMES.get(self.config.runtime)

    def run(self, inputs: Inputs, ctx: Context) -> StageResult:
        model = inputs.one("model")
        reference = inputs.maybe("reference")
        most = None if reference is None else report_from_bundle(reference, AnswersReport, ctx, "reference").images
        shown = self._images(model, inputs.maybe("samples"), most, ctx)
        outputs, count = self._answered(model, shown.images, ctx, whole=reference is not None)
        given, shown = len(shown.images), shown.first(count)
        finite = all(bool(np.isfinite(value).all()) for value in outputs.values())
        agreement = self._agreement(model, outputs, shown.labels, reference, ctx) if finite else None
        report = AnswersReport(
            candidate=self.config.candidate,
            runtime=self.config.runtime,
            images=len(shown.images),
            origin=shown.origin,
            finite=finite,
            agreement=agreement,
            evaluation=self._evaluation(outputs, shown, agreement) if finite else None,
        )
        bundle = bundle_from_report(report, ctx)
        if self.config.keep and finite:
            path = ctx.scratch / OUTPUTS_FILE
            with disk_errors(path):
                # Names are numbered, because what is read back comes in the order of its names.
                save_file({f"{i:03d} {name}": value for i, (name, value) in enumerate(outputs.items())}, path)
            bundle = bundle.model_copy(update={"files": {**bundle.files, OUTPUTS_FILE: ctx.blobs.add(path)}})
        metrics = {"images": len(shown.images), "finite": finite}
        if agreement is not None:
            metrics |= agreement.model_dump(include={"max_error", "sqnr_db", "alike"})
        said = (f"{len(shown.images)} of {given} images are answered: the outputs of more would not fit into memory.",)
        return StageResult(bundle=bundle, metrics=metrics, decisions=said if len(shown.images) < given else ())

    def _images(self, model: ModelBundle, samples: ModelBundle | None, most: int | None, ctx: Context) -> _Images:
        preprocessing = model.model.preprocessing
        if most is None:
            fitting = MOST_INPUT_BYTES // (4 * math.prod(preprocessing.input_shape))
            most = max(1, min(self.config.images, fitting))
        if self.config.dataset:
            return _Images(*held_out(ctx.resource("data", Dataset), preprocessing, most), "real")
        if samples is not None:
            found = samples_from_bundle(samples, ctx.blobs, preprocessing=preprocessing)
            return _Images(found.images[:most], None, found.origin)
        count = min(most, NOISE_IMAGES)
        return _Images(random_images(preprocessing.input_shape, samples=count, seed=ctx.seed), None, "random")

    def _answered(
        self, model: ModelBundle, images: NDArray[np.float32], ctx: Context, *, whole: bool
    ) -> tuple[Outputs, int]:
        """The outputs, and for how many images: all if `whole`, else until they take `MOST_OUTPUT_BYTES`."""
        config = self.config
        engine = Engine(bundle=model, runtime=config.runtime, threads=config.threads)
        label, path = f"{config.candidate}@{config.runtime}", ctx.scratch / "images.npy"
        parts: list[Outputs] = []
        done = held = 0
        with WorkerProcess(label, config.runtime, limit_s=config.limit_s) as worker:
            worker.ask("open", engine.request(ctx.blobs, ctx.seed))
            for part in _chunks(images, _chunk_of(model)):
                with disk_errors(path):
                    np.save(path, part)
                found = worker.ask("answers", {"images": str(path), "folder": str(ctx.scratch)})
                parts.append({name: np.load(place).astype(np.float32) for name, place in found.items()})
                done += len(part)
                ctx.reporter.progress(f"answers of {label}", done, len(images))
                held += sum(value.nbytes for value in parts[-1].values())
                if held >= MOST_OUTPUT_BYTES and not whole:
                    break
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, done

    def _agreement(
        self,
        model: ModelBundle,
        outputs: Outputs,
        labels: NDArray[np.int64] | None,
        reference: ModelBundle | None,
        ctx: Context,
    ) -> Agreement | None:
        if reference is None:
            return None
        of = report_from_bundle(reference, AnswersReport, ctx, "reference")
        if OUTPUTS_FILE not in reference.files:
            raise BuildFailed(
                f"{of.candidate} in {of.runtime}, the reference, gave NaN or infinite outputs: nothing is comparable.",
                hint="check the model itself: `edgekd evaluate` on a few images",
            )
        expected = outputs_of(ctx.path(reference, OUTPUTS_FILE))
        found = compare_outputs(expected, outputs)
        precision = str(model.tags.get("precision", "fp32"))
        lost, gained = None, None
        if labels is not None and is_classification(outputs):
            theirs, mine = (predictions(next(iter(side.values()))) == labels for side in (expected, outputs))
            lost, gained = int((theirs & ~mine).sum()), int((mine & ~theirs).sum())
        return Agreement(
            reference=f"{of.candidate}@{of.runtime}",
            max_error=found.max_error,
            sqnr_db=found.sqnr_db,
            alike=found.alike,
            alike_means=found.alike_means,
            lost=lost,
            gained=gained,
            within_tolerance=_within_tolerance(precision, expected, outputs, found.sqnr_db),
        )

    def _evaluation(self, outputs: Outputs, shown: _Images, agreement: Agreement | None) -> Evaluation | None:
        """Top-1 with labels; without, what agreed with the reference, which agrees with itself. Real images only."""
        if shown.origin != "real":
            return None
        n = len(shown.images)
        if shown.labels is not None and is_classification(outputs):
            metric, hits = "top1", int((predictions(next(iter(outputs.values()))) == shown.labels).sum())
        else:
            alike = 1.0 if agreement is None else agreement.alike
            metric = "agreement" if is_classification(outputs) else "outputs"
            hits = round(alike * n)
        low, high = wilson_interval(hits, n)
        return Evaluation.model_validate(
            {
                "candidate": self.config.candidate,
                "runtime": self.config.runtime,
                "split": "select",
                "metric": metric,
                "value": hits / n,
                "low": low,
                "high": high,
                "n": n,
            }
        )


def _within_tolerance(
    precision: str, expected: Mapping[str, NDArray[np.float32]], outputs: Outputs, sqnr_db: float
) -> bool | None:
    if precision == "fp32":
        return all(FP32_TOLERANCE.holds(*pair) for pair in zip(expected.values(), outputs.values(), strict=True))
    return sqnr_db >= FP16_LEAST_DB if precision == "fp16" else None


def held_out(
    dataset: Dataset, preprocessing: Preprocessing, most: int
) -> tuple[NDArray[np.float32], NDArray[np.int64] | None]:
    """Images that nothing was calibrated on, and their labels: the `select` split, and `test` where it is too small.

    Args:
        most: How many at most.
    """
    first = min(most, len(dataset.select))
    parts = [(dataset.select, first), (dataset.test, min(most - first, len(dataset.test)))]
    found = [
        next(eval_batches(split.subset(range(count)), preprocessing, count)) for split, count in parts if count > 0
    ]
    labels = [batch.labels for batch in found if batch.labels is not None]
    return np.concatenate([batch.images for batch in found]), np.concatenate(labels) if labels else None


def outputs_of(path: Path) -> Mapping[str, NDArray[np.float32]]:
    """The outputs that a node kept, by name, in the order of the graph."""
    found = load_file(path)
    return {name.partition(" ")[2]: found[name] for name in sorted(found)}


def version_of(runtime: str) -> str:
    """Of an installed runtime's library; empty where it is not known."""
    return RUNTIMES.get(runtime).availability().version or ""


def _chunk_of(model: ModelBundle) -> int:
    """Images for a request: `CHUNK`, fewer where their outputs, as far as their sizes are known, would be too large."""
    known = ((size if isinstance(size, int) else 1 for size in spec.shape[1:]) for spec in model.outputs)
    return max(1, min(CHUNK, MOST_OUTPUT_BYTES // (4 * max(1, sum(map(math.prod, known))))))


def _chunks(images: NDArray[np.float32], size: int) -> Iterator[NDArray[np.float32]]:
    for start in range(0, len(images), size):
        yield images[start : start + size]
