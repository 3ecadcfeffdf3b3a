"""The branches that train: a searched student that is distilled and pruned, and the pruned teacher that recovers."""

from __future__ import annotations

from pydantic import JsonValue

from edgekd.data.dataset import Dataset
from edgekd.errors import UserError
from edgekd.nn.build import module_from_recipe
from edgekd.nn.count import count_macs
from edgekd.pipeline.draft import TEACHER, Draft
from edgekd.pipeline.request import Options, Request
from edgekd.pipeline.situation import Situation
from edgekd.pipeline.training import epochs_for, recover_epochs_for, train_config
from edgekd.search.space import SPACES, Task
from edgekd.targets.latency import latency_model_from_target
from edgekd.targets.schema import Precision
from edgekd.train.objective import OBJECTIVES, TAPPED
from edgekd.train.student import check_teacher_can_be_tapped

SMALL_IMAGE_PX = 64
LATENCY_MODEL = "latency-model"
ANSWERS = "teacher-answers"
TEACHER_ENGINE = "teacher-fp32"
"""The exported teacher, which every graph has."""
MIN_TRAINING_IMAGES = 200
"""Below this a student from random weights learns nothing worth deploying; the pruned teacher still may."""
DEFAULT_TEACHER_KEEP = 0.5
LARGEST_SHARE = 0.25
"""Without a latency budget students cost at most this share of the teacher (`SearchConfig.teacher_share`)."""


def draft_students(draft: Draft, request: Request, options: Options, situation: Situation) -> list[tuple[str, str]]:
    """Adds the training branches; returns (label, node) of each trained TORCH model, intermediate ones included."""
    dataset = situation.dataset
    if dataset is None or not options.students:
        return []
    objective = OBJECTIVES.get(options.objective)
    check_teacher_can_be_tapped(objective, situation.teacher.model)
    if not dataset.labelled and objective.needs_labels:
        free = ", ".join(name for name in OBJECTIVES if not OBJECTIVES.get(name).needs_labels)
        raise UserError(
            f"The objective {options.objective!r} needs labels, and {request.data} has none.",
            hint=f"use an objective that does not need labels: --objective {free.split(', ')[0]} (known: {free})",
        )
    _draft_answers(draft, options, situation, dataset)
    models: list[tuple[str, str]] = []
    if "search" in options.students:
        models += _draft_search_branches(draft, request, options, situation, dataset)
    if "prune" in options.students:
        models += _draft_teacher_branch(draft, request, options, situation, dataset)
    return models


def _draft_search_branches(
    draft: Draft, request: Request, options: Options, situation: Situation, dataset: Dataset
) -> list[tuple[str, str]]:
    images = len(dataset.train)
    if images < MIN_TRAINING_IMAGES:
        draft.say(
            f"No student is searched: it would start from random weights, and {images} training images are too few "
            f"for that (at least {MIN_TRAINING_IMAGES})."
        )
        return []
    space = options.space or (
        "residual" if min(situation.teacher.model.preprocessing.size) <= SMALL_IMAGE_PX else "inverted"
    )
    if not _leaves_room(space, situation):
        draft.say(f"No student is searched: the teacher is hardly larger than the smallest network of {space!r}.")
        return []
    latency_model = _latency_model(draft, options, situation)
    config = _search_config(space, request, options, situation)
    search = draft.add("search", "search", config, {"teacher": TEACHER, "latency_model": latency_model})
    models: list[tuple[str, str]] = []
    for rank in range(options.picks):
        suffix = "" if options.picks == 1 else f"-{rank + 1}"
        picked = draft.add(f"pick{suffix}", "pick", {"rank": rank}, {"search": search})
        models += _draft_student(draft, options, situation, dataset, f"student{suffix}", picked)
    return models


def _leaves_room(name: str, situation: Situation) -> bool:
    """Whether the space holds anything clearly cheaper than the teacher, by multiply-accumulates."""
    recipe = situation.teacher.model
    task = Task(
        preprocessing=recipe.preprocessing,
        labels=recipe.labels,
        classes=int(situation.teacher.outputs[0].shape[-1]),
        channel_multiple=situation.target.channel_multiple,
    )
    space = SPACES.get(name)(task)
    smallest = count_macs(module_from_recipe(space.recipe(space.cheapest)), recipe.preprocessing.input_shape)
    return smallest <= LARGEST_SHARE * situation.teacher_macs


def _search_config(space: str, request: Request, options: Options, situation: Situation) -> dict[str, JsonValue]:
    config: dict[str, JsonValue] = {
        "space": space,
        "budget_ms": request.budget.max_latency_ms,
        "precision": _precision(options, situation),
        "evaluations": options.evaluations,
        "picks": options.picks,
        "channel_multiple": situation.target.channel_multiple,
    }
    if options.proxy is not None:
        config["proxy"] = options.proxy
    if not situation.measured:
        config["latency_model"] = latency_model_from_target(situation.target).plain()
    return config


