"""Measures accuracy of one candidate in the runtimes where it may be deployed.

With labels it is top-1; without, agreement with the teacher's top-1, and it is called so. Which images are which split,
and what the interval of a share is, are the business of `data` and `tasks`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.preprocess import Preprocessing
from edgekd.core.report import Evaluation, EvaluationReport, Metric
from edgekd.core.report_io import bundle_from_report
from edgekd.core.stage import Context, Inputs, Stage, StageConfig, StageResult, port
from edgekd.data.batches import eval_batches
from edgekd.data.dataset import Dataset, Split
from edgekd.errors import DeviceUnavailable, EdgekdError, UserError
from edgekd.runtimes.onnxruntime import emulated
from edgekd.runtimes.session import RUNTIMES, Session, noun, open_bundle
from edgekd.tasks.classification import predictions, wilson_interval

SplitName = Literal["select", "test"]
USUAL_RUNTIME = {"torch": "torch", "onnx": "onnxruntime"}
"""By format; an engine's has the name of its runtime."""


class EvaluateConfig(StageConfig):
    """What to evaluate.

    Attributes:
        candidate: Name under which the numbers are reported; the node that made the model, as a rule.
        runtimes: Where to run it; empty takes the runtime in the bundle's tags (a `select` node puts it there), or the
            usual one of the bundle's kind where there is none in the tags or that one cannot run it here.
        splits: `select` for choosing, `test` for the verdict.
        batch: Images per call.
        exact: Rounds exactly where the graph says, in float32, instead of using this CPU's 8-bit kernels; for graphs
            that another device will run. On x86 without VNNI those kernels saturate. For ONNX in ONNX Runtime only.
    """

    candidate: str
    runtimes: tuple[str, ...] = ()
    splits: tuple[SplitName, ...] = Field(default=("select", "test"), min_length=1)
    batch: int = Field(default=64, ge=1)
    exact: bool = False


