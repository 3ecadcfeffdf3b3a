"""Where the loss that INT8 may have is counted: on which images, and against whom.

What is deployed is chosen on the `select` split by what it loses against the teacher. A loss on calibration samples
says less: they are training images, on which a network is surer than on others, and ranges and biases were fitted to
them. And a student that lost some of what is allowed when it was distilled has only the rest left for its INT8 graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from edgekd.core.bundle import ModelBundle
from edgekd.core.preprocess import Preprocessing
from edgekd.core.text import points
from edgekd.data.dataset import Split
from edgekd.data.transform import preprocess
from edgekd.errors import UserError
from edgekd.quant.trial import DropType, Judge, Score
from edgekd.train.reconcile import class_order

MOST_IMAGES = 2000
"""On which each trial is judged; a point is then 20 images."""
MOST_MIB = 512
"""Of these images, preprocessed."""


@dataclass(frozen=True, kw_only=True)
class Limit:
    """A largest loss, and who tells what is lost.

    Attributes:
        judge: Knows the images, and what is right to say of them.
        images: What they are, in words: "calibration samples".
        max_drop: The largest loss.
        drop_type: What it counts.
        twin: The score of the graph's own FP32 twin where the loss is counted against a teacher; an engine is chosen
            only if it loses no more than the limit against either. None where it is counted against the twin alone.
    """

    judge: Judge
    images: str
    max_drop: float
    drop_type: DropType
    twin: Score | None = None

    @property
    def amount(self) -> str:
        """The limit in words."""
        return self.in_words(self.max_drop)

    def in_words(self, drop: float) -> str:
        """A loss in words: in points, or in percent of the accuracy where shares are counted."""
        return points(drop) if self.drop_type == "absolute" else f"{drop:.1%} of it"

    def score(self, model: onnx.ModelProto) -> Score:
        """The score of a graph, FP32 or INT8, on all of the images."""
        return self.judge.score(model)

    def loss_of(self, score: Score) -> float:
        """What is lost: of accuracy, or the share of other answers where there are no labels."""
        lost = score.drop(self.drop_type)
        return lost if self.twin is None else max(lost, _lost(self.twin, score, self.drop_type))

    def keeps(self, score: Score) -> bool:
        """Whether a score keeps the limit; a loss of exactly the limit does, whatever the rounding."""
        return self.loss_of(score) <= self.max_drop + 1e-9

    def of_what(self, score: Score) -> str:
        """`of accuracy on 500 images of the select split, against the teacher or its FP32 twin`."""
        labelled, taught = score.top1 is not None, self.twin is not None
        what = "accuracy" if labelled else f"agreement with {'the teacher' if taught else 'FP32'}"
        against = ", against the teacher or its FP32 twin, whichever is more" if taught else ""
        return f"of {what} on {score.n} {self.images}{against}"

    @property
    def out_of_reach(self) -> str | None:
        """A sentence where the FP32 graph already misses the limit, so that no layer in float can keep it."""
        if self.twin is None or self.keeps(self.twin):
            return None
        what = "accuracy" if self.twin.top1 is not None else "agreement"
        return (
            f"FP32 already loses {self.in_words(self.loss_of(self.twin))} of {what} against the teacher on "
            f"{self.twin.n} {self.images}, and {self.amount} is allowed: no layer is left in float for that."
        )


def _lost(twin: Score, score: Score, drop_type: DropType) -> float:
    """What a graph loses against its twin, both judged alike."""
    if twin.top1 is None or score.top1 is None:
        return twin.agreement - score.agreement
    lost = twin.top1 - score.top1
    return lost / max(twin.top1, 1e-9) if drop_type == "relative" else lost


def select_judge(source: Path, split: Split, p: Preprocessing, scratch: Path) -> Judge:
    """A judge on images of the `select` split, evenly spaced where there are many.

    Args:
        source: The graph whose answers count: FP32 of the same network, or the teacher.
        split: At least one image.
        p: Of both networks.
        scratch: Holds a graph while it runs.
    """
    channels, height, width = p.input_shape
    fit = int(MOST_MIB * 2**20 / (4 * channels * height * width))
    count = max(1, min(len(split), MOST_IMAGES, fit))
    rows = np.linspace(0, len(split) - 1, count).round().astype(np.int64)
    labels = None if split.labels is None else split.labels[rows]
    return Judge(source, preprocess(split.images(rows, p), p), labels, scratch)


def check_teacher(model: ModelBundle, teacher: ModelBundle) -> None:
    """Makes sure that the answers of both can be compared one by one; reads no weights.

    Raises:
        UserError: Other images, other classes, or the same ones in another order.
    """
    if teacher.model.preprocessing != model.model.preprocessing:
        raise UserError(
            "max_drop is counted against a teacher that takes other images: its preprocessing is "
            f"{teacher.model.preprocessing.plain()}, the model's {model.model.preprocessing.plain()}.",
            hint="disconnect 'teacher': the loss is then counted against the model's own FP32 graph",
        )
    turned = class_order(teacher.model.labels, model.model.labels) is not None
    if turned or teacher.outputs[0].shape[-1] != model.outputs[0].shape[-1]:
        raise UserError(
            "max_drop is counted against a teacher whose logits stand for other classes, or for the same ones in "
            "another order.",
            hint="disconnect 'teacher': the loss is then counted against the model's own FP32 graph",
        )