def _latency_model(draft: Draft, options: Options, situation: Situation) -> str | None:
    """The node that fits the latency model of this machine, added once; None where the target's card predicts."""
    if situation.measured and not any(node.name == LATENCY_MODEL for node in draft.nodes):
        draft.add(LATENCY_MODEL, "latency-model", {"threads": options.threads[0]})
    return LATENCY_MODEL if situation.measured else None


def _precision(options: Options, situation: Situation) -> Precision:
    """The precision that students will most likely be deployed in; INT8 only where a measurement can choose it."""
    wanted: tuple[Precision, ...] = ("int8",) if situation.measured else ("fp16",)
    return next((p for p in wanted if p in options.precisions and situation.runs(p)), "fp32")


def _draft_student(
    draft: Draft, options: Options, situation: Situation, dataset: Dataset, label: str, picked: str
) -> list[tuple[str, str]]:
    """distill -> prune -> recover of one searched student; the distilled one stays a candidate beside the pruned."""
    distilled = _train(draft, options, situation, dataset, f"{label}-distill", picked, fresh=True)
    models = [(label, distilled)]
    last = distilled
    if options.prune_keep < 1:
        pruned = _prune(draft, situation, f"{label}-prune", distilled, options.prune_keep)
        last = _train(draft, options, situation, dataset, f"{label}-recover", pruned, fresh=False)
        models.append((f"{label}-pruned", last))
    return [*models, *_draft_quantized(draft, options, situation, dataset, label, last)]


def _draft_teacher_branch(
    draft: Draft, request: Request, options: Options, situation: Situation, dataset: Dataset
) -> list[tuple[str, str]]:
    if not situation.trainable:
        draft.say(
            "The teacher is not pruned: its program could not be rebuilt into trainable layers, so it serves as "
            "teacher and for post-training stages only."
        )
        return []
    config: dict[str, JsonValue] = {
        "macs_keep": options.teacher_keep or DEFAULT_TEACHER_KEEP,
        "channel_multiple": situation.target.channel_multiple,
    }
    latency_model = None
    if options.teacher_keep is None and request.budget.max_latency_ms is not None:
        latency_model = _latency_model(draft, options, situation)
        config |= {"budget_ms": request.budget.max_latency_ms, "precision": _precision(options, situation)}
        if latency_model is None:
            config["latency_model"] = latency_model_from_target(situation.target).plain()
    pruned = draft.add("teacher-prune", "prune", config, {"model": TEACHER, "latency_model": latency_model})
    recovered = _train(draft, options, situation, dataset, "teacher-recover", pruned, fresh=False)
    models = [("teacher-pruned", recovered)]
    return [*models, *_draft_quantized(draft, options, situation, dataset, "teacher", recovered)]


def _draft_quantized(
    draft: Draft, options: Options, situation: Situation, dataset: Dataset, label: str, model: str
) -> list[tuple[str, str]]:
    """Quantized distillation as the last training stage of a branch, when asked for."""
    if options.weight_bits is None:
        return []
    config = _train_config(options, situation, dataset, fresh=False) | {"bits": options.weight_bits}
    name = draft.add(
        f"{label}-qd{options.weight_bits}", "quantized-distill", config, {"student": model, **_teachers(draft)}
    )
    return [(f"{label}-w{options.weight_bits}", name)]


def _prune(draft: Draft, situation: Situation, name: str, model: str, keep: float) -> str:
    config: dict[str, JsonValue] = {"macs_keep": keep, "channel_multiple": situation.target.channel_multiple}
    return draft.add(name, "prune", config, {"model": model})


def _train(
    draft: Draft, options: Options, situation: Situation, dataset: Dataset, name: str, student: str, *, fresh: bool
) -> str:
    config = _train_config(options, situation, dataset, fresh=fresh)
    return draft.add(name, "distill", config, {"student": student, **_teachers(draft)})


def _draft_answers(draft: Draft, options: Options, situation: Situation, dataset: Dataset) -> None:
    """Asks the teacher once for all branches, where the objective needs nothing but its logits."""
    if OBJECTIVES.get(options.objective).needs & TAPPED:
        draft.say(f"The objective {options.objective!r} looks inside the teacher, so each branch runs it anew.")
        return
    config = _train_config(options, situation, dataset, fresh=True)
    shared = {"views": config["teacher_views"], "augment": config["augment"]}
    draft.add(ANSWERS, "teach", shared, {"teacher": TEACHER_ENGINE})


def _teachers(draft: Draft) -> dict[str, str | None]:
    """The ports of a training that teach: the network, and its stored answers if there are any."""
    stored = any(node.name == ANSWERS for node in draft.nodes)
    return {"teacher": TEACHER, "answers": ANSWERS if stored else None}


def _train_config(options: Options, situation: Situation, dataset: Dataset, *, fresh: bool) -> dict[str, JsonValue]:
    images = len(dataset.train)
    epochs = epochs_for(options, images) if fresh else recover_epochs_for(options, images)
    return train_config(
        options,
        epochs=epochs,
        fresh=fresh,
        size=situation.teacher.model.preprocessing.size,
        images=images,
    )
