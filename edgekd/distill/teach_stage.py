"""The stage that asks the teacher once: its signals on every view of every training image, for all students."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, field_validator

from edgekd.core.blobs import disk_errors
from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.stage import Context, Inputs, Stage, StageConfig, StageResult, port
from edgekd.data.augment import Augment, augmented
from edgekd.data.dataset import Dataset
from edgekd.errors import BuildFailed, UserError
from edgekd.nn.build import module_from_bundle
from edgekd.runtimes.session import open_bundle
from edgekd.tasks.classification import guesses
from edgekd.train.answers import (
    AnswersSpec,
    answers_file,
    bundle_from_answers,
    pixels_digest,
    teacher_digest,
    views_that_fit,
)
from edgekd.train.engine import resolve_device, torch_settings
from edgekd.train.memory_format import placed
from edgekd.train.pool import POOL_PORT, training_data
from edgekd.train.signal import TAPPED, Signal
from edgekd.train.signals import SignalSource
from edgekd.train.teachers import RUNTIME

_DONE = "done.txt"
FloatArray: TypeAlias = npt.NDArray[np.float32]
Answer: TypeAlias = Callable[[FloatArray], Mapping[str, FloatArray]]
Memmap: TypeAlias = np.memmap[tuple[int, ...], np.dtype[np.float32]]


class TeachConfig(StageConfig):
    """What the teacher is asked.

    Attributes:
        views: Different views of each image; the students' `teacher_views`.
        augment: How views differ; the students' `augment`.
        batch: Images per call; fixed by the config, because the last bits of a logit can depend on it.
        signals: What is kept. More than logits needs a teacher with weights.
        capacity_mib: Most that is kept; views that do not fit are left to a live teacher. None keeps all.
    """

    views: int = Field(default=4, ge=1)
    augment: Augment = Field(default_factory=Augment)
    batch: int = Field(default=64, ge=1)
    signals: tuple[Signal, ...] = (Signal.LOGITS,)
    capacity_mib: float | None = Field(default=None, gt=0)

    @field_validator("signals")
    @classmethod
    def _per_image(cls, value: tuple[Signal, ...]) -> tuple[Signal, ...]:
        wrong = sorted(set(value) - (TAPPED | {Signal.LOGITS}) | set(value) & {Signal.CLASSIFIER})
        if wrong:
            raise ValueError(f"{', '.join(wrong)} cannot be stored image by image")
        return tuple(sorted({*value, Signal.LOGITS}))


class TeachStage(Stage[TeachConfig]):
    """The teacher's signals, (views, samples, ...) float32 each; an interrupted run goes on.

    An exported graph gives logits, several times faster than PyTorch on a CPU; a network gives its inside too.
    """

    name = "teach"
    version = 4
    Config = TeachConfig
    ports: ClassVar = {"teacher": port(BundleKind.ONNX, BundleKind.TORCH), **POOL_PORT}
    produces = BundleKind.DATA
    reads = frozenset({"data"})

    def requires(self, inputs: Inputs, ctx: Context) -> None:
        inner = [signal for signal in self.config.signals if signal in TAPPED]
        if inner and inputs.one("teacher").kind is BundleKind.ONNX:
            raise UserError(
                f"The teacher is an ONNX graph, which gives logits only, and {', '.join(inner)} shall be stored.",
                hint="connect the teacher with its weights, or leave signals out",
            )

    def run(self, inputs: Inputs, ctx: Context) -> StageResult:
        teacher, dataset = inputs.one("teacher"), training_data(inputs, ctx)
        with _asked(teacher, self.config.signals, ctx) as (shapes, answer):
            views = views_that_fit(shapes, len(dataset.train), self.config.views, self.config.capacity_mib)
            paths = {name: ctx.scratch / answers_file(name) for name in shapes}
            if views:
                sizes = {name: (views, len(dataset.train), *shape) for name, shape in shapes.items()}
                self._fill(paths, sizes, answer, inputs, ctx)
        spec = AnswersSpec(
            views=self.config.views,
            augment=self.config.augment,
            preprocessing=pixels_digest(teacher.model.preprocessing),
            data=dataset.digest,
            seed=ctx.seed,
            teacher=teacher_digest(teacher),
            labels=teacher.model.labels,
        )
        kept = paths if views else {}
        for path in kept.values():
            _check_finite(np.load(path, mmap_mode="r", allow_pickle=False))
        return StageResult(
            bundle=bundle_from_answers(kept, spec, ctx.blobs),
            metrics={
                "views": views,
                "samples": len(dataset.train),
                "size_mib": sum(path.stat().st_size for path in kept.values()) / 2**20,
            },
            decisions=(*self._said(views), *_doubts(kept, ctx)),
        )

    def _said(self, views: int) -> tuple[str, ...]:
        asked = self.config.views
        if views == asked:
            return ()
        return (
            f"Of {asked} views, {views} fit into {self.config.capacity_mib:g} MiB; for the others the teacher is asked "
            "in each training.",
        )

    def _fill(
        self,
        paths: Mapping[str, Path],
        sizes: Mapping[str, tuple[int, ...]],
        answer: Answer,
        inputs: Inputs,
        ctx: Context,
    ) -> None:
        """Writes the signals batch by batch; what `done` counts is on the disk before the count is."""
        split, size = training_data(inputs, ctx).train, self.config.batch
        p = inputs.one("teacher").model.preprocessing
        per_view = -(-len(split) // size)
        total, done_file = next(iter(sizes.values()))[0] * per_view, ctx.scratch / _DONE
        done = int(done_file.read_text()) if done_file.exists() else 0
        with disk_errors(ctx.scratch):
            arrays = {name: _opened(path, sizes[name], fresh=done == 0) for name, path in paths.items()}
            for number in range(done, total):
                view, first = number // per_view, number % per_view * size
                rows = np.arange(first, min(first + size, len(split)), dtype=np.int64)
                images = augmented(split.images(rows, p), rows, view, p, self.config.augment, ctx.seed)
                for name, values in answer(images).items():
                    arrays[name][view, rows] = values
                if number % 64 == 63 or number + 1 == total:
                    for array in arrays.values():
                        array.flush()
                    done_file.write_text(str(number + 1))
                ctx.reporter.progress("ask the teacher", number + 1, total)


@contextmanager
def _asked(
    teacher: ModelBundle, signals: tuple[Signal, ...], ctx: Context
) -> Iterator[tuple[dict[str, tuple[int, ...]], Answer]]:
    """Shape of each signal of one image, and the function that gives them for images."""
    if teacher.kind is BundleKind.ONNX:
        with open_bundle(teacher, ctx.blobs, RUNTIME, threads=ctx.execution.threads) as session:
            source, output = session.input_names[0], teacher.outputs[0]

            def infer(images: FloatArray) -> dict[str, FloatArray]:
                return {str(Signal.LOGITS): session.infer({source: images})[output.name]}

            yield {str(Signal.LOGITS): (int(output.shape[-1]),)}, infer
        return
    module, device = module_from_bundle(teacher, ctx.blobs), torch.device(resolve_device(ctx.execution.device))
    network = SignalSource(module, frozenset(signals), teacher.model.preprocessing.input_shape).eval()
    shapes = {name: tuple(x.shape[1:]) for name, x in network.example().flat().items()}

    @torch.inference_mode()
    def ask(images: FloatArray) -> dict[str, FloatArray]:
        said = network(torch.from_numpy(images).to(device, memory_format=torch.channels_last))
        return {name: x.float().cpu().numpy() for name, x in said.flat().items()}

    with torch_settings(ctx.execution), placed(module, device, channels_last=True):
        yield shapes, ask


def _doubts(kept: Mapping[str, Path], ctx: Context) -> tuple[str, ...]:
    """A warning where the answers to the first view are no better than guessing, on images with labels of their own."""
    path, labels = kept.get(str(Signal.LOGITS)), ctx.resource("data", Dataset).train.labels
    if path is None or labels is None:
        return ()
    doubt = guesses(np.asarray(np.load(path, mmap_mode="r", allow_pickle=False)[0, : len(labels)]), labels)
    if doubt is None:
        return ()
    ctx.reporter.message(doubt, level="warning")
    return (doubt,)


def _opened(path: Path, shape: tuple[int, ...], *, fresh: bool) -> Memmap:
    if fresh:
        return np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    return np.lib.format.open_memmap(path, mode="r+")


def _check_finite(values: FloatArray) -> None:
    if not all(np.isfinite(view).all() for view in values):
        raise BuildFailed("The teacher answered with values that are not finite.", hint="check its weights and data")
