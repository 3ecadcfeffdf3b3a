"""The stage that trains a student: distilled from a teacher where there is one, supervised where there is none."""

from __future__ import annotations

from typing import ClassVar

import torch

from edgekd.core.bundle import BundleKind
from edgekd.core.stage import Context, Inputs, Stage, StageResult
from edgekd.errors import BuildFailed
from edgekd.nn.build import module_from_bundle
from edgekd.train.config import TrainConfig
from edgekd.train.fit import distil_
from edgekd.train.pool import training_data
from edgekd.train.student import (
    STUDENT_PORTS,
    check_student_and_teacher,
    networks,
    stored_answers,
    trained_bundle,
    training_metrics,
)
from edgekd.train.teachers import teacher_decisions


class DistillStage(Stage[TrainConfig]):
    """The student of the port `student`, trained on the data's training split; its architecture stays as it is."""

    name = "distill"
    version = 5
    Config = TrainConfig
    ports: ClassVar = STUDENT_PORTS
    produces = BundleKind.TORCH
    reads = frozenset({"data"})
    distributed = True

    def requires(self, inputs: Inputs, ctx: Context) -> None:
        check_student_and_teacher(inputs, ctx, self.config)

    def run(self, inputs: Inputs, ctx: Context) -> StageResult:
        before = inputs.one("student")
        data = training_data(inputs, ctx)
        answers = stored_answers(inputs, ctx, self.config)
        student, teacher = networks(inputs, ctx)
        report = distil_(student, teacher, data, before.model.preprocessing, self.config, ctx, answers=answers)
        if not report.leads:
            return StageResult(bundle=before)  # only the leader's result counts, and only it writes files
        bundle = trained_bundle(student, before, ctx)
        return StageResult(
            bundle=bundle,
            metrics=training_metrics(student, teacher, bundle, report, ctx),
            decisions=(*report.decisions, *teacher_decisions(inputs)),
        )

    def ensures(self, inputs: Inputs, result: StageResult, ctx: Context) -> None:
        before = module_from_bundle(inputs.one("student"), ctx.blobs).state_dict()
        after = module_from_bundle(result.bundle, ctx.blobs).state_dict()
        if all(torch.equal(before[name], after[name]) for name in before):
            raise BuildFailed("The training changed no weight of the student.", hint="check lr and epochs")
