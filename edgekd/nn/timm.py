"""Models of the timm library (Wightman 2019), built without their pretrained weights: nothing is downloaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import JsonValue
from torch import Tensor, nn

from edgekd.core.preprocess import Preprocessing
from edgekd.core.schema import suggest
from edgekd.errors import UserError

_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")


def module_from_timm(name: str, kwargs: Mapping[str, JsonValue]) -> nn.Module:
    """The randomly initialised model that timm registers under `name`.

    Args:
        name: A registered name, with or without the tag of its weights (`resnet18`, `resnet18.a1_in1k`).
        kwargs: Passed to timm, `num_classes` or `in_chans` for example.

    Raises:
        UserError: No such model, or arguments it does not take. Names with a source (`hf-hub:...`) are refused, for
            they would fetch files.
    """
    import timm

    if ":" in name or not timm.is_model(name):
        raise UserError(
            f"timm {timm.__version__} has no model {name!r}.{suggest(name.split('.')[0], timm.list_models())}",
            hint="list the names with: python -c 'import timm; print(*timm.list_models())'",
        )
    try:
        module: nn.Module = timm.create_model(name, pretrained=False, **kwargs)
    except (TypeError, ValueError, RuntimeError) as err:
        raise UserError(f"timm:{name} does not take the arguments {dict(kwargs)}: {err}") from err
    return module


def preprocessing_from_timm(module: nn.Module) -> Preprocessing:
    """The preprocessing that the weights of a timm model were evaluated with, from its `pretrained_cfg`.

    A model of grey images, which timm does not describe, gets the averages of the three channels.
    """
    cfg: dict[str, Any] = dict(getattr(module, "pretrained_cfg", {}))
    _, height, width = cfg["input_size"]
    mean, std = tuple(cfg["mean"]), tuple(cfg["std"])
    if getattr(module, "in_chans", 3) == 1:
        mean, std = (sum(mean) / len(mean),), (sum(std) / len(std),)
    interpolation = cfg.get("interpolation") or "bicubic"
    return Preprocessing(
        size=(height, width),
        mean=mean,
        std=std,
        interpolation=interpolation if interpolation in _INTERPOLATIONS else "bicubic",
        crop_fraction=cfg.get("crop_pct") or 1.0,
    )


def kwargs_from_weights(
    name: str, state: Mapping[str, Tensor], kwargs: Mapping[str, JsonValue]
) -> dict[str, JsonValue]:
    """`num_classes` and `in_chans`, where the weights of a fine-tuned model differ from timm's defaults.

    Args:
        name: As timm registers it.
        state: Weights of that model.
        kwargs: Arguments that are given already; they are left alone.
    """
    import timm

    cfg = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if cfg is None:
        return {}
    sources = (("num_classes", cfg.classifier, 0), ("in_chans", cfg.first_conv, 1))
    defaults = {"num_classes": cfg.num_classes, "in_chans": cfg.input_size[0]}
    found: dict[str, JsonValue] = {}
    for key, layer, axis in sources:
        weight = state.get(f"{layer}.weight")
        if key not in kwargs and weight is not None and weight.shape[axis] != defaults[key]:
            found[key] = weight.shape[axis]
    return found
