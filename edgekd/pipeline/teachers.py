"""Teacher advice end to end: loads and measures the teachers, shortlists them, pilots the student, and advises."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from edgekd.core.bundle import ModelBundle
from edgekd.core.events import Reporter
from edgekd.core.stage import Context, Execution
from edgekd.core.store import Store
from edgekd.data.calibration import drawn_order
from edgekd.data.dataset import Dataset
from edgekd.data.sources import load_dataset
from edgekd.data.transfer import Fit, fit_of, weights_from_scores
from edgekd.errors import UserError
from edgekd.nn.build import module_from_bundle, module_from_recipe
from edgekd.nn.count import count_macs, count_params
from edgekd.pipeline.request import ModelSource
from edgekd.pipeline.sources import opened, require_network
from edgekd.pipeline.teacher_pilots import LABELS_ALONE, Pilots
from edgekd.pipeline.teacher_request import TeachersReport, TeachersRequest
from edgekd.search.teachers.advice import Pilot, advise
from edgekd.search.teachers.assistant import assistant_of, propose_assistant
from edgekd.search.teachers.shortlist import Size, TeacherFacts, shortlist
from edgekd.tasks.classification import wilson_interval
from edgekd.train.responses import embeddings

ASSISTANT = "assistant"
MOST_FITTED = 1000
"""Images on which the fit of features is judged; more change it little, and their singular vectors take seconds."""


@dataclass
class Advisor:
    """Answers one request.

    Args:
        request: What was asked.
        store: Keeps teachers and pilots.
        reporter: Where progress goes.
        execution: Device and threads.
    """

    request: TeachersRequest
    store: Store
    reporter: Reporter
    execution: Execution = field(default_factory=Execution)

    def look(self) -> TeachersReport:
        """The shortlist and what its pilots would be; trains nothing.

        Raises:
            UserError: A teacher, a student or data that cannot be used, or that do not fit each other.
        """
        student = self._student_size()
        facts = [self._facts(name, bundle) for name, bundle in self._teachers.items()]
        candidates = shortlist(student, facts, self.request.rule)
        assistant = propose_assistant(student, candidates)
        if assistant is None and self.request.assistant:
            assistant = assistant_of(student, candidates, "asked for, though a nearer teacher is at hand")
        return TeachersReport(
            student=student,
            candidates=candidates,
            plan=self._pilots.plan(),
            assistant=assistant,
            weights=weights_from_scores({f.name: f.fit for f in facts if f.fit is not None}) if len(facts) > 1 else {},
        )

    def advise(self) -> TeachersReport:
        """The shortlist, its pilots, and the advice.

        Raises:
            UserError: As `look`; or a teacher that cannot be cut into the assistant that was asked for.
            BuildFailed: A training diverged.
        """
        report = self.look()
        facts = [c.teacher for c in report.candidates if c.piloted]
        piloted = {teacher.name: self._teachers[teacher.name] for teacher in facts}
        if self.request.assistant and report.assistant is not None:
            piloted[ASSISTANT] = self._pilots.assistant(report.assistant, self._teachers[report.assistant.teacher])
            made = self._facts(ASSISTANT, piloted[ASSISTANT]).model_copy(update={"made": True})
            report = report.model_copy(update={"assistant_made": made})
            facts.append(made)
        correct = self._pilots.run(piloted)
        alone = Pilot(name=LABELS_ALONE, correct=correct.pop(LABELS_ALONE))
        pilots = [Pilot(name=name, correct=rows) for name, rows in correct.items()]
        return report.model_copy(update={"advice": advise(pilots, facts, alone)})

    @cached_property
    def _dataset(self) -> Dataset:
        dataset = load_dataset(self.request.data, seed=self.request.seed)
        if not dataset.labelled:
            raise UserError(
                f"{self.request.data} has no labels, and pilots are judged by their accuracy.",
                hint="one sub-folder per class",
            )
        return dataset

    @cached_property
    def _pilots(self) -> Pilots:
        return Pilots(
            request=self.request,
            dataset=self._dataset,
            store=self.store,
            reporter=self.reporter,
            execution=self.execution,
        )

    @cached_property
    def _teachers(self) -> dict[str, ModelBundle]:
        found = {name: self._loaded(name, source) for name, source in self.request.teachers.items()}
        if len({bundle.model.preprocessing.digest for bundle in found.values()}) > 1:
            self.reporter.message(
                "The teachers differ in their preprocessing; under each the student sees what that teacher sees.",
                level="warning",
            )
        return found

    def _loaded(self, name: str, source: ModelSource) -> ModelBundle:
        if name == ASSISTANT:
            raise UserError(f"A teacher cannot be named {name!r}, which names a pilot of its own.", hint="rename it")
        loaded = opened(source, self.store, seed=self.request.seed)
        bundle = require_network(loaded, source, "pilots look at PyTorch models")
        for note in loaded.notes:
            self.reporter.message(f"{name}: {note}")
        self._dataset.check_classes(int(bundle.outputs[0].shape[-1]))
        return bundle

    def _facts(self, name: str, bundle: ModelBundle) -> TeacherFacts:
        module = module_from_bundle(bundle, self.store.blobs)
        right = self._pilots.correct(bundle)
        low, high = wilson_interval(int(right.sum()), len(right))
        size = Size(
            params_m=count_params(module) / 1e6,
            macs_m=count_macs(module, bundle.model.preprocessing.input_shape) / 1e6,
        )
        fit = self._fit(bundle)
        return TeacherFacts(
            name=name,
            size=size,
            accuracy=float(right.mean()),
            low=low,
            high=high,
            fit=fit.score,
            fit_low=fit.low,
            fit_high=fit.high,
        )

    def _fit(self, bundle: ModelBundle) -> Fit:
        """Of its features to the labels of at most `MOST_FITTED` training images: the few that there may be."""
        rows = drawn_order(len(self._dataset.train), self.request.seed)[:MOST_FITTED]
        split = self._dataset.train.subset(rows)
        assert split.labels is not None
        with tempfile.TemporaryDirectory(prefix="edgekd-") as scratch:
            ctx = Context(
                scratch=Path(scratch),
                seed=self.request.seed,
                reporter=self.reporter,
                blobs=self.store.blobs,
                execution=self.execution,
            )
            features, _ = embeddings(bundle, split, ctx)
        return fit_of(features, split.labels, seed=self.request.seed)

    def _student_size(self) -> Size:
        recipe = self._pilots.recipe(next(iter(self._teachers.values())))
        module = module_from_recipe(recipe)
        macs = count_macs(module, recipe.preprocessing.input_shape)
        return Size(params_m=count_params(module) / 1e6, macs_m=macs / 1e6)
