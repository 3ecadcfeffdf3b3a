"""Quantization-aware training in the graph: a trained twin beside every calibrated INT8 engine, when asked for."""

from __future__ import annotations

from typing import Any

from pydantic import JsonValue

from edgekd.pipeline.draft import Draft
from edgekd.pipeline.request import Options
from edgekd.pipeline.situation import Situation
from edgekd.pipeline.teaching import fitting_loss, objective_names, taught_by, trained_images
from edgekd.pipeline.training import DEFAULT_LR, epochs_for, train_config
from edgekd.train.objective import TAPPED, Objective

EPOCHS_SHARE = 10
"""A tenth of the epochs of a whole training, at a hundredth of its learning rate: the usual length."""
LR_SHARE = 100


def draft_qat(draft: Draft, options: Options, situation: Situation, label: str, quantized: str) -> list[str]:
    """Adds the trained twin of a calibrated engine and returns its node; nothing where nothing is to be trained.

    Args:
        label: Of the model; one whose weights lie on the grid of `--weight-bits` is left as it is.
        quantized: The quantize node.
    """
    dataset = situation.dataset
    if options.quantize != "qat" or dataset is None or _on_a_grid(label, options):
        return []
    images, taught = trained_images(dataset, objective_names(options)), taught_by(draft)
    loss = fitting_loss(draft, options, _reads_logits, "looks inside the networks, and qat trains graphs")
    size = situation.teacher.model.preprocessing.size
    epochs = max(1, epochs_for(options, images) // EPOCHS_SHARE)
    config: dict[str, JsonValue] = train_config(options, epochs=epochs, fresh=True, size=size, images=images)
    config = {name: value for name, value in config.items() if name not in ("objective", "objectives")} | loss
    config |= {"lr": (options.lr or DEFAULT_LR) / LR_SHARE, "warmup_epochs": 0}
    return [draft.add(f"{quantized}-qat", "qat", config, {"model": quantized, **taught})]


def _reads_logits(kind: type[Objective[Any]]) -> bool:
    return not (kind.needs | kind.needs_of_teacher) & TAPPED


def _on_a_grid(label: str, options: Options) -> bool:
    return options.weight_bits is not None and label.endswith(f"-w{options.weight_bits}")
