"""The branch that puts a student together from the teacher's blocks and cheaper ones that were trained in their place.

block-library -> assemble, and then a distillation like that of a pruned network
"""

from __future__ import annotations

from pydantic import JsonValue

from edgekd.errors import UserError
from edgekd.nn.build import module_from_recipe
from edgekd.pipeline.draft import TEACHER, Draft
from edgekd.pipeline.request import Options, Request
from edgekd.pipeline.search import draft_latency_model, expected_precision
from edgekd.pipeline.situation import Situation
from edgekd.search.blocks.chain import find_blocks
from edgekd.targets.latency import latency_model_from_target

LABEL = "assembled"


def draft_assembled(draft: Draft, request: Request, options: Options, situation: Situation) -> str | None:
    """Adds the nodes that make the student and returns the last one; None, with a reason, where none can be made."""
    reason = _obstacle(situation)
    if reason:
        draft.say(f"No student is assembled of blocks: {reason}")
        return None
    library = draft.add(
        "block-library", "block-library", {"channel_multiple": situation.target.channel_multiple}, {"teacher": TEACHER}
    )
    config: dict[str, JsonValue] = {
        "budget_ms": request.budget.max_latency_ms,
        "precision": expected_precision(options, situation),
    }
    latency_model = draft_latency_model(draft, options, situation)
    if latency_model is None:
        config["latency_model"] = latency_model_from_target(situation.target).plain()
    return draft.add(
        "assemble", "assemble", config, {"teacher": TEACHER, "library": library, "latency_model": latency_model}
    )


def _obstacle(situation: Situation) -> str:
    """Why the teacher has no blocks to replace, empty where it has some."""
    recipe = situation.teacher.model
    if not situation.trainable:
        return "the teacher's program could not be rebuilt into trainable layers."
    if recipe.builder == "program":
        return ""  # only its file can tell, and the stage reads that
    try:
        find_blocks(module_from_recipe(recipe), recipe.preprocessing.input_shape)
    except UserError as err:
        return err.message
    return ""