class EvaluateStage(Stage[EvaluateConfig]):
    """Reports an `Evaluation` per runtime and split.

    A runtime that cannot run the model is left out and said; it is an error only when none can. Metrics:
    `accuracy_select` and `accuracy_test` (or `agreement_...` without labels), of the first runtime that worked.
    """

    name = "evaluate"
    Config = EvaluateConfig
    ports: ClassVar = {
        "model": port(BundleKind.ONNX, BundleKind.ENGINE, BundleKind.TORCH),
        "teacher": port(BundleKind.TORCH, optional=True),
    }
    produces = BundleKind.REPORT
    reads = frozenset({"data"})

    def requires(self, inputs: Inputs, ctx: Context) -> None:
        if not ctx.resource("data", Dataset).labelled and inputs.maybe("teacher") is None:
            raise UserError(
                f"{self.config.candidate}: the data has no labels, and there is no teacher to agree with.",
                hint="give labelled images, or connect the teacher",
            )

    def run(self, inputs: Inputs, ctx: Context) -> StageResult:
        dataset = ctx.resource("data", Dataset)
        model = inputs.one("model")
        splits = {name: dataset.select if name == "select" else dataset.test for name in self.config.splits}
        teacher = None if dataset.labelled else inputs.one("teacher")
        truths = {name: self._truth(split, teacher, ctx) for name, split in splits.items()}
        metric: Metric = "top1" if dataset.labelled else "agreement"
        runtimes, said = (self.config.runtimes, ()) if self.config.runtimes else self._default_runtime(model)
        found: list[Evaluation] = []
        failures: list[tuple[str, EdgekdError]] = []
        for runtime in runtimes:
            try:
                for name, split in splits.items():
                    answers = self._answers(model, runtime, split, ctx)
                    found.append(self._evaluation(runtime, name, metric, answers == truths[name]))
            except EdgekdError as err:
                failures.append((f"{self.config.candidate} was not evaluated in {runtime}: {err.message}", err))
        if not found:
            raise _nowhere(failures)
        return StageResult(
            bundle=bundle_from_report(EvaluationReport(evaluations=tuple(found)), ctx),
            metrics={_metric_key(e): e.value for e in reversed(found)},
            decisions=(*said, *(text for text, _ in failures)),
        )

    def _default_runtime(self, model: ModelBundle) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Where to run when nothing was asked for, and the decision to say it when that is not what `select` chose."""
        usual = USUAL_RUNTIME.get(model.format, model.format)
        tagged = str(model.tags.get("runtime", usual))
        chosen = RUNTIMES.get(tagged)
        found = chosen.availability()
        if tagged == usual or (chosen.takes(model) and found.ok):
            return (tagged,), ()
        why = found.reason if chosen.takes(model) else f"that takes no {noun(model)}s"
        return (usual,), (f"{self.config.candidate} is evaluated in {usual}, not in the chosen {tagged}: {why}.",)

    def _truth(self, split: Split, teacher: ModelBundle | None, ctx: Context) -> NDArray[np.int64]:
        """(N,) the class numbers that count as right: the labels, or what the teacher says."""
        if teacher is not None:
            return self._answers(teacher, "torch", split, ctx)
        if split.labels is None:
            raise EdgekdError("A split without labels needs a teacher: `requires` was not called.")
        return split.labels

    def _answers(self, model: ModelBundle, runtime: str, split: Split, ctx: Context) -> NDArray[np.int64]:
        """(N,) the model's top-1 class of every image of the split, in order."""
        batch = min(self.config.batch, len(split))
        answers: list[NDArray[np.int64]] = []
        done = 0
        with self._open(model, runtime, batch, ctx) as session:
            for images in _full_batches(split, model.model.preprocessing, batch):
                logits = session.infer({model.inputs[0].name: images})[model.outputs[0].name]
                answers.append(predictions(logits))
                done = min(done + batch, len(split))
                ctx.reporter.progress(f"evaluate {self.config.candidate} in {runtime}", done, len(split))
        return np.concatenate(answers)[: len(split)]

    def _open(self, model: ModelBundle, runtime: str, batch: int, ctx: Context) -> Session:
        if self.config.exact and model.kind is BundleKind.ONNX and runtime == "onnxruntime":
            return emulated(ctx.path(model, "model.onnx"))
        return open_bundle(model, ctx.blobs, runtime, threads=ctx.execution.threads, batch=batch)

    def _evaluation(self, runtime: str, split: SplitName, metric: Metric, right: NDArray[np.bool_]) -> Evaluation:
        hits, n = int(right.sum()), len(right)
        low, high = wilson_interval(hits, n)
        return Evaluation(
            candidate=self.config.candidate,
            runtime=runtime,
            split=split,
            metric=metric,
            value=hits / n,
            low=low,
            high=high,
            n=n,
        )


def _full_batches(split: Split, p: Preprocessing, batch: int) -> Iterator[NDArray[np.float32]]:
    """(batch, C, H, W) float32 each: engines of a fixed shape take no smaller last batch, so it is filled up."""
    for images, _, _ in eval_batches(split, p, batch):
        missing = batch - len(images)
        yield np.concatenate([images, np.repeat(images[-1:], missing, axis=0)]) if missing else images


def _nowhere(failures: Sequence[tuple[str, EdgekdError]]) -> EdgekdError:
    """The error when no runtime could run the model: a wrong request, or a machine without what it needs."""
    text = " ".join(sentence for sentence, _ in failures)
    hint = next((err.hint for _, err in failures if err.hint), None)
    if all(isinstance(err, UserError) for _, err in failures):
        return UserError(text, hint=hint)
    return DeviceUnavailable(text, hint=hint)


def _metric_key(evaluation: Evaluation) -> str:
    return f"{'accuracy' if evaluation.metric == 'top1' else 'agreement'}_{evaluation.split}"
