"""From a module to a bundle: the weights as safetensors, the rest as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from pydantic import JsonValue
from safetensors.torch import save_file
from torch import Tensor, nn

from edgekd.core.blobs import Blobs, disk_errors
from edgekd.core.bundle import BundleKind, ModelBundle, TensorSpec
from edgekd.core.recipe import ModelRecipe
from edgekd.errors import UserError
from edgekd.nn.build import PROGRAM_FILE, WEIGHTS_FILE
from edgekd.nn.mode import evaluating
from edgekd.nn.shapes import example_images


def bundle_from_module(
    module: nn.Module,
    *,
    recipe: ModelRecipe,
    blobs: Blobs,
    scratch: Path,
    carry: ModelBundle | None = None,
    tags: Mapping[str, JsonValue] | None = None,
) -> ModelBundle:
    """A TORCH bundle that `edgekd.nn.build.module_from_bundle` turns back into this module.

    Args:
        module: Its state dict must be the one that `recipe` builds; it is left as it was, mode included.
        recipe: Architecture, edits, preprocessing and labels.
        blobs: Takes the weights.
        scratch: Holds the file while it is written.
        carry: The bundle that the module was made from: its program travels on when the recipe needs one.
        tags: Facts about the content.

    Raises:
        UserError: A weight that is not finite, an output that is not (N, K), or K unlike the number of labels.
    """
    tensors = checked_weights(module.state_dict())
    classes = count_classes(module, recipe.preprocessing.input_shape)
    if recipe.labels and len(recipe.labels) != classes:
        raise UserError(f"The model gives {classes} logits, but its recipe names {len(recipe.labels)} labels.")
    path = scratch / WEIGHTS_FILE
    with disk_errors(path):
        # No metadata: safetensors orders it by chance, and the bytes name the blob.
        save_file(tensors, path)
        files = {WEIGHTS_FILE: blobs.add(path)}
        path.unlink()
    if recipe.builder == "program" and carry is not None:
        files[PROGRAM_FILE] = carry.file(PROGRAM_FILE)
    return ModelBundle(
        kind=BundleKind.TORCH,
        inputs=(TensorSpec(name="images", shape=("N", *recipe.preprocessing.input_shape)),),
        outputs=(TensorSpec(name="logits", shape=("N", classes)),),
        files=files,
        recipe=recipe,
        tags=dict(tags or {}),
    )


def checked_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of a state dict's tensors on the CPU, contiguous and sharing nothing: what safetensors can hold.

    A tensor with two names is kept under both; the builder ties them again.

    Raises:
        UserError: A weight is NaN or infinite; the message names the tensor and counts its bad values.
    """
    tensors = {}
    for name, value in state.items():
        kept = value.detach().to("cpu", copy=True).contiguous()
        bad = kept.numel() - int(torch.isfinite(kept).sum()) if kept.is_floating_point() else 0
        if bad:
            raise UserError(
                f"{bad} of {kept.numel()} values of the weight {name!r} are NaN or infinite.",
                hint="the training that made them diverged; use an earlier checkpoint or a lower learning rate",
            )
        tensors[name] = kept
    return tensors


def count_classes(module: nn.Module, input_shape: tuple[int, int, int]) -> int:
    """K, found by one forward pass over zeros.

    Args:
        module: Any module that maps images to logits.
        input_shape: (C, H, W).

    Raises:
        UserError: The module does not take such images, or its output is not one tensor (1, K).
    """
    images = example_images(module, input_shape)
    try:
        with evaluating(module), torch.no_grad():
            output = module(images)
    except RuntimeError as err:
        raise UserError(
            f"The model does not take images of shape (C, H, W) = {input_shape}: {err}",
            hint="give the shape it was trained with: --input-shape images:1xCxHxW",
        ) from err
    if not isinstance(output, Tensor) or output.ndim != 2:
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise UserError(f"A classifier gives one tensor of logits (N, K), but this model gives {found} for one image.")
    return output.shape[1]
