"""From the user's model file to a TORCH bundle: the first step of every command.

The ways in: a `torch.export` program; weights together with the name of their architecture; and, for those who trust
the file, a pickled module, which is turned into a program at once, so that nothing later depends on the pickle.
"""

from __future__ import annotations

import pickle
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import JsonValue
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram

from edgekd.core.blobs import Blobs
from edgekd.core.bundle import ModelBundle
from edgekd.core.preprocess import Preprocessing
from edgekd.core.recipe import ModelRecipe
from edgekd.errors import BuildFailed, UserError
from edgekd.nn.build import PROGRAM_FILE, is_trainable, module_from_recipe, working_directory_importable
from edgekd.nn.mode import evaluating
from edgekd.nn.overrides import PreprocessingOverrides
from edgekd.nn.program import frozen_module, load_program
from edgekd.nn.quiet import quiet_exporter
from edgekd.nn.rebuild import module_from_program
from edgekd.nn.save import bundle_from_module
from edgekd.nn.shapes import example_images
from edgekd.nn.sniff import ModelFileKind, model_kind
from edgekd.nn.state import bare_name, load_state_, state_from_checkpoint, state_from_file
from edgekd.nn.timm import kwargs_from_weights, preprocessing_from_timm

Shape = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """What a model file gave.

    Attributes:
        bundle: TORCH, with its weights in the store.
        trainable: Whether it can be trained and pruned; a program whose layers cannot be rebuilt only infers.
        notes: Sentences on what was assumed or taken off, for the log.
        license: As a package states it; a file says nothing.
    """

    bundle: ModelBundle
    trainable: bool
    notes: tuple[str, ...]
    license: str | None = None


@dataclass(frozen=True, kw_only=True)
class _Request:
    path: Path
    arch: str | None
    arch_kwargs: Mapping[str, JsonValue]
    preprocessing: Preprocessing | None
    overrides: PreprocessingOverrides
    labels: tuple[str, ...]
    input_shape: Shape | None
    blobs: Blobs
    scratch: Path


def load_model(
    path: Path,
    *,
    arch: str | None = None,
    arch_kwargs: Mapping[str, JsonValue] | None = None,
    preprocessing: Preprocessing | None = None,
    preprocessing_overrides: PreprocessingOverrides | None = None,
    labels: tuple[str, ...] = (),
    input_shape: Shape | None = None,
    trust_pickle: bool = False,
    blobs: Blobs,
    scratch: Path,
) -> LoadedModel:
    """The model in a file, as a bundle.

    Args:
        path: A torch.export program, a state dict of `torch.save` or safetensors, or a pickled module.
        arch: For weights: `timm:NAME`, `edgekd:FAMILY` or `package.module:factory`.
        arch_kwargs: Arguments of the architecture.
        preprocessing: None takes the architecture's own, or assumes one and says so.
        preprocessing_overrides: Values that come before those.
        labels: K class names, in the order of the logits; empty when unknown.
        input_shape: (C, H, W); needed where neither preprocessing, nor timm, nor a program tells.
        trust_pickle: Unpickle, which runs whatever code the file names.
        blobs: Takes the files.
        scratch: Holds files while they are written.

    Raises:
        UserError: The file, the architecture or their combination is unusable; the message says what to do.
    """
    kind = model_kind(path)
    request = _Request(
        path=path,
        arch=arch,
        arch_kwargs=dict(arch_kwargs or {}),
        preprocessing=preprocessing,
        overrides=preprocessing_overrides or PreprocessingOverrides(),
        labels=tuple(labels),
        input_shape=input_shape,
        blobs=blobs,
        scratch=scratch,
    )
    if kind is ModelFileKind.PROGRAM:
        if arch is not None:
            raise UserError(f"{path} is a {kind}, which holds its own architecture; leave --arch {arch} out.")
        return _from_program(request, path)
    if kind in (ModelFileKind.STATE_DICT, ModelFileKind.SAFETENSORS):
        state, notes = state_from_file(path, safetensors=kind is ModelFileKind.SAFETENSORS)
        return _from_state(request, state, notes)
    if kind is ModelFileKind.PICKLED_MODULE and trust_pickle:
        return _from_pickle(request)
    raise _refusal(path, kind)


