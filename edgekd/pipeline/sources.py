"""From what a user names as a model to a bundle: a model file, a package that a verb wrote, a recipe, an ONNX graph.

`edgekd.nn.load` reads files that other tools wrote; what edgekd itself writes is read here.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError, EncodeError  # type: ignore[import-untyped]

from edgekd.core.blobs import Blobs, disk_errors
from edgekd.core.bundle import BundleKind, ModelBundle, TensorSpec
from edgekd.core.digest import Digest
from edgekd.core.events import Reporter
from edgekd.core.preprocess import Preprocessing
from edgekd.core.recipe import ModelRecipe
from edgekd.core.store import Store
from edgekd.errors import UserError
from edgekd.export.archive import is_packed, open_package
from edgekd.export.sbom import MODEL_LICENSE
from edgekd.nn.build import is_trainable, module_from_recipe
from edgekd.nn.load import LoadedModel, load_model
from edgekd.nn.onnx_outline import outline_from_file
from edgekd.nn.save import bundle_from_module
from edgekd.pipeline.request import ModelSource
from edgekd.runtimes.onnx_file import MODEL_FILE, fix_axes_, graph_from_file, interface_of

RECIPE_SUFFIX = ".json"
"""Of a recipe that `edgekd search` wrote for a pick: an architecture without weights."""
ONNX_SUFFIX = ".onnx"
MODULE = "module"
"""Scheme of a builder that is a function of the user's own."""

_FLAGS = {
    "arch": "--arch",
    "arch_kwargs": "--arch-arg",
    "input_shape": "--input-shape",
    "preprocessing": "the preprocessing",
    "preprocessing_overrides": "the flags of preprocessing (--mean, --std and so on)",
    "labels": "--labels",
    "trust_pickle": "--trust-pickle",
}


def model_from_source(source: ModelSource, store: Store, reporter: Reporter, *, seed: int) -> LoadedModel:
    """As `opened`; what was assumed goes to the reporter."""
    loaded = opened(source, store, seed=seed)
    for note in loaded.notes:
        reporter.message(note)
    return loaded


def opened(source: ModelSource, store: Store, *, seed: int) -> LoadedModel:
    """The model that a source names, its files in the store.

    Args:
        source: A model file, a package (`.edgekd`, a folder, or one that has it in `bundle/`), a recipe (`.json`), or
            an `.onnx`.
        store: Takes the files.
        seed: Of the weights of a recipe, which brings none.

    Raises:
        UserError: The source cannot be used, or flags say what the source itself says.
    """
    path = Path(source.path)
    if path.is_dir() or is_packed(path):
        return _from_package(source, path, store)
    if path.suffix == RECIPE_SUFFIX and path.exists():
        return _from_recipe(source, path, store, seed)
    if path.suffix == ONNX_SUFFIX and path.exists():
        return _from_onnx(source, path, store)
    return _from_file(source, path, store)


def require_network(loaded: LoadedModel, source: ModelSource, what: str) -> ModelBundle:
    """The bundle, when it is a PyTorch model.

    Args:
        what: Needs one, as a clause: "a compression starts from a PyTorch model".

    Raises:
        UserError: It is a graph.
    """
    if loaded.bundle.kind is not BundleKind.TORCH:
        raise UserError(
            f"{source.path} holds an {loaded.bundle.kind.upper()} graph, and {what}.",
            hint="give the package or the model file that the graph was exported from; a graph itself can be quantized "
            "and profiled: edgekd quantize, edgekd profile",
        )
    return loaded.bundle


def bundle_from_onnx(path: Path, blobs: Blobs, *, input_shape: tuple[int, int, int] | None = None) -> ModelBundle:
    """A bare `.onnx` file as a bundle of one file, with the preprocessing that its input lets one assume.

    Weights that lie in a second file, as exporters write them today, are taken into the first.

    Args:
        path: The file.
        blobs: Takes it.
        input_shape: (C, H, W) for axes that the graph leaves open; None leaves them so, which is refused.

    Raises:
        UserError: Not a graph, or one without a single float32 image input of known size; or another size was asked.
    """
    outline = _outline(path)
    inputs, outputs = interface_of(outline)
    preprocessing = _assumed_preprocessing(inputs, path, input_shape)
    opened_axes = inputs[0].shape[1:] != preprocessing.input_shape
    with tempfile.TemporaryDirectory(prefix="edgekd-") as scratch:
        file = path
        if opened_axes or any(entry.external_data for entry in outline.graph.initializer):
            model, file = graph_from_file(path), Path(scratch) / MODEL_FILE
            if opened_axes:
                fix_axes_(model, preprocessing.input_shape)
            _write(model, file, path)
            inputs, outputs = interface_of(model)
        digest = blobs.add(file)
    return ModelBundle(
        kind=BundleKind.ONNX,
        inputs=inputs,
        outputs=outputs,
        files={MODEL_FILE: digest},
        recipe=ModelRecipe(builder="onnx", preprocessing=preprocessing),
        tags={"precision": _precision(outline), "scheme": ""},
    )


