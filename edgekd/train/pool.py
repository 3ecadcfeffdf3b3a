"""The images of a pool that a training adds to its own: from the bundle of a `gather` node to what it trains on.

The pool itself is part of the data (`Dataset.pool`); the bundle holds row numbers and, unless the images stay without a
label, what the teacher takes each of them for, so that every training and every teacher's answers that read it mean the
same images.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgekd.core.blobs import Blobs
from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.stage import Context, Inputs, port
from edgekd.data.dataset import Dataset
from edgekd.errors import UserError

POOL_PORT = {"pool": port(BundleKind.DATA, optional=True)}
"""Takes what a `gather` node chose."""
ROWS, CLASSES, TAG = "rows.npy", "classes.npy", "gathered"

Int64Array = npt.NDArray[np.int64]


def bundle_from_choice(
    rows: Int64Array, classes: Int64Array | None, data: Dataset, blobs: Blobs, scratch: Path
) -> ModelBundle:
    """A DATA bundle of chosen rows of `data.pool`, bound to the data by its digest.

    Args:
        rows: (M,) positions in the pool.
        classes: (M,) what they are taken for; None leaves them without a label.
        data: With the pool.
        blobs: Where the files go.
        scratch: Where they are written first.
    """
    files, given = {}, {ROWS: rows} if classes is None else {ROWS: rows, CLASSES: classes}
    for name, values in given.items():
        np.save(scratch / name, values.astype(np.int64), allow_pickle=False)
        files[name] = blobs.add(scratch / name)
    return ModelBundle(kind=BundleKind.DATA, files=files, tags={TAG: data.digest})


def adds_unlabelled(inputs: Inputs) -> bool:
    """Whether images without a label come in at the port `pool`."""
    bundle = inputs.maybe("pool")
    return bundle is not None and TAG in bundle.tags and CLASSES not in bundle.files


def training_data(inputs: Inputs, ctx: Context) -> Dataset:
    """The data of a training: the resource `data`, with the gathered images of its pool where the port is connected.

    Raises:
        UserError: What is connected was not gathered from this data.
    """
    data, bundle = ctx.resource("data", Dataset), inputs.maybe("pool")
    if bundle is None:
        return data
    if TAG not in bundle.tags:
        raise UserError("The port 'pool' takes what a `gather` node makes, and this is other data.")
    if bundle.tags[TAG] != data.digest:
        raise UserError(
            f"The images at the port 'pool' were gathered from other data ({bundle.tags[TAG]}) than this run's "
            f"({data.digest}).",
            hint="let the gather node run on this data",
        )
    rows = np.load(ctx.path(bundle, ROWS), allow_pickle=False)
    named = CLASSES in bundle.files
    return data.trained_on_pool(rows, np.load(ctx.path(bundle, CLASSES), allow_pickle=False) if named else None)
