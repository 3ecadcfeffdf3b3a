"""What is asked of teacher advice, and what it answers, as data."""

from __future__ import annotations

from pydantic import Field, JsonValue

from edgekd.core.report import REPORT_SCHEMA_VERSION
from edgekd.core.schema import Schema
from edgekd.pipeline.request import ModelSource, Options
from edgekd.search.teachers.advice import Advice
from edgekd.search.teachers.assistant import Assistant
from edgekd.search.teachers.shortlist import Candidate, ShortlistRule, Size, TeacherFacts


class TeachersRequest(Schema):
    """The question: which of these teachers for this student, on this data?

    Attributes:
        arch: Of the student.
        arch_kwargs: Of the student; the number of classes and of image channels follow the teacher where left out.
        weights: Where the student starts; None draws random weights, others for each seed.
        teachers: By name.
        data: See `load_dataset`; it needs labels.
        seed: Of the split of the data, and of the first pilot.
        pilot_share: Length of a pilot over that of a full training.
        seeds: Pilots per teacher.
        assistant: Makes and pilots an assistant, whether one is proposed or not.
        rule: Which teachers are piloted.
        options: The full training.
    """

    arch: str
    arch_kwargs: dict[str, JsonValue] = Field(default_factory=dict)
    weights: str | None = None
    teachers: dict[str, ModelSource]
    data: str
    seed: int = Field(default=0, ge=0)
    pilot_share: float = Field(default=0.1, gt=0, le=1)
    seeds: int = Field(default=3, ge=1)
    assistant: bool = False
    rule: ShortlistRule = Field(default_factory=ShortlistRule)
    options: Options = Field(default_factory=Options)


class PilotPlan(Schema):
    """What the pilots are.

    Attributes:
        epochs: Of one pilot.
        full_epochs: Of a full training.
        seeds: Pilots per teacher.
        images: Of the `select` split, which judges them.
        objective: Distillation objective.
    """

    epochs: int
    full_epochs: int
    seeds: int
    images: int
    objective: str


class TeachersReport(Schema):
    """The answer.

    Attributes:
        student: Its size.
        candidates: Every teacher, in the order given.
        plan: What was, or would be, piloted.
        assistant: The assistant that is proposed, or that was asked for.
        assistant_made: What was measured of it after its training; None when none was made.
        weights: Shares of the teachers in a common training, by how well their features fit; empty for a single one.
        advice: None before the pilots.
    """

    schema_version: int = REPORT_SCHEMA_VERSION
    student: Size
    candidates: tuple[Candidate, ...]
    plan: PilotPlan
    assistant: Assistant | None
    assistant_made: TeacherFacts | None = None
    weights: dict[str, float] = Field(default_factory=dict)
    advice: Advice | None = None