def describes_itself(source: ModelSource) -> bool:
    """Whether the source is of edgekd's own making, and so brings architecture and preprocessing."""
    path = Path(source.path)
    return path.is_dir() or is_packed(path) or path.suffix == RECIPE_SUFFIX


def starts_fresh(source: ModelSource) -> bool:
    """Whether the model has no trained weights, only an architecture."""
    return Path(source.path).suffix == RECIPE_SUFFIX


def _from_package(source: ModelSource, path: Path, store: Store) -> LoadedModel:
    with open_package(path) as package:
        bundle, files = package.bundle, package.files
        _check_no_flags(_without_named_code(source, bundle), "a package")
        license_text = package.manifest.facts.get(MODEL_LICENSE)
        if bundle.kind is BundleKind.ENGINE:
            raise UserError(
                f"{path} holds a finished {bundle.format} engine, which nothing can be made from.",
                hint="give the package or the model file that it was made from; an engine can be profiled, evaluated "
                "and benchmarked",
            )
        for digest in bundle.files.values():
            store.blobs.add(files.path(Digest(digest)))
    trainable = bundle.kind is BundleKind.TORCH and is_trainable(bundle.model)
    return LoadedModel(bundle=bundle, trainable=trainable, notes=(), license=license_text)


def require_named_code(recipe: ModelRecipe, path: Path, named: Collection[str]) -> bool:
    """Whether a network is built by code that the user named; code that the user did not name is never run.

    A recipe can name any function that is installed, which is imported and called when the network is built. Where it
    came from does not show: a folder may be what somebody else unpacked.

    Args:
        recipe: Of a TORCH bundle; nothing is built from others.
        path: Where it was read.
        named: What the user gave as `--arch`.

    Raises:
        UserError: It names a function that was not given.
    """
    scheme, _, factory = recipe.builder.partition(":")
    if scheme != MODULE:
        return False
    if factory in named or recipe.builder in named:
        return True
    arguments = ", ".join(f"{name}={value!r}" for name, value in recipe.kwargs.items())
    raise UserError(
        f"{path} holds no code and names a function to build its network with, {factory}({arguments}), which would be "
        "imported here and called.",
        hint=f"if that is your own code: --arch {factory} (of a teacher: --teacher-arch)",
    )


def arch_flags(recipe: ModelRecipe) -> list[str]:
    """The flags with which a command names the code of a recipe; none where no code of the user's builds it."""
    scheme, _, factory = recipe.builder.partition(":")
    return ["--arch", factory] if scheme == MODULE else []


def _without_named_code(source: ModelSource, bundle: ModelBundle) -> ModelSource:
    """The source without the flag that names the code of its network, where it has some.

    Raises:
        UserError: It has some that the flag does not name.
    """
    given = () if source.arch is None else (source.arch,)
    named = bundle.kind is BundleKind.TORCH and require_named_code(bundle.model, Path(source.path), given)
    return source.model_copy(update={"arch": None}) if named else source


def _from_recipe(source: ModelSource, path: Path, store: Store, seed: int) -> LoadedModel:
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise UserError(f"{path} cannot be read as JSON: {err}", hint="give the student-N.json of a search") from err
    recipe = ModelRecipe.parse(plain, str(path))
    given = () if source.arch is None else (source.arch,)
    named = require_named_code(recipe, path, given)
    _check_no_flags(source.model_copy(update={"arch": None}) if named else source, "a recipe")
    module = module_from_recipe(recipe, seed=seed)
    with tempfile.TemporaryDirectory(prefix="edgekd-") as scratch:
        bundle = bundle_from_module(module, recipe=recipe, blobs=store.blobs, scratch=Path(scratch))
    note = f"{path} is an architecture without weights: they are drawn from seed {seed}."
    return LoadedModel(bundle=bundle, trainable=True, notes=(note,))


