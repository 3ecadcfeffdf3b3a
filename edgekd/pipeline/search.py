"""The part of a graph that finds students: a latency model, one search, and a node for each student that goes on."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np
from pydantic import JsonValue

from edgekd.core.preprocess import Preprocessing
from edgekd.data.dataset import Dataset
from edgekd.data.sources import dataset_from_arrays
from edgekd.nn.build import module_from_recipe
from edgekd.nn.count import count_macs
from edgekd.pipeline.draft import TEACHER, Draft
from edgekd.pipeline.request import MOST_PICKS, Options, Request
from edgekd.pipeline.situation import Situation
from edgekd.search.space import SPACES, Task
from edgekd.targets.latency import latency_model_from_target
from edgekd.targets.schema import Precision

SEARCH = "search"
LATENCY_MODEL = "latency-model"
SMALL_IMAGE_PX = 64
LARGEST_SHARE = 0.25
"""Without a latency budget students cost at most this share of the teacher (`SearchConfig.teacher_share`)."""
NOISE_IMAGES = 80


def draft_search(draft: Draft, request: Request, options: Options, situation: Situation) -> list[str]:
    """Adds the search and its picks; returns the nodes of the picks, best first."""
    latency_model = draft_latency_model(draft, options, situation)
    config = _search_config(request, options, situation)
    search = draft.add(SEARCH, "search", config, {"teacher": TEACHER, "latency_model": latency_model})
    suffixes = [""] if options.picks == 1 else [f"-{rank + 1}" for rank in range(options.picks)]
    return [
        draft.add(f"pick{suffix}", "pick", {"rank": rank}, {"search": search, "teacher": TEACHER})
        for rank, suffix in enumerate(suffixes)
    ]


def space_of(options: Options, situation: Situation) -> str:
    """The space that is asked for, or the one that suits the size of the images."""
    if options.space is not None:
        return options.space
    return "residual" if min(situation.teacher.model.preprocessing.size) <= SMALL_IMAGE_PX else "inverted"


def leaves_room(name: str, situation: Situation) -> bool:
    """Whether the space holds anything clearly cheaper than the teacher, by multiply-accumulates."""
    space_type = SPACES.get(name)
    if space_type.needs_teacher:
        return True  # its students are cut out of the teacher
    recipe = situation.teacher.model
    task = Task(
        preprocessing=recipe.preprocessing,
        labels=recipe.labels,
        classes=int(situation.teacher.outputs[0].shape[-1]),
        channel_multiple=situation.target.channel_multiple,
    )
    space = space_type(task)
    smallest = count_macs(module_from_recipe(space.recipe(space.cheapest)), recipe.preprocessing.input_shape)
    return smallest <= LARGEST_SHARE * situation.teacher_macs


def draft_latency_model(draft: Draft, options: Options, situation: Situation) -> str | None:
    """The node that fits the latency model of this machine, added once; None where the target's card predicts."""
    if situation.measured and not any(node.name == LATENCY_MODEL for node in draft.nodes):
        draft.add(LATENCY_MODEL, "latency-model", {"threads": options.threads[0]})
    return LATENCY_MODEL if situation.measured else None


def expected_precision(options: Options, situation: Situation) -> Precision:
    """The precision that students will most likely be deployed in; INT8 only where a measurement can choose it."""
    runnable = [precision for precision in options.precisions if situation.reads(precision)]
    return likely_precision(runnable, measured=situation.measured)


def likely_precision(runnable: Collection[Precision], *, measured: bool) -> Precision:
    """The precision that a network will be deployed in, of those that the target runs."""
    wanted: Precision = "int8" if measured else "fp16"
    return wanted if wanted in runnable else "fp32"


def with_images(situation: Situation, seed: int) -> tuple[Situation, str | None]:
    """The situation with images to score on, and a sentence where they had to be made up."""
    if situation.dataset is not None:
        return situation, None
    noise = noise_dataset(situation.teacher.model.preprocessing, seed)
    sentence = (
        "There are no images of the task (--data): students are scored on images of noise. Rankings that only count do "
        "not look at them; others may order students differently on real images."
    )
    return replace(situation, dataset=noise), sentence


def noise_dataset(p: Preprocessing, seed: int) -> Dataset:
    """Images of uniform noise in the shape that a network expects, without labels."""
    shape = (NOISE_IMAGES, *p.size, p.channels)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return dataset_from_arrays("noise", pixels, None, seed=seed)


def _search_config(request: Request, options: Options, situation: Situation) -> dict[str, JsonValue]:
    config: dict[str, JsonValue] = {
        "space": space_of(options, situation),
        "budget_ms": request.budget.max_latency_ms,
        "precision": expected_precision(options, situation),
        "evaluations": options.evaluations,
        # As many as any run may ask for, so that another number of picks does not search anew.
        "picks": min(MOST_PICKS, options.evaluations),
        "channel_multiple": situation.target.channel_multiple,
    }
    if options.proxy is not None:
        config["proxy"] = options.proxy
    if options.searcher is not None:
        config["searcher"] = options.searcher
    if not situation.measured:
        config["latency_model"] = latency_model_from_target(situation.target).plain()
    return config
