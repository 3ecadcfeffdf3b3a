"""Which images to label next: those that the model sees as farthest from everything that has a label.

k centres in the space of the model's probabilities, begun with the images that have labels (PCoreSet, Kang et al. 2025,
arXiv 2506.00910). There it beats a choice by uncertainty alone, which takes many images of one hard kind. Where the
authors combine the two heads of a student, one model's probabilities stand here: a student's or a teacher's.
"""

from __future__ import annotations

import csv
import io
import tempfile
from pathlib import Path

from pydantic import Field

from edgekd.core.blobs import disk_errors
from edgekd.core.events import Reporter
from edgekd.core.report import REPORT_SCHEMA_VERSION
from edgekd.core.schema import Schema
from edgekd.core.stage import Context, Execution
from edgekd.core.store import Store
from edgekd.data.choice import k_centres, probabilities
from edgekd.data.sources import load_dataset
from edgekd.errors import UserError
from edgekd.pipeline.request import ModelSource
from edgekd.pipeline.sources import model_from_source
from edgekd.train.responses import responses

COLUMNS = ("image", "seen_as", "confidence", "distance")


class LabelRequest(Schema):
    """The question.

    Attributes:
        model: A trained one, whose probabilities are compared.
        data: What has labels already; see `load_dataset`.
        unlabelled: What is chosen from.
        count: How many images.
        seed: Of the split of the data: the images of its training split count as labelled.
    """

    model: ModelSource
    data: str
    unlabelled: str
    count: int = Field(ge=1)
    seed: int = Field(default=0, ge=0)


class ToLabel(Schema):
    """One image that is worth a label.

    Attributes:
        image: Its file, or its row in an array.
        seen_as: The class that the model takes it for.
        confidence: Of the model in that, in [0, 1].
        distance: Of its probabilities from the nearest that is labelled or chosen before it, in [0, sqrt(2)].
    """

    image: str
    seen_as: str
    confidence: float
    distance: float


class LabelReport(Schema):
    """The answer.

    Attributes:
        pool: Images that were chosen from.
        images: In the order in which labels are worth most.
        notes: Sentences on the data.
    """

    schema_version: int = REPORT_SCHEMA_VERSION
    pool: int
    images: tuple[ToLabel, ...]
    notes: tuple[str, ...] = ()


def images_to_label(request: LabelRequest, store: Store, reporter: Reporter, execution: Execution) -> LabelReport:
    """The images of the pool whose labels add most to those that are there.

    Raises:
        UserError: A model or data that cannot be used, a pool that is empty or smaller than the count.
    """
    loaded = model_from_source(request.model, store, reporter, seed=request.seed)
    data = load_dataset(request.data, seed=request.seed, unlabelled=request.unlabelled)
    if data.pool is None:
        raise UserError("There are no images to choose from.", hint="--unlabelled FOLDER_OR_NPZ")
    with tempfile.TemporaryDirectory(prefix="edgekd-") as scratch:
        ctx = Context(
            scratch=Path(scratch), seed=request.seed, reporter=reporter, blobs=store.blobs, execution=execution
        )
        known, found = (probabilities(responses(loaded.bundle, split, ctx)) for split in (data.train, data.pool))
    order, distances = k_centres(found, request.count, given=known)
    labels = loaded.bundle.model.labels or tuple(str(number) for number in range(found.shape[1]))
    chosen = zip(data.pool.names(order), found[order], distances, strict=True)
    return LabelReport(
        pool=len(data.pool),
        images=tuple(
            ToLabel(image=name, seen_as=labels[int(p.argmax())], confidence=float(p.max()), distance=float(distance))
            for name, p, distance in chosen
        ),
        notes=data.decisions,
    )


def write_labels(report: LabelReport, path: Path) -> None:
    """Writes the images as a CSV table, one a line, most valuable first.

    Raises:
        UserError: The place cannot be written.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for row in report.images:
        table.writerow([row.image, row.seen_as, f"{row.confidence:.4f}", f"{row.distance:.4f}"])
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.getvalue(), encoding="utf-8")
