"""Short trainings of one student under several teachers, as nodes of the product's own graph.

A pilot is an ordinary `distill` node with a short schedule, so it is kept in the store: asking again, or with one more
teacher, trains only what is missing. For one seed every pilot starts from the same student and sees the same images in
the same order.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue

from edgekd.core.bundle import ModelBundle
from edgekd.core.events import Reporter
from edgekd.core.graph import Graph, Node
from edgekd.core.recipe import ModelRecipe
from edgekd.core.runner import Runner, RunSettings
from edgekd.core.stage import Execution
from edgekd.core.store import Store
from edgekd.data.dataset import Dataset
from edgekd.nn.build import module_from_bundle, module_from_recipe
from edgekd.nn.load import builder_from_arch, load_model
from edgekd.nn.save import bundle_from_module
from edgekd.pipeline.stages import STAGES
from edgekd.pipeline.teacher_request import PilotPlan, TeachersRequest
from edgekd.pipeline.training import epochs_for, train_config
from edgekd.search.teachers.assistant import Assistant
from edgekd.tasks.classification import predictions
from edgekd.train.config import TrainConfig
from edgekd.train.evaluate_torch import module_logits
from edgekd.train.reconcile import reconciled

BoolArray = npt.NDArray[np.bool_]
LABELS_ALONE = "labels alone"
_CHANNEL_MULTIPLE = 8
_LONGEST_NAME = 64
"""Of a node."""


def labels_alone(taught: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Config of the training without a teacher that shows the very images of a taught one, in the same order.

    A teacher's answers are kept for a few views, which the epochs repeat; without one each epoch would show new ones.
    """
    loss = ("objective", "objectives", "teacher_views")
    kept = {name: value for name, value in taught.items() if name not in loss}
    config = TrainConfig.parse(dict(taught), "config of a pilot")
    augment = config.augment.model_copy(update={"views": config.repeated_views or None})
    return kept | {"objective": None, "teacher_views": 0, "augment": augment.plain()}


