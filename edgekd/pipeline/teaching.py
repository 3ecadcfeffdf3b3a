"""What teaches in a graph, drafted once for all of its trainings: answers, stored logits, images from a pool."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pydantic import JsonValue

from edgekd.data.dataset import Dataset
from edgekd.errors import UserError
from edgekd.pipeline.draft import TEACHER, Draft
from edgekd.pipeline.request import Options, Request
from edgekd.pipeline.situation import Situation
from edgekd.pipeline.training import epochs_for, loss_of, recover_epochs_for, train_config, with_stored_logits
from edgekd.train.objective import OBJECTIVES, TAPPED, Objective, Signal, label_free_objectives
from edgekd.train.teachers import check_teacher_can_be_tapped
from edgekd.train.terms import TermConfig, terms_from_text

ANSWERS = "teacher-answers"
GATHERED = "gathered"
LOGITS, STORED = "teacher-logits", "stored-logits"
MOST_ANSWERS_MIB = 1024
"""Of the teacher's inner signals; maps of many images are large, and what does not fit is asked for again."""
PLAIN = "kd"
"""What takes the place of objectives that do not fit."""
TEACHER_ENGINE = "teacher-fp32"
"""The exported teacher, which every graph has."""


def draft_teaching(draft: Draft, request: Request, options: Options, situation: Situation) -> Options:
    """Adds what the trainings learn from and returns the options under which they do.

    Raises:
        UserError: Objectives, data and teacher do not go together.
    """
    dataset = situation.dataset
    if dataset is None:
        if request.teacher_logits is not None:
            raise UserError("Stored logits are of training images, and there are none.", hint="--data FOLDER_OR_NPZ")
        return options
    if not options.students and options.quantize != "qat":
        if dataset.pool is not None:
            draft.say("Nothing is trained, so the images of --unlabelled are not looked at.")
        return options
    options = _check_teaching(draft, request, options, situation, dataset)
    if request.teacher_logits is not None:
        _draft_stored_logits(draft, request.teacher_logits, options, situation, dataset)
        return options
    if dataset.pool is not None:
        draft.add(GATHERED, "gather", gathering(objective_names(options)), {"teacher": TEACHER_ENGINE})
    if options.students:
        _draft_answers(draft, options, situation, dataset)
    return options


def _check_teaching(
    draft: Draft, request: Request, options: Options, situation: Situation, dataset: Dataset
) -> Options:
    """The options of all trainings, when the objectives, the data and the teacher go together.

    Raises:
        UserError: They do not.
    """
    kinds = [OBJECTIVES.get(term.name) for term in terms_from_text(options.objective)]
    for kind in kinds:
        if kind.needs_teacher and request.teacher_logits is None:
            check_teacher_can_be_tapped(kind, situation.teacher.model)
    free = label_free_objectives()
    if not dataset.labelled and (any(k.needs_labels for k in kinds) or not any(k.name in free for k in kinds)):
        raise UserError(
            f"The objective {options.objective!r} needs labels, and {request.data} has none.",
            hint=f"use an objective that does not need labels: --objective {free[0]} (known: {', '.join(free)})",
        )
    if options.hard_augment and not any(kind.needs_teacher for kind in kinds):
        raise UserError(
            "--hard-augment varies images by how far student and teacher disagree on them, and the objective "
            f"{options.objective!r} asks no teacher.",
            hint="use an objective with a teacher: --objective kd, for example; or leave out --hard-augment",
        )
    if request.teacher_logits is None:
        return options
    if dataset.pool is not None:
        raise UserError(
            "Stored logits are of the training images alone, and --unlabelled adds others.",
            hint="leave out --unlabelled, or --teacher-logits",
        )
    if moving := [kind.name for kind in kinds if kind.trains_teacher]:
        raise UserError(
            f"The objective {moving[0]!r} trains the teacher along, and there are only its logits.",
            hint="leave out --teacher-logits, or use an objective that takes a teacher as it is: --objective bdkd",
        )
    if inner := [kind.name for kind in kinds if kind.needs_of_teacher & TAPPED]:
        raise UserError(
            f"The objective {inner[0]!r} reads the inside of a teacher, and there are only its logits.",
            hint="use one that reads logits: --objective kd, for example",
        )
    options, said = with_stored_logits(options, request.teacher_logits)
    draft.say(said)
    return options


