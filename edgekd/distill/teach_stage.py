"""The stage that asks the teacher once: its logits on every view of every training image, for all students."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import Field

from edgekd.core.blobs import disk_errors
from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.stage import Context, Inputs, Stage, StageConfig, StageResult, port
from edgekd.data.augment import Augment, augmented
from edgekd.data.dataset import Dataset
from edgekd.errors import BuildFailed
from edgekd.runtimes.session import Session, open_bundle
from edgekd.train.answers import AnswersSpec, bundle_from_answers, pixels_digest

RUNTIME = "onnxruntime"
_DONE = "done.txt"


class TeachConfig(StageConfig):
    """What the teacher is asked.

    Attributes:
        views: Different views of each image; the students' `teacher_views`.
        augment: How views differ; the students' `augment`.
        batch: Images per call; fixed by the config, because the last bits of a logit can depend on it.
    """

    views: int = Field(default=4, ge=1)
    augment: Augment = Field(default_factory=Augment)
    batch: int = Field(default=64, ge=1)


class TeachStage(Stage[TeachConfig]):
    """The teacher's logits, (views, samples, K) float32, computed by its exported graph; an interrupted run goes on."""

    name = "teach"
    version = 2
    Config = TeachConfig
    ports: ClassVar = {"teacher": port(BundleKind.ONNX)}
    produces = BundleKind.DATA
    reads = frozenset({"data"})

    def run(self, inputs: Inputs, ctx: Context) -> StageResult:
        teacher, dataset = inputs.one("teacher"), ctx.resource("data", Dataset)
        p = teacher.model.preprocessing
        path = ctx.scratch / "logits.npy"
        with open_bundle(teacher, ctx.blobs, RUNTIME, threads=ctx.execution.threads) as session:
            self._fill(path, session, teacher, dataset, ctx)
        spec = AnswersSpec(
            views=self.config.views,
            augment=self.config.augment,
            preprocessing=pixels_digest(p),
            data=dataset.digest,
            seed=ctx.seed,
        )
        found = np.load(path, mmap_mode="r", allow_pickle=False)
        if not np.isfinite(found).all():
            raise BuildFailed(
                "The teacher answered with values that are not finite.", hint="check its weights and data"
            )
        size_mib = path.stat().st_size / 2**20
        return StageResult(
            bundle=bundle_from_answers(path, spec, ctx.blobs),
            metrics={"views": self.config.views, "samples": len(dataset.train), "size_mib": size_mib},
        )

    def _fill(self, path: Path, session: Session, teacher: ModelBundle, dataset: Dataset, ctx: Context) -> None:
        """Writes the logits batch by batch; what `done` counts is on the disk before the count is."""
        split, size = dataset.train, self.config.batch
        per_view = -(-len(split) // size)
        total, done_file = self.config.views * per_view, ctx.scratch / _DONE
        classes = int(teacher.outputs[0].shape[-1])
        done = int(done_file.read_text()) if done_file.exists() else 0
        with disk_errors(path):
            logits = self._open(path, (self.config.views, len(split), classes), fresh=done == 0)
            for number in range(done, total):
                view, first = number // per_view, number % per_view * size
                rows = np.arange(first, min(first + size, len(split)), dtype=np.int64)
                logits[view, rows] = self._answer(session, teacher, dataset, rows, view, ctx.seed)
                if number % 64 == 63 or number + 1 == total:
                    logits.flush()
                    done_file.write_text(str(number + 1))
                ctx.reporter.progress("ask the teacher", number + 1, total)

    def _answer(
        self,
        session: Session,
        teacher: ModelBundle,
        dataset: Dataset,
        rows: npt.NDArray[np.int64],
        view: int,
        seed: int,
    ) -> npt.NDArray[np.float32]:
        p = teacher.model.preprocessing
        images = augmented(dataset.train.images(rows, p), rows, view, p, self.config.augment, seed)
        return session.infer({session.input_names[0]: images})[teacher.outputs[0].name]

    @staticmethod
    def _open(
        path: Path, shape: tuple[int, int, int], *, fresh: bool
    ) -> np.memmap[tuple[int, ...], np.dtype[np.float32]]:
        if fresh:
            return np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
        return np.lib.format.open_memmap(path, mode="r+")
