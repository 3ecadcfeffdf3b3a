"""The part of a branch that prunes: one cut and its recovery, or several of both, each a node that can be reused.

Iterative pruning is repeated nodes and no stage of its own: every round is resumed, reported and reused by itself, and
a recipe can give each round a config of its own.
"""

from __future__ import annotations

from collections.abc import Callable

from pydantic import JsonValue

from edgekd.data.dataset import Dataset
from edgekd.errors import UserError
from edgekd.pipeline.draft import TEACHER, Draft
from edgekd.pipeline.engines import best_opset
from edgekd.pipeline.request import Options, Request
from edgekd.pipeline.search import draft_latency_model, expected_precision
from edgekd.pipeline.situation import Situation
from edgekd.pipeline.training import recover_epochs_for
from edgekd.prune.config import PruneConfig
from edgekd.prune.importance import Need, importances_without, needs_of
from edgekd.targets.latency import latency_model_from_target
from edgekd.targets.schema import Precision, Target

LATENCY_TABLE = "latency-table"
Recover = Callable[[str, str, int], str]
"""(name, model, epochs) to the node of a training that starts from trained weights."""


def check_importance(options: Options, dataset: Dataset) -> None:
    """Raises a `UserError` where the importance needs labels that the data does not have, or has an unknown name."""
    if Need.LABELS in needs_of(options.importance) and not dataset.labelled:
        free = importances_without(frozenset({Need.LABELS}))
        raise UserError(
            f"The importance {options.importance!r} needs labels, and the data has none.",
            hint=f"use one that needs no labels: --importance {free[-1]} (known: {', '.join(free)})",
        )


def draft_pruned(
    draft: Draft,
    request: Request,
    options: Options,
    situation: Situation,
    *,
    label: str,
    model: str,
    keep: float,
    asked: bool,
    budgeted: bool,
    images: int,
    recover: Recover,
) -> list[tuple[str, str]]:
    """(label, node) of each recovered network of `prune_rounds` rounds of pruning and recovering, the smallest last.

    Every round keeps an equal ratio of what the one before it left. The recoveries in between share the epochs of the
    last one. Each is a model that may be deployed: together they are the curve of accuracy and latency over the cut,
    and where the last cut loses too much, the one before it is there to be chosen.

    Args:
        label: Nodes are `{label}-prune`, `{label}-recover`, and for the rounds before the last `{label}-prune-1` ...;
            models are `{label}-pruned`, and `{label}-pruned-1` ... before it.
        model: Node of the network, or the teacher.
        keep: Share of the multiply-accumulates that remains after all rounds.
        asked: The user asked for this share: a network that cannot be cut so far is then left out, and else cut less.
        budgeted: Whether the cut goes on until the predicted latency keeps the request's limit.
        images: In the training split.
        recover: Adds a training.
    """
    rounds = options.prune_rounds
    config, latency_model = _config(draft, request, options, situation, budgeted=budgeted)
    steered: dict[str, str | None] = {"latency_model": latency_model}
    if options.prune_follow == "measured":
        # One table serves all rounds: widths are absolute.
        steered = {"latency_table": _draft_table(draft, options, situation, label, model, latency_model)}
    teacher = TEACHER if Need.TEACHER in needs_of(options.importance) else None
    epochs = recover_epochs_for(options, images)
    models: list[tuple[str, str]] = []
    for number in range(1, rounds + 1):
        last = number == rounds
        mark = "" if last else f"-{number}"
        shares: dict[str, JsonValue] = {"macs_keep": keep ** (1 / rounds)} | ({} if asked else {"strict": False})
        if "budget_ms" in config and rounds > 1:
            floor = PruneConfig.model_fields["macs_floor"].default
            shares |= {"rounds_left": rounds - number + 1, "macs_floor": floor ** (1 / rounds)}
        ports = {"model": model, "teacher": teacher, **steered}
        pruned = draft.add(f"{label}-prune{mark}", "prune", config | shares, ports)
        model = recover(f"{label}-recover{mark}", pruned, epochs if last else max(1, epochs // rounds))
        models.append((f"{label}-pruned{mark}", model))
    return models


def _config(
    draft: Draft, request: Request, options: Options, situation: Situation, *, budgeted: bool
) -> tuple[dict[str, JsonValue], str | None]:
    """What all rounds have in common, and the node of the latency model if one is fitted.

    Raises:
        UserError: Latencies are to be measured, and the target is not at hand.
    """
    config: dict[str, JsonValue] = {
        "channel_multiple": situation.target.channel_multiple,
        "importance": options.importance,
        "follow": options.prune_follow,
    }
    budget_ms = request.budget.max_latency_ms if budgeted else None
    if budget_ms is None and options.prune_follow == "macs":
        return config, None
    if options.prune_follow == "measured" and not (situation.measured or situation.on_board):
        raise UserError(
            f"--prune-follow measured times the network on the target, and {situation.target.name} is neither this "
            "machine nor reached over ssh.",
            hint="--device ssh://USER@BOARD reaches it; --prune-follow latency goes by a prediction",
        )
    latency_model = draft_latency_model(draft, options, situation)
    config["precision"] = expected_precision(options, situation)
    if options.prune_follow != "macs":
        config["kernel_block"] = kernel_block(situation.target)
    if budget_ms is not None:
        config["budget_ms"] = budget_ms
    if latency_model is None and options.prune_follow != "measured":
        config["latency_model"] = latency_model_from_target(situation.target).plain()
    return config, latency_model


def _draft_table(
    draft: Draft, options: Options, situation: Situation, label: str, model: str, latency_model: str | None
) -> str:
    """The node that times a network at several widths, in the form that will most likely be deployed."""
    config = table_config(situation.target, expected_precision(options, situation))
    ports = {"model": model, "latency_model": latency_model}
    return draft.add(f"{label}-{LATENCY_TABLE}", LATENCY_TABLE, config | {"threads": options.threads[0]}, ports)


def table_config(target: Target, precision: Precision) -> dict[str, JsonValue]:
    """Of a `latency-table` node: widths that a cut may end at, in the form that is deployed.

    Args:
        target: The device.
        precision: That the pruned network will be deployed in.
    """
    return {
        "precision": precision,
        "channel_multiple": target.channel_multiple,
        "opset": best_opset(target),
    }


def kernel_block(target: Target) -> int:
    """Channels that the target's kernels compute at a time.

    A 512-bit register holds 16 float32 values, and ONNX Runtime's convolutions on such CPUs take 52 to 64 channels, or
    36 to 48, in the same time (`benchmarks/width_stairs.py`). Elsewhere the card's multiple stands for it.
    """
    wide = any(feature.startswith("avx512") for feature in target.features)
    return max(16, target.channel_multiple) if wide else target.channel_multiple
