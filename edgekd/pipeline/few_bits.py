"""Weights of few bits: the training that puts them on levels, and the graph that stores them as codes.

Both only where `--weight-bits` asks for them. The graph with codes computes what the FP32 graph of the same weights
does, at the same speed; it is a candidate for its size.
"""

from __future__ import annotations

from pydantic import JsonValue

from edgekd.data.dataset import Dataset
from edgekd.errors import UserError
from edgekd.pipeline.converted import Candidate
from edgekd.pipeline.draft import Draft
from edgekd.pipeline.request import Options
from edgekd.pipeline.situation import Situation, saturates
from edgekd.pipeline.teaching import fitting_loss, taught_by, training_of

CODEBOOK = "codebook"
LEARNED = "differentiable-quantize"
ON_LEVELS = frozenset({"quantized-distill", LEARNED})
"""Stages whose weights have codes."""
READ_IN = ("onnxruntime", "openvino", "ort-web-node", "ort-web-browser")
"""Runtimes in which graphs with codes were run, in every form. TensorRT is not among them: nobody here has tried."""
LEVEL_EPOCHS, LEVEL_EPOCHS_BELOW_4_BITS = 10, 20
"""Most epochs of a training of levels, as the authors have it at 4 and at 2 bits: there are few values to find."""


def check_weight_levels(options: Options) -> None:
    """Raises a `UserError` when levels are chosen for weights that have all their bits."""
    if options.weight_levels is not None and options.weight_bits is None:
        raise UserError(
            f"--weight-levels {options.weight_levels} says on which levels weights of few bits lie, and none are asked "
            "for.",
            hint="add --weight-bits 4, for example",
        )


def draft_few_bits(
    draft: Draft, options: Options, situation: Situation, dataset: Dataset, label: str, model: str
) -> list[tuple[str, str]]:
    """The last training stage of a branch, when asked for: its weights come to lie on levels.

    Args:
        label: Of the branch.
        model: Node of its last model, which stays a candidate.

    Returns:
        (label, node) of the model with few bits, or nothing.
    """
    if options.weight_bits is None:
        return []
    why = "rewrites the last layer after a training, and weights of few bits lie on a grid"
    loss = fitting_loss(draft, options, lambda kind: not kind.concludes, why)
    learned = options.weight_levels == "learned"
    plain = _learning(options, situation, dataset) if learned else training_of(options, situation, dataset, fresh=False)
    config = {name: value for name, value in plain.items() if name not in ("objective", "objectives")} | loss
    config["bits"] = options.weight_bits
    if options.weight_levels == "bucket":
        config["granularity"] = "bucket"
    elif not learned and options.weight_bits == 8 and saturates(situation.target):
        config["reduce_range"] = True  # as INT8 will: another range would round the weights a second time
    node, stage = ("dq", LEARNED) if learned else ("qd", "quantized-distill")
    name = draft.add(f"{label}-{node}{options.weight_bits}", stage, config, {"student": model, **taught_by(draft)})
    return [(f"{label}-w{options.weight_bits}", name)]


def draft_codebook(draft: Draft, situation: Situation, label: str, model: str, exported: str) -> list[Candidate]:
    """The graph that stores its weights as codes, beside the FP32 graph of a model on levels; nothing for others.

    Args:
        label: Of the model.
        model: Node of the TORCH bundle.
        exported: Node of its FP32 graph.
    """
    if not any(node.name == model and node.stage in ON_LEVELS for node in draft.nodes):
        return []
    listed = tuple(support.runtime for support in situation.graph_runtimes if "fp32" in support.precisions)
    runtimes = tuple(runtime for runtime in listed if runtime in READ_IN)
    if not runtimes or (not situation.measured and listed[0] not in READ_IN):  # unmeasured, the first one is deployed
        names = ", ".join(support.runtime for support in situation.runtimes)
        sentence = (
            f"Weights of few bits are stored in full: what {situation.target.name} would run them in ({names}) is not "
            "known to read a graph with codes."
        )
        if sentence not in draft.decisions:
            draft.say(sentence)
        return []
    name = draft.add(f"{label}-{CODEBOOK}", CODEBOOK, {}, {"model": exported, "weights": model})
    return [Candidate(node=name, runtimes=runtimes)]


def _learning(options: Options, situation: Situation, dataset: Dataset) -> dict[str, JsonValue]:
    """Config of a training of levels: shorter, and at the learning rate of its stage, which has another unit."""
    config = training_of(options, situation, dataset, fresh=False)
    del config["lr"]
    if options.recover_epochs is None:
        few = (options.weight_bits or 0) < 4
        most = LEVEL_EPOCHS_BELOW_4_BITS if few else LEVEL_EPOCHS
        config["epochs"] = min(int(str(config["epochs"])), most)
    return config