def _draft_answers(draft: Draft, options: Options, situation: Situation, dataset: Dataset) -> None:
    """Asks the teacher once for all branches: its graph for logits, the network for what is inside of it."""
    kinds = [OBJECTIVES.get(term.name) for term in terms_from_text(options.objective)]
    if not any(kind.needs_teacher for kind in kinds):
        draft.say(f"The objective {options.objective!r} needs no teacher, so none is asked.")
        return
    if any(kind.trains_teacher for kind in kinds):
        draft.say("A copy of the teacher is trained along with every student, so nothing that it says is stored.")
        return
    if options.hard_augment:
        draft.say("The teacher is asked in each step of a training: --hard-augment varies the images anew every time.")
        return
    config = training_of(options, situation, dataset, fresh=True)
    shared: dict[str, JsonValue] = {"views": config["teacher_views"], "augment": config["augment"]}
    inner = sorted(frozenset().union(*(kind.needs_of_teacher for kind in kinds)) & (TAPPED - {Signal.CLASSIFIER}))
    if inner:
        shared |= {"signals": [str(signal) for signal in inner], "capacity_mib": MOST_ANSWERS_MIB}
    draft.add(ANSWERS, "teach", shared, {"teacher": TEACHER if inner else TEACHER_ENGINE, **gathered(draft)})


def _draft_stored_logits(draft: Draft, path: str, options: Options, situation: Situation, dataset: Dataset) -> None:
    """The logits of a file in the place of what the teacher would be asked."""
    augment = training_of(options, situation, dataset, fresh=True)["augment"]
    pixels = situation.teacher.model.preprocessing.plain()
    draft.add(LOGITS, STORED, {"path": path, "preprocessing": pixels, "augment": augment})


def taught_by(draft: Draft) -> dict[str, str | None]:
    """The ports of a training that teach: the network, its stored answers and what it gathered, if there are any.

    Where another teacher's logits are given, they alone teach: the model is then no teacher.
    """
    names = {node.name for node in draft.nodes}
    if LOGITS in names:
        return {"answers": LOGITS}
    return {"teacher": TEACHER, "answers": ANSWERS if ANSWERS in names else None, **gathered(draft)}


def gathered(draft: Draft) -> dict[str, str | None]:
    """The port of what was gathered from a pool, where there is one."""
    return {"pool": GATHERED} if any(node.name == GATHERED for node in draft.nodes) else {}


def objective_names(options: Options) -> tuple[str, ...]:
    """The objectives of the trainings."""
    return tuple(term.name for term in terms_from_text(options.objective))


def fitting_loss(
    draft: Draft, options: Options, fits: Callable[[type[Objective[Any]]], bool], why: str
) -> dict[str, JsonValue]:
    """The fields that spell those objectives that fit a training; what is left out is said once.

    Args:
        draft: Is told.
        options: With the objectives.
        fits: Whether one does.
        why: What the others do that the training cannot have, as a part of a sentence.
    """
    terms = terms_from_text(options.objective)
    kept = [term for term in terms if fits(OBJECTIVES.get(term.name))]
    if len(kept) == len(terms):
        return loss_of(terms)
    uses = " + ".join(term.name for term in kept) or PLAIN
    said = f"The objective {options.objective!r} {why}, so it uses {uses}."
    if said not in draft.decisions:
        draft.say(said)
    return loss_of(kept or (TermConfig(name=PLAIN),))


def gathering(objectives: Sequence[str]) -> dict[str, JsonValue]:
    """Config of a gather node whose images suit these objectives.

    Where one of them wants the images without a label, and all can do without, they get none. Balance and certainty are
    then no matter either: what the teacher says of an image is taken as a whole, so all are taken but those of which it
    is less sure than of any image of the task.
    """
    kinds = [OBJECTIVES.get(name) for name in objectives]
    if any(kind.pool_labels == "none" for kind in kinds) and all(kind.takes_unlabelled for kind in kinds):
        return {"labels": "none", "sure_as": 0.0, "per_class": None}
    return {}


def trained_images(dataset: Dataset, objectives: Sequence[str]) -> int:
    """Training images, with the pool where nearly all of it is gathered; epochs and batches follow from them."""
    own = len(dataset.train)
    return own + len(dataset.pool) if dataset.pool is not None and gathering(objectives) else own


def training_of(options: Options, situation: Situation, dataset: Dataset, *, fresh: bool) -> dict[str, JsonValue]:
    """Config of a training in this situation; views and augmentation are those of all trainings.

    Args:
        fresh: The student starts from random weights; otherwise it recovers, for fewer epochs.
    """
    images = trained_images(dataset, objective_names(options))
    epochs = epochs_for(options, images) if fresh else recover_epochs_for(options, images)
    size = situation.teacher.model.preprocessing.size
    return train_config(options, epochs=epochs, fresh=fresh, size=size, images=images)