def _from_onnx(source: ModelSource, path: Path, store: Store) -> LoadedModel:
    if source.arch is not None:
        raise UserError(f"{path} holds its own architecture.", hint="leave out --arch")
    bundle = bundle_from_onnx(path, store.blobs, input_shape=source.input_shape)
    preprocessing = source.preprocessing_overrides.applied(source.preprocessing or bundle.model.preprocessing)
    recipe = bundle.model.model_copy(update={"preprocessing": preprocessing, "labels": source.labels})
    note = f"The file carries no preprocessing; used are mean {preprocessing.mean} and std {preprocessing.std}."
    return LoadedModel(bundle=bundle.model_copy(update={"recipe": recipe}), trainable=False, notes=(note,))


def _outline(path: Path) -> onnx.ModelProto:
    try:
        return outline_from_file(path)
    except (DecodeError, OSError) as err:
        raise UserError(f"{path} is not a readable ONNX file: {err}") from err


def _write(model: onnx.ModelProto, file: Path, path: Path) -> None:
    """Writes a graph with its weights."""
    try:
        data = model.SerializeToString(deterministic=True)
    except (ValueError, EncodeError) as err:
        raise UserError(
            f"{path} with the weights that lie beside it is larger than the 2 GiB that one ONNX file can hold: {err}",
            hint="edgekd is for networks that fit into one file",
        ) from err
    with disk_errors(file):
        file.write_bytes(data)


def _assumed_preprocessing(
    inputs: tuple[TensorSpec, ...], path: Path, asked: tuple[int, int, int] | None
) -> Preprocessing:
    """ImageNet's, or [-1, 1] for grey images, for a bare `.onnx` file carries none."""
    shape: tuple[Any, ...] = inputs[0].shape if len(inputs) == 1 else ()
    if len(shape) != 4:
        found = "; ".join(f"{spec.name} {spec.shape}" for spec in inputs) or "none"
        raise UserError(
            f"{path}: expected one image input (N, C, H, W), got: {found}.",
            hint="export the part of the model that takes preprocessed images, or give an edgekd bundle",
        )
    if inputs[0].dtype != "float32":
        raise UserError(
            f"{path}: the input {inputs[0].name!r} takes {inputs[0].dtype}, and edgekd feeds preprocessed float32 "
            "images.",
            hint="export in float32, without the conversion of pixels in the graph; FP16 and INT8 are made from that",
        )
    sizes = (
        shape[1:]
        if asked is None
        else tuple(b if isinstance(a, str) else a for a, b in zip(shape[1:], asked, strict=True))
    )
    if asked is not None and sizes != asked:
        raise UserError(
            f"{path}: the input {inputs[0].name!r} has the shape {shape}, so it cannot be {'x'.join(map(str, asked))}.",
            hint="leave out --input-shape, or export the graph with this size",
        )
    if not all(isinstance(size, int) for size in sizes):
        raise UserError(
            f"{path}: expected one image input (N, C, H, W) with known sizes, got {shape}.",
            hint="say the sizes with --input-shape CxHxW, or export it with fixed height and width",
        )
    channels, height, width = sizes
    if channels not in (1, 3):
        raise UserError(
            f"{path}: expected images of 1 or 3 channels, (N, C, H, W), got {shape}.",
            hint="edgekd works on grey and colour images; export with the channels as the second axis",
        )
    if channels == 1:
        return Preprocessing(size=(height, width), mean=(0.5,), std=(0.5,))
    return Preprocessing(size=(height, width))


def _precision(outline: onnx.ModelProto) -> str:
    """What the graph computes in: `int8` where values are dequantized, `fp16` where a weight is, else `fp32`."""
    if any(node.op_type == "DequantizeLinear" for node in outline.graph.node):
        return "int8"
    halves = any(entry.data_type == onnx.TensorProto.FLOAT16 for entry in outline.graph.initializer)
    return "fp16" if halves else "fp32"


def _from_file(source: ModelSource, path: Path, store: Store) -> LoadedModel:
    with tempfile.TemporaryDirectory(prefix="edgekd-") as scratch:
        return load_model(
            path,
            arch=source.arch,
            arch_kwargs=source.arch_kwargs,
            input_shape=source.input_shape,
            preprocessing=source.preprocessing,
            preprocessing_overrides=source.preprocessing_overrides,
            labels=source.labels,
            trust_pickle=source.trust_pickle,
            blobs=store.blobs,
            scratch=Path(scratch),
        )


def _check_no_flags(source: ModelSource, what: str) -> None:
    empty = ModelSource(path=source.path)
    given = [flags for name, flags in _FLAGS.items() if getattr(source, name) != getattr(empty, name)]
    if given:
        raise UserError(
            f"{source.path} is {what}, which holds its own architecture, preprocessing and labels.",
            hint=f"leave out {', '.join(given)}",
        )
