"""Scores a module on a split, in PyTorch: a quick look after training, not the evaluation of what is deployed."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from edgekd.core.preprocess import Preprocessing
from edgekd.core.stage import Execution
from edgekd.data.batches import eval_batches
from edgekd.data.dataset import Split
from edgekd.data.transform import FloatArray
from edgekd.nn.mode import evaluating
from edgekd.tasks.classification import agreement, top1
from edgekd.train.engine import resolve_device, torch_settings
from edgekd.train.memory_format import placed

BATCH = 256


def module_logits(module: nn.Module, split: Split, p: Preprocessing, execution: Execution | None = None) -> FloatArray:
    """(N, K) float32: the module's logits for every image of a split, in order, in evaluation mode.

    Args:
        module: On the CPU; it is left there.
        split: At least one image.
        p: The module's preprocessing.
        execution: Device and threads.
    """
    execution = execution or Execution()
    device = torch.device(resolve_device(execution.device))
    found = []
    placement = placed(module, device, channels_last=True)
    with torch_settings(execution), placement, evaluating(module), torch.inference_mode():
        for batch in eval_batches(split, p, BATCH):
            images = torch.from_numpy(batch.images).to(device, memory_format=torch.channels_last)
            found.append(module(images).float().cpu().numpy())
    return np.concatenate(found)


def module_accuracy(module: nn.Module, split: Split, p: Preprocessing, execution: Execution | None = None) -> float:
    """Top-1 of a module on a labelled split, in [0, 1]."""
    if split.labels is None:
        raise ValueError("a split without labels has no accuracy; use module_agreement")
    return top1(module_logits(module, split, p, execution), split.labels)


def module_agreement(
    module: nn.Module, reference: nn.Module, split: Split, p: Preprocessing, execution: Execution | None = None
) -> float:
    """Share of a split's images, in [0, 1], on which two modules of one preprocessing have the same top-1."""
    return agreement(module_logits(module, split, p, execution), module_logits(reference, split, p, execution))