@dataclass(frozen=True, kw_only=True)
class Pilots:
    """Trains and judges the students of one request.

    Attributes:
        request: Student, schedule and seeds.
        dataset: Labelled.
        store: Keeps what is trained.
        reporter: Where progress goes.
        execution: Device and threads.
    """

    request: TeachersRequest
    dataset: Dataset
    store: Store
    reporter: Reporter
    execution: Execution

    def plan(self) -> PilotPlan:
        """How long and how many."""
        full = epochs_for(self.request.options, len(self.dataset.train))
        return PilotPlan(
            epochs=max(1, round(full * self.request.pilot_share)),
            full_epochs=full,
            seeds=self.request.seeds,
            images=len(self.dataset.select),
            objective=self.request.options.objective,
        )

    def recipe(self, teacher: ModelBundle) -> ModelRecipe:
        """The student that sees what `teacher` sees, and has its classes."""
        p, builder = teacher.model.preprocessing, builder_from_arch(self.request.arch)
        classes = int(teacher.outputs[0].shape[-1])
        follows: dict[str, JsonValue] = {}
        if builder.startswith("edgekd:"):
            follows = {"classes": classes, "in_channels": p.channels}
        elif builder.startswith("timm:"):
            follows = {"num_classes": classes, "in_chans": p.channels}
        return ModelRecipe(
            builder=builder,
            kwargs=follows | self.request.arch_kwargs,
            preprocessing=p,
            labels=tuple(self.dataset.classes),
        )

    def correct(self, bundle: ModelBundle) -> BoolArray:
        """(N,) bool: whether a model is right on each image of the `select` split."""
        recipe, split = self.recipe(bundle), self.dataset.select
        module = reconciled(module_from_bundle(bundle, self.store.blobs), bundle.model, recipe)
        right: BoolArray = (
            predictions(module_logits(module, split, bundle.model.preprocessing, self.execution)) == split.labels
        )
        return right

    def run(self, teachers: Mapping[str, ModelBundle]) -> dict[str, BoolArray]:
        """(S, N) by teacher and, last, under `LABELS_ALONE`: whether each seed's student is right on each image.

        Raises:
            UserError: Student, teacher and objective do not fit.
            BuildFailed: A training diverged.
        """
        found = [self._one_seed(teachers, number) for number in range(self.request.seeds)]
        return {name: np.stack([rows[name] for rows in found]) for name in found[0]}

    def assistant(self, assistant: Assistant, teacher: ModelBundle) -> ModelBundle:
        """The assistant: cut from its teacher, and taught by it for as long as a pilot.

        Raises:
            UserError: The teacher cannot be cut.
        """
        cut: dict[str, JsonValue] = {"macs_keep": assistant.macs_keep, "channel_multiple": _CHANNEL_MULTIPLE}
        ports = {"student": ("assistant-cut",), "teacher": ("@teacher",)}
        nodes = [
            Node(name="assistant-cut", stage="prune", config=cut, inputs={"model": ("@teacher",)}),
            Node(name="assistant", stage="distill", config=self._config(teacher, fresh=False), inputs=ports),
        ]
        return self._made(nodes, {"teacher": teacher}, self.request.seed)[-1]

    def _one_seed(self, teachers: Mapping[str, ModelBundle], number: int) -> dict[str, BoolArray]:
        bundles: dict[str, ModelBundle] = {}
        nodes = []
        for place, (name, teacher) in enumerate(teachers.items()):
            bundles |= {f"student{place}": self._start(teacher, number), f"teacher{place}": teacher}
            ports = {"student": (f"@student{place}",), "teacher": (f"@teacher{place}",)}
            config = self._config(teacher, fresh=True)
            nodes.append(
                Node(name=f"pilot{place}-{name}"[:_LONGEST_NAME], stage="distill", config=config, inputs=ports)
            )
        alone = labels_alone(self._config(next(iter(teachers.values())), fresh=True))
        nodes.append(Node(name="pilot-labels-alone", stage="distill", config=alone, inputs={"student": ("@student0",)}))
        made = self._made(nodes, bundles, self.request.seed + number)
        return {name: self.correct(bundle) for name, bundle in zip([*teachers, LABELS_ALONE], made, strict=True)}

    def _start(self, teacher: ModelBundle, number: int) -> ModelBundle:
        """The student before its pilot."""
        recipe = self.recipe(teacher)
        with tempfile.TemporaryDirectory(prefix="edgekd-") as scratch:
            if self.request.weights is not None:
                return load_model(
                    Path(self.request.weights),
                    arch=recipe.builder,
                    arch_kwargs=recipe.kwargs,
                    preprocessing=recipe.preprocessing,
                    labels=recipe.labels,
                    blobs=self.store.blobs,
                    scratch=Path(scratch),
                ).bundle
            module = module_from_recipe(recipe, seed=self.request.seed + number)
            return bundle_from_module(module, recipe=recipe, blobs=self.store.blobs, scratch=Path(scratch))

    def _config(self, teacher: ModelBundle, *, fresh: bool) -> dict[str, JsonValue]:
        return train_config(
            self.request.options,
            epochs=self.plan().epochs,
            fresh=fresh,
            size=teacher.model.preprocessing.size,
            images=len(self.dataset.train),
        )

    def _made(self, nodes: Sequence[Node], bundles: Mapping[str, ModelBundle], seed: int) -> list[ModelBundle]:
        """What the nodes make, in their order."""
        graph = Graph(inputs={name: bundle.kind for name, bundle in bundles.items()}, nodes=tuple(nodes))
        settings = RunSettings(
            seed=seed, resources={"data": self.dataset}, execution=self.execution, reporter=self.reporter
        )
        report = Runner(STAGES, self.store).run(graph, bundles, settings)
        return [report.bundle(node.name) for node in nodes]
