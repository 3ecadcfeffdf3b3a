"""Images made from nothing but a network: optimised until its BatchNorm layers see the statistics that they remember.

    minimise over x:  sum over layers l of mean_c (m_lc(x) - mu_lc)^2 / v_lc + (s_lc(x) / sqrt(v_lc) - 1)^2  +  w TV(x)

with m, s the mean and standard deviation of channel c at the input of BatchNorm l over the batch, mu and v the stored
statistics, TV the mean squared difference of neighbouring pixels. Sources: Cai et al. 2020 (ZeroQ, arXiv 2001.00281)
and Yin et al. 2020 (DeepInversion, arXiv 1912.08795). Deviations: differences are measured in units of the stored
standard deviation, so that no layer outweighs the others by its scale; no labels, because ranges do not need them; x is
kept inside the range of real pixels.

A last resort. Matching two moments does not match the tails, and ranges live in the tails: `range_overlap` says how far
the result can be trusted, and whoever calibrates on such images must say so.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgekd.core.events import Reporter
from edgekd.core.preprocess import Preprocessing
from edgekd.data.transform import FloatArray
from edgekd.errors import BuildFailed, UserError

_CHUNK = 32
_LEARNING_RATE = 0.1
_SMOOTHNESS = 0.05
TRUSTED_OVERLAP = 0.9
"""Below this the report is a warning: plain noise reaches about 0.8 on small networks."""


def synthetic_images(
    module: nn.Module, p: Preprocessing, *, samples: int, steps: int = 200, seed: int, reporter: Reporter
) -> FloatArray:
    """(N, C, H, W) float32: preprocessed images on which the BatchNorm inputs have their stored mean and deviation.

    Args:
        module: In any mode, which is restored; its parameters and statistics are not touched.
        p: Gives the shape and the range of valid pixels.
        samples: How many.
        steps: Optimiser steps for each chunk of up to 32 images.
        seed: Starting noise.
        reporter: Gets progress, and the range overlap at the end.

    Raises:
        UserError: The module has no BatchNorm with running statistics, or there is nothing to do.
        BuildFailed: The optimisation diverged.
    """
    if samples < 1 or steps < 1:
        raise UserError(f"Synthetic images: expected at least 1 sample and 1 step, got {samples} and {steps}.")
    generator = torch.Generator().manual_seed(seed)
    sizes = [min(_CHUNK, samples - start) for start in range(0, samples, _CHUNK)]
    chunks = []
    with _observed(module) as inputs:
        for number, size in enumerate(sizes):
            images = torch.randn((size, *p.input_shape), generator=generator).to(_device(module))
            for step, loss in enumerate(_optimised_(images, module, inputs, p, steps)):
                done = number * steps + step + 1
                reporter.progress("synthetic images", done, len(sizes) * steps, {"loss": loss})
            chunks.append(images.cpu())
    found: FloatArray = torch.cat(chunks).numpy()
    overlap = range_overlap(module, found)
    reporter.message(
        f"{samples} synthetic images: the ranges of their activations overlap by {overlap:.0%} with those that the "
        "BatchNorm statistics imply",
        level="info" if overlap >= TRUSTED_OVERLAP else "warning",
    )
    return found


def range_overlap(module: nn.Module, images: FloatArray) -> float:
    """Mean over all BatchNorm channels of the overlap, in [0, 1], of seen and remembered ranges.

    overlap = |A and B| / |A or B| with A = m +- 3 s on these images and B = mu +- 3 sqrt(v) as stored.

    Args:
        module: In any mode, which is restored.
        images: (N, C, H, W) float32, preprocessed; synthetic or real.

    Raises:
        UserError: The module has no BatchNorm with running statistics.
    """
    first: dict[_BatchNorm, Tensor] = {}
    second: dict[_BatchNorm, Tensor] = {}
    with _observed(module) as inputs, torch.no_grad():
        for start in range(0, len(images), _CHUNK):
            chunk = torch.from_numpy(images[start : start + _CHUNK])
            inputs.clear()
            module(chunk.to(_device(module)))
            for layer, seen in inputs.items():
                mean, deviation = _moments(seen)
                share = len(chunk) / len(images)
                first[layer] = first.get(layer, 0) + share * mean
                second[layer] = second.get(layer, 0) + share * (deviation**2 + mean**2)
    overlaps = []
    for layer, mean in first.items():
        deviation = (second[layer] - mean**2).clamp_min(0).sqrt()
        stored_mean, stored_deviation = _stored(layer)
        low, high = mean - 3 * deviation, mean + 3 * deviation
        stored_low, stored_high = stored_mean - 3 * stored_deviation, stored_mean + 3 * stored_deviation
        common = (torch.minimum(high, stored_high) - torch.maximum(low, stored_low)).clamp_min(0)
        overlaps.append(common / (torch.maximum(high, stored_high) - torch.minimum(low, stored_low)))
    return float(torch.cat(overlaps).mean())


def _optimised_(
    images: Tensor, module: nn.Module, inputs: dict[_BatchNorm, Tensor], p: Preprocessing, steps: int
) -> Iterator[float]:
    """Improves `images` in place, yielding the loss before each step."""
    low, high = _pixel_range(p, images.device)
    images.clamp_(low, high)
    optimiser = torch.optim.Adam([images], lr=_LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for step in range(steps):
        leaf = images.detach().requires_grad_()
        loss = _mismatch(module, inputs, leaf) + _SMOOTHNESS * _roughness(leaf)
        if not torch.isfinite(loss):
            raise BuildFailed(
                f"Synthetic images: the loss became {loss.item()} at step {step}.",
                hint="check the model's BatchNorm statistics: a variance near 0 does this",
            )
        (images.grad,) = torch.autograd.grad(loss, [leaf])
        optimiser.step()
        schedule.step()
        images.clamp_(low, high)
        yield loss.item()


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


@contextmanager
def _observed(module: nn.Module) -> Iterator[dict[_BatchNorm, Tensor]]:
    """The inputs of all BatchNorm layers at the last forward, with the module in evaluation mode meanwhile."""
    layers = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not layers:
        raise UserError(
            "Synthetic images need BatchNorm layers with running statistics, and this model has none.",
            hint="give real images with --data; a few hundred without labels are enough",
        )
    inputs: dict[_BatchNorm, Tensor] = {}

    def keep(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        if isinstance(layer, _BatchNorm):
            inputs[layer] = args[0]

    modes = {child: child.training for child in module.modules()}
    handles = [layer.register_forward_pre_hook(keep) for layer in layers]
    module.eval()
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()
        for child, training in modes.items():
            child.training = training


def _mismatch(module: nn.Module, inputs: dict[_BatchNorm, Tensor], images: Tensor) -> Tensor:
    """Mean over the layers of the squared, normalised differences of both moments."""
    inputs.clear()
    module(images)
    terms = []
    for layer, seen in inputs.items():
        mean, deviation = _moments(seen)
        stored_mean, stored_deviation = _stored(layer)
        terms.append((((mean - stored_mean) / stored_deviation) ** 2 + (deviation / stored_deviation - 1) ** 2).mean())
    return torch.stack(terms).mean()


def _moments(seen: Tensor) -> tuple[Tensor, Tensor]:
    axes = [axis for axis in range(seen.ndim) if axis != 1]
    variance, mean = torch.var_mean(seen.float(), dim=axes, correction=0)
    return mean, (variance + 1e-12).sqrt()


def _stored(layer: _BatchNorm) -> tuple[Tensor, Tensor]:
    assert layer.running_mean is not None
    assert layer.running_var is not None
    return layer.running_mean.float(), (layer.running_var.float() + layer.eps).sqrt()


def _roughness(images: Tensor) -> Tensor:
    down = (images[:, :, 1:] - images[:, :, :-1]).square().mean()
    return down + (images[..., 1:] - images[..., :-1]).square().mean()


def _pixel_range(p: Preprocessing, device: torch.device) -> tuple[Tensor, Tensor]:
    mean = torch.tensor(p.mean, device=device).view(1, -1, 1, 1)
    std = torch.tensor(p.std, device=device).view(1, -1, 1, 1)
    return -mean / std, (1 - mean) / std
