"""The branches that train: a searched student that is distilled and pruned, and the pruned teacher that recovers."""

from __future__ import annotations

from edgekd.data.dataset import Dataset
from edgekd.pipeline.assembled import LABEL, draft_assembled
from edgekd.pipeline.draft import TEACHER, Draft
from edgekd.pipeline.few_bits import draft_few_bits
from edgekd.pipeline.pruning import Recover, check_importance, draft_pruned
from edgekd.pipeline.request import Options, Request
from edgekd.pipeline.search import draft_search, leaves_room, space_of
from edgekd.pipeline.situation import Situation
from edgekd.pipeline.teaching import objective_names, taught_by, trained_images, training_of

MIN_TRAINING_IMAGES = 200
"""Below this a student from random weights learns nothing worth deploying; the pruned teacher still may."""
DEFAULT_TEACHER_KEEP, DEFAULT_STUDENT_KEEP = 0.5, 0.75


def draft_students(draft: Draft, request: Request, options: Options, situation: Situation) -> list[tuple[str, str]]:
    """Adds the training branches; returns (label, node) of each trained TORCH model, intermediate ones included."""
    dataset = situation.dataset
    if dataset is None or not options.students:
        return []
    check_importance(options, dataset)
    models: list[tuple[str, str]] = []
    if "search" in options.students:
        models += _draft_search_branches(draft, request, options, situation, dataset)
    if "prune" in options.students:
        models += _draft_teacher_branch(draft, request, options, situation, dataset)
    if "blocks" in options.students:
        models += _draft_assembled_branch(draft, request, options, situation, dataset)
    return models


def _draft_search_branches(
    draft: Draft, request: Request, options: Options, situation: Situation, dataset: Dataset
) -> list[tuple[str, str]]:
    images = trained_images(dataset, objective_names(options))
    if images < MIN_TRAINING_IMAGES:
        draft.say(
            f"No student is searched: it would start from random weights, and {images} training images are too few "
            f"for that (at least {MIN_TRAINING_IMAGES})."
        )
        return []
    space = space_of(options, situation)
    if not leaves_room(space, situation):
        draft.say(f"No student is searched: the teacher is hardly larger than the smallest network of {space!r}.")
        return []
    picks = draft_search(draft, request, options, situation)
    models: list[tuple[str, str]] = []
    for picked in picks:
        models += _draft_student(draft, request, options, situation, dataset, picked.replace("pick", "student"), picked)
    return models


def _draft_student(
    draft: Draft,
    request: Request,
    options: Options,
    situation: Situation,
    dataset: Dataset,
    label: str,
    picked: str,
) -> list[tuple[str, str]]:
    """distill -> prune -> recover of one searched student; the distilled one stays a candidate beside the pruned."""
    distilled = _train(draft, options, situation, dataset, f"{label}-distill", picked, fresh=True)
    models = [(label, distilled)]
    keep = options.prune_keep or DEFAULT_STUDENT_KEEP
    if keep < 1:
        models += draft_pruned(
            draft,
            request,
            options,
            situation,
            label=label,
            model=distilled,
            keep=keep,
            asked=options.prune_keep is not None,
            budgeted=False,
            images=trained_images(dataset, objective_names(options)),
            recover=_recovery(draft, options, situation, dataset),
        )
    return [*models, *draft_few_bits(draft, options, situation, dataset, label, models[-1][1])]


def _draft_teacher_branch(
    draft: Draft, request: Request, options: Options, situation: Situation, dataset: Dataset
) -> list[tuple[str, str]]:
    if not situation.trainable:
        draft.say(
            "The teacher is not pruned: its program could not be rebuilt into trainable layers, so it serves as "
            "teacher and for post-training stages only."
        )
        return []
    models = draft_pruned(
        draft,
        request,
        options,
        situation,
        label="teacher",
        model=TEACHER,
        keep=options.teacher_keep or DEFAULT_TEACHER_KEEP,
        asked=options.teacher_keep is not None,
        budgeted=options.teacher_keep is None,
        images=len(dataset.train),
        recover=_recovery(draft, options, situation, dataset),
    )
    return [*models, *draft_few_bits(draft, options, situation, dataset, "teacher", models[-1][1])]


def _draft_assembled_branch(
    draft: Draft, request: Request, options: Options, situation: Situation, dataset: Dataset
) -> list[tuple[str, str]]:
    assembled = draft_assembled(draft, request, options, situation)
    if assembled is None:
        return []
    trained = _train(draft, options, situation, dataset, f"{LABEL}-distill", assembled, fresh=False)
    return [(LABEL, trained), *draft_few_bits(draft, options, situation, dataset, LABEL, trained)]


def _recovery(draft: Draft, options: Options, situation: Situation, dataset: Dataset) -> Recover:
    def recover(name: str, model: str, epochs: int) -> str:
        config = training_of(options, situation, dataset, fresh=False) | {"epochs": epochs}
        return draft.add(name, "distill", config, {"student": model, **taught_by(draft)})

    return recover


def _train(
    draft: Draft, options: Options, situation: Situation, dataset: Dataset, name: str, student: str, *, fresh: bool
) -> str:
    config = training_of(options, situation, dataset, fresh=fresh)
    return draft.add(name, "distill", config, {"student": student, **taught_by(draft)})