def _from_state(request: _Request, state: Mapping[str, Tensor], notes: tuple[str, ...]) -> LoadedModel:
    if request.arch is None:
        raise UserError(
            f"{request.path} holds {len(state)} weights, such as {next(iter(state))}, and no architecture.",
            hint="name it: --arch timm:NAME, --arch edgekd:residual or --arch package.module:factory",
        )
    builder, kwargs = builder_from_arch(request.arch), dict(request.arch_kwargs)
    if builder.startswith("timm:"):
        names = {bare_name(name): value for name, value in state.items()}
        found = kwargs_from_weights(builder.removeprefix("timm:"), names, kwargs)
        if found:
            notes += (f"The weights say: {', '.join(f'{key}={value}' for key, value in found.items())}.",)
        kwargs |= found
    # A recipe needs a preprocessing, and timm's own is known only once the module exists.
    unknown = Preprocessing(size=(1, 1))
    module = module_from_recipe(ModelRecipe(builder=builder, kwargs=kwargs, preprocessing=unknown))
    notes += load_state_(module, state, str(request.path))
    preprocessing, more = _preprocessing(request, module if builder.startswith("timm:") else None, None)
    recipe = ModelRecipe(builder=builder, kwargs=kwargs, preprocessing=preprocessing, labels=request.labels)
    bundle = bundle_from_module(module, recipe=recipe, blobs=request.blobs, scratch=request.scratch)
    return LoadedModel(bundle=bundle, trainable=True, notes=notes + more)


def _from_program(request: _Request, file: Path) -> LoadedModel:
    program = load_program(file)
    frozen = frozen_module(program)
    channels, height, width = _image_node(program).meta["val"].shape[1:]
    shape = (channels, height, width)
    preprocessing, notes = _preprocessing(request, None, shape)
    if preprocessing.input_shape != shape:
        raise UserError(
            f"{request.path} was exported for images of shape (C, H, W) = {shape}, but {preprocessing.input_shape} was "
            "given.",
            hint="leave --input-shape out, or export the program again for the other shape",
        )
    module, reason = _rebuilt(program, frozen)
    if reason:
        notes += (f"The program can be exported, quantized and profiled, but not trained or pruned: {reason}",)
    recipe = ModelRecipe(
        builder="program",
        kwargs={"form": "frozen" if reason else "rebuilt"},
        preprocessing=preprocessing,
        labels=request.labels,
    )
    _check_batch(module, preprocessing.input_shape, request.path)
    bundle = bundle_from_module(module, recipe=recipe, blobs=request.blobs, scratch=request.scratch)
    bundle = bundle.model_copy(update={"files": {**bundle.files, PROGRAM_FILE: request.blobs.add(file)}})
    return LoadedModel(bundle=bundle, trainable=is_trainable(recipe), notes=notes)


def _from_pickle(request: _Request) -> LoadedModel:
    try:
        with working_directory_importable():
            content = torch.load(request.path, map_location="cpu", weights_only=False)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ImportError, AttributeError) as err:
        raise UserError(
            f"{request.path} cannot be unpickled: {err}",
            hint="run where the code of its classes can be imported; only files of torch.save are read",
        ) from err
    if not isinstance(content, nn.Module):
        state, notes = state_from_checkpoint(content, str(request.path))
        return _from_state(request, state, notes)
    if request.arch is not None:
        return _from_state(request, content.state_dict(), ())
    shape = request.preprocessing.input_shape if request.preprocessing else request.input_shape
    if shape is None:
        raise _shape_needed(request.path)
    file = request.scratch / PROGRAM_FILE
    try:
        with evaluating(content), torch.no_grad(), quiet_exporter():
            images = example_images(content, shape, batch=2)
            torch.export.save(torch.export.export(content, (images,), dynamic_shapes=({0: Dim("N")},)), file)
    except (RuntimeError, ValueError, TypeError, AttributeError) as err:
        raise BuildFailed(
            f"The pickled {type(content).__name__} in {request.path} cannot be exported to a program: {err}",
            hint="give its state dict, with --arch package.module:factory",
        ) from err
    loaded = _from_program(request, file)
    note = f"Unpickled {type(content).__name__} on your word, and went on with a torch.export program of it."
    return LoadedModel(bundle=loaded.bundle, trainable=loaded.trainable, notes=(note, *loaded.notes))


def builder_from_arch(arch: str) -> str:
    """`timm:NAME` and `edgekd:FAMILY` as they are, `package.module:factory` as a builder of the scheme `module`.

    Raises:
        UserError: Another form.
    """
    scheme, _, name = arch.partition(":")
    if not scheme or not name:
        raise UserError(
            f"--arch {arch!r}: expected timm:NAME, edgekd:FAMILY or package.module:factory.",
            hint=f"for a model of timm: --arch timm:{arch}",
        )
    return arch if scheme in ("timm", "edgekd", "module") else f"module:{arch}"


