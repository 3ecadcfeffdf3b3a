"""The stages that bring in a teacher which is only a file: an ONNX graph, or its logits on the training images.

Neither is kept in the store: the file is read anew in each run, and what comes after depends on its content.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
from google.protobuf.message import EncodeError  # type: ignore[import-untyped]

from edgekd.core.blobs import disk_errors
from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.preprocess import Preprocessing
from edgekd.core.recipe import ModelRecipe
from edgekd.core.stage import Context, Inputs, Stage, StageConfig, StageResult
from edgekd.data.augment import Augment
from edgekd.data.dataset import Dataset
from edgekd.errors import UserError
from edgekd.runtimes.onnx_file import MODEL_FILE, graph_from_file, onnx_interface
from edgekd.train.answers import AnswersSpec, bundle_from_answers, pixels_digest

LOGITS, DATA = "logits", "data"
"""Names of the arrays in an `.npz` file."""
PIXELS = ("preprocessing", "augment", "seed")
"""Further ones, which say what several views are of: fields of `AnswersSpec` as text."""


class OnnxTeacherConfig(StageConfig):
    """Which graph.

    Attributes:
        path: An `.onnx` file: images (N, C, H, W) with an open batch to logits (N, K).
        preprocessing: What its images went through; the file does not say.
    """

    path: str
    preprocessing: Preprocessing


class OnnxTeacherStage(Stage[OnnxTeacherConfig]):
    """An ONNX file as a teacher that gives logits."""

    name = "onnx-teacher"
    Config = OnnxTeacherConfig
    ports: ClassVar = {}
    produces = BundleKind.ONNX
    cacheable = False

    def requires(self, inputs: Inputs, ctx: Context) -> None:
        _existing(self.config.path)

    def run(self, inputs: Inputs, ctx: Context) -> StageResult:
        path, p = _existing(self.config.path), self.config.preprocessing
        takes, gives = onnx_interface(path)
        shape = takes[0].shape if len(takes) == 1 else ()
        wanted = ", ".join(map(str, p.input_shape))
        if len(shape) != 4 or isinstance(shape[0], int) or shape[1:] != p.input_shape:
            raise UserError(
                f"{path}: expected one input of images (N, {wanted}) with an open batch, got "
                f"{[list(spec.shape) for spec in takes]}.",
                hint="give the preprocessing of this graph, and export it with a dynamic batch",
            )
        if not gives or len(gives[0].shape) != 2 or not isinstance(gives[0].shape[1], int):
            raise UserError(
                f"{path}: expected logits (N, K) as its first output, got {[list(x.shape) for x in gives]}."
            )
        bundle = ModelBundle(
            kind=BundleKind.ONNX,
            inputs=takes,
            outputs=gives,
            files={MODEL_FILE: ctx.blobs.add(_self_contained(path, ctx.scratch / MODEL_FILE))},
            recipe=ModelRecipe(builder="onnx", preprocessing=p),
            tags={"precision": "fp32", "scheme": ""},
        )
        return StageResult(bundle=bundle, metrics={"classes": gives[0].shape[1]})


class StoredLogitsConfig(StageConfig):
    """Which logits, and which pixels they belong to.

    Attributes:
        path: A `.npy` file, or an `.npz` file with an array `logits`: (samples, K) or (views, samples, K), rows in the
            order of the training split. With several views it is an `.npz` file that also holds the strings
            `preprocessing` (`pixels_digest`) and `augment` (JSON) and the number `seed`: what the views are of.
        preprocessing: What the teacher's images went through.
        data: Digest of the data set that they were computed on. An `.npz` file may carry it as a string `data`.
        augment: How views differ; several views need the augmentation of edgekd, replayed with `seed`.
        seed: Of the views; None is the run's.
    """

    path: str
    preprocessing: Preprocessing
    data: str | None = None
    augment: Augment = Augment()
    seed: int | None = None


class StoredLogitsStage(Stage[StoredLogitsConfig]):
    """Logits from a file as the answers of a teacher that is not at hand.

    They are bound to the data by its digest, and several views to their pixels by what the file says of these.
    """

    name = "stored-logits"
    Config = StoredLogitsConfig
    ports: ClassVar = {}
    produces = BundleKind.DATA
    reads = frozenset({"data"})
    cacheable = False

    def requires(self, inputs: Inputs, ctx: Context) -> None:
        _existing(self.config.path)

    def run(self, inputs: Inputs, ctx: Context) -> StageResult:
        config, dataset = self.config, ctx.resource("data", Dataset)
        logits, said = read_logits(_existing(config.path))
        _check_bound(config, config.data or said.get(DATA), dataset)
        views, samples, classes = logits.shape
        if samples != len(dataset.train):
            raise UserError(
                f"{config.path} has logits of {samples} images, but the training split of {dataset.name} has "
                f"{len(dataset.train)}.",
                hint="give one row per training image, in the order of the split",
            )
        if views > 1 and config.augment == Augment(views=config.augment.views):
            raise UserError(f"{config.path} has {views} views, but augment says that all views are alike.")
        spec = AnswersSpec(
            views=views,
            augment=config.augment,
            preprocessing=pixels_digest(config.preprocessing),
            data=dataset.digest,
            seed=ctx.seed if config.seed is None else config.seed,
        )
        if views > 1 or said.keys() & set(PIXELS):
            _check_pixels(config.path, said, spec)
        path = ctx.scratch / "logits.npy"
        with disk_errors(path):
            np.save(path, logits)
        return StageResult(
            bundle=bundle_from_answers({LOGITS: path}, spec, ctx.blobs),
            metrics={"views": views, "samples": samples, "classes": classes},
        )


def read_logits(path: Path) -> tuple[npt.NDArray[np.float32], dict[str, str]]:
    """(views, samples, K) float32 of a `.npy` or `.npz` file, and what that says of them: `DATA` and `PIXELS`, if any.

    Raises:
        UserError: No such arrays, of other shapes, or values that are not finite.
    """
    try:
        found, said = _arrays(path)
    except (OSError, ValueError, EOFError, BadZipFile, zlib.error) as err:
        raise UserError(f"{path} cannot be read as NumPy arrays: {err}") from err
    if found is None:
        raise UserError(f"{path} has no array {LOGITS!r}.", hint="save it with numpy.savez(path, logits=...)")
    if found.ndim not in (2, 3) or found.dtype.kind != "f":
        raise UserError(
            f"{path}: expected floating-point logits (samples, K) or (views, samples, K), got {found.dtype} "
            f"{found.shape}."
        )
    logits = found.astype(np.float32).reshape(-1, *found.shape[-2:])
    if not np.isfinite(logits).all():
        raise UserError(f"{path} holds values that are not finite.", hint="save logits, not log-probabilities of 0")
    return logits, said


def _arrays(path: Path) -> tuple[npt.NDArray[Any] | None, dict[str, str]]:
    loaded = np.load(path, allow_pickle=False)
    if not isinstance(loaded, np.lib.npyio.NpzFile):
        return loaded, {}
    with loaded:
        return loaded.get(LOGITS), {name: str(loaded[name]) for name in (DATA, *PIXELS) if name in loaded}


def _self_contained(path: Path, target: Path) -> Path:
    """The graph with all of its weights in one file, which large exports keep in a second one beside it."""
    try:
        whole = graph_from_file(path).SerializeToString(deterministic=True)
    except (ValueError, EncodeError) as err:
        raise UserError(
            f"{path} does not fit into one ONNX file, which holds 2 GiB at most: {err}.",
            hint="give the network with its weights, or its logits through a stored-logits node",
        ) from err
    with disk_errors(target):
        target.write_bytes(whole)
    return target


def _check_bound(config: StoredLogitsConfig, bound_to: str | None, dataset: Dataset) -> None:
    if bound_to is None:
        raise UserError(
            f"{config.path} does not say which data its logits belong to.",
            hint="if its rows are the training split of this data in order, say so in the file: "
            f"numpy.savez(path, logits=..., data='{dataset.digest}')",
        )
    if bound_to != dataset.digest:
        raise UserError(
            f"The logits of {config.path} belong to other data ({bound_to}) than this run's ({dataset.digest}).",
            hint="compute them anew on this data; another seed splits it otherwise",
        )


def _check_pixels(path: str, said: Mapping[str, str], wanted: AnswersSpec) -> None:
    """Makes sure that the views are those that the training shows: of one preprocessing, augmentation and seed.

    A single view is of the images as they are, which needs no seed, and need not be said.

    Raises:
        UserError: The file says of other pixels, or does not say of which.
    """
    plain = wanted.augment.model_copy(update={"views": None})
    expected = {"preprocessing": wanted.preprocessing, "augment": json.dumps(plain.plain()), "seed": str(wanted.seed)}
    hint = (
        "view v of the images is edgekd.data.augment.augmented(..., view=v, ...); say beside the logits how they were "
        "made (docs/objectives.md, stored logits). This run shows: "
        f"numpy.savez(path, logits=..., data={wanted.data!r}, "
        + ", ".join(f"{name}={value!r}" for name, value in expected.items())
        + ")"
    )
    lacking = [name for name in PIXELS if name not in said]
    if lacking and wanted.views > 1:
        raise UserError(
            f"{path} has {wanted.views} views and does not say of which pixels: it lacks {', '.join(lacking)}.",
            hint=hint,
        )
    given = [name for name in PIXELS if name in said and (wanted.views > 1 or name != "seed")]
    fits = {
        name: _augment(path, said[name]) == plain if name == "augment" else said[name] == expected[name]
        for name in given
    }
    differing = [name for name in given if not fits[name]]
    if differing:
        theirs = ", ".join(f"{name} {said[name]}" for name in differing)
        raise UserError(f"The views of {path} are of other pixels than this run shows: {theirs}.", hint=hint)


def _augment(path: str, text: str) -> Augment:
    """How views differ, without their number, which is that of the logits."""
    try:
        found = json.loads(text)
    except json.JSONDecodeError as err:
        raise UserError(f"{path}: augment is no JSON: {text!r}.", hint="save Augment(...).model_dump_json()") from err
    return Augment.parse(found, f"augment of {path}").model_copy(update={"views": None})


def _existing(path: str) -> Path:
    found = Path(path)
    if not found.is_file():
        raise UserError(f"No such file: {path}.")
    return found
