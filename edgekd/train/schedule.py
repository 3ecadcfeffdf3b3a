"""The learning rate as a pure function of progress: nothing to save, nothing to restore."""

from __future__ import annotations

import math

from edgekd.train.config import TrainConfig

_STEPS = (0.625, 0.75, 0.875)
_STEP_FACTOR = 0.1
_ONECYCLE_RISE = 0.3
_ONECYCLE_START = 1 / 25


def learning_rate(config: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """The learning rate of a step, counted from 0 over the whole training."""
    total = config.epochs * steps_per_epoch
    warmup = config.warmup_epochs * steps_per_epoch
    if step < warmup:
        return config.lr * (step + 1) / (warmup + 1)
    if config.schedule == "step":
        return config.lr * math.prod(_STEP_FACTOR for share in _STEPS if step >= share * total)
    if config.schedule == "onecycle":
        return config.lr * _onecycle(step / total)
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def _onecycle(progress: float) -> float:
    if progress < _ONECYCLE_RISE:
        part = progress / _ONECYCLE_RISE
        return 1 - (1 - _ONECYCLE_START) * 0.5 * (1 + math.cos(math.pi * part))
    return 0.5 * (1 + math.cos(math.pi * (progress - _ONECYCLE_RISE) / (1 - _ONECYCLE_RISE)))
