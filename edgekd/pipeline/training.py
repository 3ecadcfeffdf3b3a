"""Training schedules from an effort and a data set: how many epochs, which learning rate, which augmentation.

Effort counts images seen, not epochs, so that "standard" takes about the same time on small and on large sets.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import JsonValue

from edgekd.distill.teacher_file_stage import read_logits
from edgekd.errors import UserError
from edgekd.pipeline.request import Effort, Options
from edgekd.train.objective import OBJECTIVES
from edgekd.train.terms import TermConfig, terms_from_text

IMAGES_SEEN: dict[Effort, int] = {"quick": 100_000, "standard": 1_000_000, "thorough": 5_000_000}
MAX_EPOCHS = 240
DEFAULT_LR = 0.1


def epochs_for(options: Options, images: int) -> int:
    """Epochs over `images` training images, at least 2 and at most 240 (the CIFAR recipe's length)."""
    if options.epochs is not None:
        return options.epochs
    return max(2, min(MAX_EPOCHS, round(IMAGES_SEEN[options.effort] / max(1, images))))


def recover_epochs_for(options: Options, images: int) -> int:
    """Epochs after pruning: half of a full training unless asked otherwise."""
    return options.recover_epochs or max(1, epochs_for(options, images) // 2)


def train_config(
    options: Options, *, epochs: int, fresh: bool, size: tuple[int, int], images: int
) -> dict[str, JsonValue]:
    """Config of a distill node.

    Args:
        epochs: Length of this training.
        fresh: The student starts from random weights; otherwise from trained ones, with a fifth of the learning rate.
        size: (H, W) of the input, pixels; small images are padded and cropped, photographs cropped at random scale.
        images: Size of the training set, which bounds the batch.
    """
    terms = terms_from_text(options.objective)
    live = options.hard_augment or trains_teacher(term.name for term in terms)
    peak = options.lr or DEFAULT_LR
    small = min(size) <= 64
    return {
        "epochs": epochs,
        "batch_size": min(options.batch_size, max(2, images // 4)),
        "lr": peak if fresh else peak / 5,
        "warmup_epochs": 1 if fresh and epochs >= 5 else 0,
        **loss_of(terms),
        "teacher_views": 0 if live else options.teacher_views,
        "hard": options.hard_augment,
        "augment": {
            "pad_px": min(size) // 8 if small else 0,
            "flip": options.flip,
            "crop_scale_min": 1.0 if small else 0.25,
        }
        if options.augment
        else {},
    }


def trains_teacher(objectives: Iterable[str]) -> bool:
    """Whether one of the objectives trains the teacher along, so that no answer of it can be kept.

    Raises:
        UserError: There is no such objective.
    """
    return any(OBJECTIVES.get(name).trains_teacher for name in objectives)


def loss_of(terms: Sequence[TermConfig]) -> dict[str, JsonValue]:
    """The fields of a training's config that spell these terms: the short form where it says everything."""
    if len(terms) == 1 and terms[0].weight is None:
        return {"objective": terms[0].name}
    plain: list[JsonValue] = [
        {"name": term.name} | ({} if term.weight is None else {"weight": term.weight}) for term in terms
    ]
    return {"objectives": plain}


def with_stored_logits(options: Options, path: str) -> tuple[Options, str]:
    """The options under which images look as they did when the logits of a file were computed, and a sentence on it.

    Raises:
        UserError: No such file, or no logits in it.
    """
    if not Path(path).is_file():
        raise UserError(f"No such file: {path}.", hint="--teacher-logits takes a .npy or .npz file")
    views = len(read_logits(Path(path))[0])
    if options.hard_augment:
        raise UserError(
            "--hard-augment varies images anew in each step, and stored logits belong to certain images.",
            hint="leave out --hard-augment, or give a teacher that can be run",
        )
    if views == 1:
        said = "The stored logits are of the training images as they are, so no training varies them."
        return options.model_copy(update={"teacher_views": 1, "augment": False}), said
    said = f"The stored logits are of {views} views of the training images, which every training shows in turn."
    return options.model_copy(update={"teacher_views": views}), said
