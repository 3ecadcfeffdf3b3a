"""Trains one replacement alone, on what the teacher's run receives and gives; no labels, no other layers.

    loss = mean((y - t)^2) / mean(t^2)

Block-wise local distillation as in Puzzle (Bercovich et al. 2024, arXiv 2411.19146). The division makes one learning
rate serve blocks whose outputs differ in scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from edgekd.core.schema import Schema
from edgekd.data.counter import permutation
from edgekd.nn.mode import evaluating
from edgekd.search.blocks.activations import CHUNK
from edgekd.train.averaging import gather_statistics_
from edgekd.train.memory_format import trains_in_channels_last

_ORDER_STREAM = 0xB10C


class LocalTraining(Schema):
    """How a replacement, or an assembled student, is trained on the images of the library.

    Attributes:
        epochs: Passes over the images.
        batch_size: Images per step.
        lr: Peak learning rate of Adam (Kingma and Ba 2014, arXiv 1412.6980), which falls to zero along a cosine.
    """

    epochs: int = Field(default=4, ge=1)
    batch_size: int = Field(default=32, ge=2)
    lr: float = Field(default=5e-3, gt=0)


def train_block_(block: nn.Module, x: Tensor, target: Tensor, how: LocalTraining, seed: int) -> float:
    """Trains a block in place to map `x` to `target`; returns the loss over all of them afterwards.

    It ends in evaluation mode, with BatchNorm statistics gathered over `x`. The loss may be NaN: the training diverged.

    Args:
        block: On the device of `x`; its memory format is left as the training needs it.
        x: (N, C, H, W).
        target: (N, C', H', W').
        how: The options.
        seed: Of the order of the images, and of dropout.
    """
    scale = target.square().mean().clamp_min(1e-12)

    def loss(y: Tensor, t: Tensor) -> Tensor:
        return nn.functional.mse_loss(y, t) / scale

    _train_(block, x, target, how, seed, loss)
    return float(loss(answers(block, x), target))


def train_together_(student: nn.Module, images: Tensor, logits: Tensor, how: LocalTraining, seed: int) -> None:
    """Trains a whole network in place, for a moment, on KL(teacher || student) over the library's images.

    Blocks that were trained apart see each other's errors for the first time in the assembled student; this lets them
    settle, and shows how well a set of them recovers. It ends in evaluation mode, with its own BatchNorm statistics.

    Args:
        student: On the device of `images`.
        images: (N, C, H, W), preprocessed.
        logits: (N, K), the teacher's.
        how: The options.
        seed: Of the order of the images, and of dropout.
    """

    def loss(y: Tensor, t: Tensor) -> Tensor:
        return nn.functional.kl_div(y.log_softmax(1), t.log_softmax(1), reduction="batchmean", log_target=True)

    _train_(student, images, logits, how, seed, loss)


def _train_(
    module: nn.Module,
    x: Tensor,
    target: Tensor,
    how: LocalTraining,
    seed: int,
    loss: Callable[[Tensor, Tensor], Tensor],
) -> None:
    """The loop of both trainings, and BatchNorm statistics over `x` in the end."""
    batches = [
        torch.from_numpy(ids)
        for epoch in range(how.epochs)
        for ids in np.array_split(permutation(len(x), seed, epoch, _ORDER_STREAM), -(-len(x) // how.batch_size))
    ]
    layout = torch.channels_last if trains_in_channels_last(module, x.device) else torch.contiguous_format
    module.to(memory_format=layout)
    optimizer = torch.optim.Adam(module.parameters(), lr=how.lr, fused=True)
    with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []):
        torch.manual_seed(seed)
        module.train()
        for step, ids in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = how.lr * (1 + math.cos(math.pi * step / len(batches))) / 2
            value = loss(module(x[ids].contiguous(memory_format=layout)), target[ids])
            optimizer.zero_grad()
            value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    gather_statistics_(module, (part.clone() for part in torch.split(x, CHUNK)))
    module.eval()


@torch.no_grad()
def answers(block: nn.Module, x: Tensor) -> Tensor:
    """(N, C', H', W'): what a block makes of `x`, in evaluation mode; `x` is not changed."""
    with evaluating(block):
        return torch.cat([block(part.clone()) for part in torch.split(x, CHUNK)])
