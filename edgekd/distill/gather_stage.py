"""The stage that chooses, of images without labels, those that a student should learn from beside its own.

Images from the web, from a camera in the field or from a neighbouring task are many and free, and some of them show
nothing of the task. The teacher tells which: it is as sure of them as it is of images of the task. How far the pool has
moved away from the task is measured and said, because a teacher can also be sure and wrong.

After KD^3 (Tang et al. 2023, arXiv 2307.11469): the choice by confidence and balance. Left out are its alignment of
features with shared classifier weights, which needs equal widths, and its mixing of image statistics; and the choice is
made once, not anew during the training, so that every student of a run learns from the same images and the teacher's
answers can be stored.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.digest import Json
from edgekd.core.stage import Context, Inputs, Stage, StageConfig, StageResult, port
from edgekd.core.text import percent
from edgekd.data.choice import Float64Array, confident_and_balanced, entropies, probabilities, separation
from edgekd.data.dataset import Dataset, Split
from edgekd.data.transform import FloatArray
from edgekd.errors import UserError
from edgekd.train.pool import bundle_from_choice
from edgekd.train.reconcile import class_order
from edgekd.train.responses import responses

FAR = 0.75
"""Above this the teacher doubts most of the pool more than most images of the task."""


class GatherConfig(StageConfig):
    """Which images of the pool are taken.

    Attributes:
        sure_as: An image is taken when the teacher is at least as sure of it as of the least sure images of the task:
            the threshold is this quantile of its confidence on the `select` split.
        per_class: Most images of one class, as a multiple of the training images per class; None takes all.
        labels: `teacher` gives each image the class that the teacher takes it for, and the cross-entropy counts it like
            the others; `none` leaves it without a label, so that the cross-entropy sees the data's own labels alone and
            the image teaches by the teacher's answer only.
    """

    sure_as: float = Field(default=0.1, ge=0, le=1)
    per_class: float | None = Field(default=2.0, gt=0)
    labels: Literal["teacher", "none"] = "teacher"


class GatherStage(Stage[GatherConfig]):
    """Rows of the data's pool and, unless they stay without a label, the class that each is taken for.

    With a student that has learned already, the two are asked together: the mean of their probabilities.
    """

    name = "gather"
    Config = GatherConfig
    ports: ClassVar = {
        "teacher": port(BundleKind.TORCH, BundleKind.ONNX),
        "student": port(BundleKind.TORCH, optional=True),
    }
    produces = BundleKind.DATA
    reads = frozenset({"data"})

    def requires(self, inputs: Inputs, ctx: Context) -> None:
        data = ctx.resource("data", Dataset)
        if data.pool is None:
            raise UserError(
                f"The data {data.name} has no pool of further images to choose from.",
                hint="give images without labels: --unlabelled FOLDER_OR_NPZ",
            )
        _asked(inputs, ctx)

    def run(self, inputs: Inputs, ctx: Context) -> StageResult:
        data, config = ctx.resource("data", Dataset), self.config
        assert data.pool is not None
        known, found = (self._said(split, inputs, ctx) for split in (data.select, data.pool))
        threshold = float(np.quantile(known.max(axis=1), config.sure_as))
        most = self._most(len(data.train), known.shape[1])
        rows, classes = confident_and_balanced(found, threshold=threshold, per_class=most)
        if not len(rows):
            raise UserError(
                f"Of {len(found)} images without labels the teacher is as sure as {percent(threshold)} of none: they "
                "show nothing of this task that it knows.",
                hint="give other images, leave --unlabelled out, or lower gather.sure_as",
            )
        moved = separation(entropies(found), entropies(known))
        sure = int((found.max(axis=1) >= threshold).sum())
        counts = np.bincount(classes, minlength=known.shape[1])
        metrics: dict[str, Json] = {
            "pool": len(found),
            "sure": sure,
            "gathered": len(rows),
            "classes_gathered": int((counts > 0).sum()),
            "confidence_threshold": threshold,
            "pool_shift": moved,
            "entropy_pool": float(entropies(found).mean()),
            "entropy_select": float(entropies(known).mean()),
        }
        said = [
            f"Of {len(found)} images without labels, {len(rows)} are trained on: the teacher is at least "
            f"{percent(threshold)} sure of {sure}, as of the images of the task"
            + (f", and of each class at most {most} are taken." if most is not None else "."),
            f"The teacher doubts an image of the pool more than one of the task with a probability of {percent(moved)}"
            ": at 50 % the pool is like the task.",
        ]
        if moved > FAR:
            said.append("The pool is unlike the task: see whether the student is better with it than without.")
        if missing := int((counts == 0).sum()):
            said.append(f"{missing} of {len(counts)} classes have no image among them.")
        if config.labels == "none" and data.labelled:
            said.append("They stay without a label: of the images in training, the cross-entropy counts the others.")
        given = classes if config.labels == "teacher" else None
        bundle = bundle_from_choice(rows, given, data, ctx.blobs, ctx.scratch)
        return StageResult(bundle=bundle, metrics=metrics, decisions=tuple(said))

    def _said(self, split: Split, inputs: Inputs, ctx: Context) -> Float64Array:
        """(N, K) probabilities, of the teacher or of both."""
        found: Float64Array = np.mean(
            [probabilities(_in_order(responses(model, split, ctx), order)) for model, order in _asked(inputs, ctx)],
            axis=0,
        )
        return found

    def _most(self, images: int, classes: int) -> int | None:
        per_class = self.config.per_class
        return None if per_class is None else max(1, round(per_class * images / classes))


def _asked(inputs: Inputs, ctx: Context) -> list[tuple[ModelBundle, tuple[int, ...] | None]]:
    """Who is asked, and where the data's classes stand in its logits; None for their own order.

    Raises:
        UserError: One of them tells other classes apart than the data.
    """
    classes = ctx.resource("data", Dataset).classes
    models = {name: inputs.maybe(name) for name in ("teacher", "student")}
    return [
        (model, class_order(model.model.labels, classes, name, "data"))
        for name, model in models.items()
        if model is not None
    ]


def _in_order(logits: FloatArray, order: tuple[int, ...] | None) -> FloatArray:
    return logits if order is None else logits[:, order]