def _preprocessing(
    request: _Request, timm: nn.Module | None, shape: Shape | None
) -> tuple[Preprocessing, tuple[str, ...]]:
    """The preprocessing to use, and a note when not all of it was given."""
    overrides = request.overrides
    if request.preprocessing is not None:
        return overrides.applied(request.preprocessing), ()
    if timm is not None:
        known = preprocessing_from_timm(timm)
        if request.input_shape is not None:
            if request.input_shape[0] != known.channels:
                raise UserError(
                    f"The timm model takes {known.channels} channels, but the input shape is {request.input_shape}.",
                    hint="give the number of channels to the architecture: --arch-arg in_chans=1",
                )
            known = known.model_copy(update={"size": request.input_shape[1:]})
        own = f"Preprocessing of the timm weights: {_described(known, ())}."
        changed = f"Used instead, as given: {', '.join(_phrases(overrides.given))}." if overrides.given else ""
        return overrides.applied(known), (f"{own} {changed}".rstrip(),)
    shape = request.input_shape or shape
    if shape is None:
        raise _shape_needed(request.path)
    channels, *size = shape
    if channels not in (1, 3):
        raise UserError(f"Images have 1 or 3 channels, but the input shape is {shape} (C, H, W).")
    scale = {} if channels == 3 else {"mean": (0.5,), "std": (0.5,)}
    assumed = Preprocessing.parse({"size": size, **scale}, "input shape")
    if overrides.given.keys() == PreprocessingOverrides.model_fields.keys():
        return overrides.applied(assumed), ()
    described = _described(assumed, overrides.given)
    note = f"Assumed the preprocessing {described}: neither the file nor the command tells. Check it."
    return overrides.applied(assumed), (note,)


def _described(preprocessing: Preprocessing, without: Collection[str]) -> str:
    """The size and all values but those `without` names."""
    values = {name: value for name, value in preprocessing if name != "size" and name not in without}
    height, width = preprocessing.size
    return ", ".join([f"{height}x{width}", *_phrases(values)])


def _phrases(values: Mapping[str, object]) -> list[str]:
    """`mean [0.5]` and so on; interpolation and channel order say themselves what they are."""
    shown = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    return [
        f"{value}" if name in ("interpolation", "channel_order") else f"{name.replace('_', ' ')} {value}"
        for name, value in shown.items()
    ]


def _image_node(program: ExportedProgram) -> fx.Node:
    """The program's one input, a batch of images (N, C, H, W)."""
    names = program.graph_signature.user_inputs
    inputs: list[fx.Node] = [node for node in program.graph.nodes if node.name in names]
    value = inputs[0].meta.get("val") if len(inputs) == 1 else None
    if not isinstance(value, Tensor) or value.ndim != 4 or not all(isinstance(size, int) for size in value.shape[1:]):
        found = [
            tuple(v.shape) if isinstance(v := node.meta.get("val"), Tensor) else type(v).__name__ for node in inputs
        ]
        raise UserError(f"The program takes {found}; expected one batch of images (N, C, H, W) with fixed C, H and W.")
    return inputs[0]


def _rebuilt(program: ExportedProgram, frozen: nn.Module) -> tuple[nn.Module, str]:
    """A module of real layers and no reason, or the frozen graph and the reason why it stays frozen."""
    try:
        module = module_from_program(program)
    except BuildFailed as err:
        return frozen, err.message
    # The batch size that the program was traced with, which may be the only one it takes.
    traced = _image_node(program).meta["val"]
    sizes = [size if isinstance(size, int) else 2 for size in traced.shape]
    images = torch.randn(sizes, generator=torch.Generator().manual_seed(0)).to(traced.dtype)
    with torch.no_grad():
        if not torch.equal(module(images), frozen(images)):
            return frozen, "the rebuilt layers do not compute what the program computes."
    return module, ""


def _check_batch(module: nn.Module, shape: Shape, path: Path) -> None:
    try:
        with torch.no_grad():
            batches = {module(example_images(module, shape, batch=batch)).shape[0] for batch in (1, 3)}
    except RuntimeError:
        batches = set()
    if batches != {1, 3}:
        raise UserError(
            f"{path} was exported for one batch size only.",
            hint='export it again with dynamic_shapes=({0: torch.export.Dim("N")},) and a batch of 2 images',
        )


def _shape_needed(path: Path) -> UserError:
    return UserError(
        f"The size of the images that {path} expects is not known.", hint="give it: --input-shape 3x224x224"
    )


def _refusal(path: Path, kind: ModelFileKind) -> UserError:
    if kind is ModelFileKind.ONNX:
        return UserError(
            f"{path} is an {kind}, which cannot be trained or pruned; expected the PyTorch model it came from.",
            hint="give its torch.export program (.pt2), or its state dict with --arch",
        )
    if kind is ModelFileKind.TORCHSCRIPT:
        load, what = f"torch.jit.load({str(path)!r}, map_location='cpu')", f"is a {kind}"
    else:
        load, what = f"torch.load({str(path)!r}, weights_only=False)", "is a pickle, and reading it runs code"
    command = f"python -c \"import torch; torch.save({load}.state_dict(), 'weights.pt')\""
    trust = "; or pass --trust-pickle if you trust its author" if kind is ModelFileKind.PICKLED_MODULE else ""
    return UserError(
        f"{path} {what}; expected a torch.export program or a state dict.",
        hint=f"convert it where its code is at hand: {command}, then give weights.pt with --arch{trust}",
    )
