"""Quantization-aware training in the graph: a trained twin beside every calibrated INT8 engine, when asked for."""

from __future__ import annotations

from pydantic import JsonValue

from edgekd.pipeline.draft import Draft
from edgekd.pipeline.request import Options
from edgekd.pipeline.situation import Situation
from edgekd.pipeline.teaching import taught_by
from edgekd.pipeline.training import DEFAULT_LR, epochs_for, loss_of, train_config
from edgekd.train.objective import OBJECTIVES, TAPPED
from edgekd.train.terms import TermConfig, terms_from_text

EPOCHS_SHARE = 10
"""A tenth of the epochs of a whole training, at a hundredth of its learning rate: the usual length."""
LR_SHARE = 100
PLAIN = "kd"


def draft_qat(draft: Draft, options: Options, situation: Situation, label: str, quantized: str) -> list[str]:
    """Adds the trained twin of a calibrated engine and returns its node; nothing where nothing is to be trained.

    Args:
        label: Of the model; one whose weights lie on the grid of `--weight-bits` is left as it is.
        quantized: The quantize node.
    """
    dataset = situation.dataset
    if options.quantize != "qat" or dataset is None or _on_a_grid(label, options):
        return []
    images, taught = len(dataset.train), taught_by(draft)
    loss = _loss(draft, options)
    size = situation.teacher.model.preprocessing.size
    epochs = max(1, epochs_for(options, images) // EPOCHS_SHARE)
    config: dict[str, JsonValue] = train_config(options, epochs=epochs, fresh=True, size=size, images=images)
    config = {name: value for name, value in config.items() if name not in ("objective", "objectives")} | loss
    config |= {"lr": (options.lr or DEFAULT_LR) / LR_SHARE, "warmup_epochs": 0}
    return [draft.add(f"{quantized}-qat", "qat", config, {"model": quantized, **taught})]


def _loss(draft: Draft, options: Options) -> dict[str, JsonValue]:
    """The objectives that read logits alone, and what is said of the others."""
    terms = terms_from_text(options.objective)
    kinds = {term.name: OBJECTIVES.get(term.name) for term in terms}
    outer = [term for term in terms if not (kinds[term.name].needs | kinds[term.name].needs_of_teacher) & TAPPED]
    if len(outer) == len(terms):
        return loss_of(terms)
    uses = " + ".join(term.name for term in outer) or PLAIN
    said = f"The objective {options.objective!r} looks inside the networks, and qat trains graphs, so it uses {uses}."
    if said not in draft.decisions:
        draft.say(said)
    return loss_of(outer or (TermConfig(name=PLAIN),))


def _on_a_grid(label: str, options: Options) -> bool:
    return options.weight_bits is not None and label.endswith(f"-w{options.weight_bits}")
