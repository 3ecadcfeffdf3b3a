"""`metrics.json`: the numbers of a finished run, enough to judge it again under other limits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import Field, JsonValue

from edgekd.core.report import Budget, CandidateLatency, Choice, Evaluation, ProfileReport, Verdict
from edgekd.core.report_io import json_from_file, schema_from_json
from edgekd.core.schema import Schema
from edgekd.errors import UserError
from edgekd.gate.baseline import Baseline, baseline_from_plain, baseline_from_results
from edgekd.gate.budget import evaluation_of
from edgekd.gate.verdict import judge

METRICS_FILE = "metrics.json"
JUDGES_ON = "test"


class RunMetrics(Schema):
    """What a run found and answered.

    Attributes:
        target: Name of the target's card.
        budget: The limits it was judged by.
        reference: Candidate that the drop is counted from.
        chosen: Candidate under which the chosen engine was evaluated for the verdict.
        choice: What is deployed.
        profile: All latencies; their `size_mib` are the sizes.
        evaluations: On `select` and on `test`.
        verdict: As it was given.
        stages: Metrics of every node, by node name.
    """

    schema_version: Literal[1] = 1
    target: str
    budget: Budget
    reference: str
    chosen: str
    choice: Choice
    profile: ProfileReport
    evaluations: tuple[Evaluation, ...] = ()
    verdict: Verdict
    stages: dict[str, dict[str, JsonValue]] = Field(default_factory=dict)

    def to_json(self) -> str:
        """Stable text form, read back by `read_run`."""
        return json.dumps(self.plain(), indent=2, sort_keys=True)


def read_run(out: Path) -> RunMetrics:
    """The metrics of the run whose output folder (or `metrics.json`) is `out`.

    Raises:
        UserError: No such file, or not one that this version reads.
    """
    path = out / METRICS_FILE if out.is_dir() else out
    if not path.is_file():
        raise UserError(
            f"{out} holds no {METRICS_FILE}: expected the output folder of a finished run.",
            hint="give the folder that `edgekd compress -o FOLDER` wrote",
        )
    return schema_from_json(path, RunMetrics, str(path))


def read_baseline(path: Path) -> Baseline:
    """The baseline in a JSON file.

    Raises:
        UserError: The file is missing, not a baseline, or one of another schema.
    """
    return baseline_from_plain(json_from_file(path, str(path)), str(path))


def judge_choice(
    choice: Choice,
    profile: ProfileReport,
    evaluations: tuple[Evaluation, ...],
    budget: Budget,
    *,
    target: str,
    chosen: str,
    reference: str,
    baseline: Baseline | None = None,
    allow_predicted: bool = False,
) -> Verdict:
    """The verdict on a choice, from reports alone.

    Args:
        target: Name of the target, for messages where nothing was measured.
        chosen: Candidate name that the chosen engine was evaluated under.
        reference: Candidate name of the teacher's engine.
    """
    entry = entry_of(choice, profile)
    return judge(
        device=profile.device if profile.measured else target,
        latency=entry.known,
        accuracy=evaluation_of(evaluations, chosen, JUDGES_ON),
        reference=evaluation_of(evaluations, reference, JUDGES_ON),
        size_mib=entry.size_mib,
        budget=budget,
        baseline=baseline,
        allow_predicted=allow_predicted,
    )


def judge_run(
    run: RunMetrics, budget: Budget | None = None, baseline: Baseline | None = None, *, allow_predicted: bool = False
) -> Verdict:
    """The verdict on a finished run under its own limits or others."""
    return judge_choice(
        run.choice,
        run.profile,
        run.evaluations,
        budget or run.budget,
        target=run.target,
        chosen=run.chosen,
        reference=run.reference,
        baseline=baseline,
        allow_predicted=allow_predicted,
    )


def baseline_of_run(run: RunMetrics) -> Baseline:
    """The baseline that a finished run sets.

    Raises:
        UserError: Its latency was not measured, so there is nothing to hold later runs to.
    """
    entry = entry_of(run.choice, run.profile)
    if entry.latency is None:
        raise UserError("A baseline needs a measured latency, and this run has none.", hint="run it on the target")
    accuracy = evaluation_of(run.evaluations, run.chosen, JUDGES_ON)
    return baseline_from_results(run.profile.device, entry.latency, accuracy, entry.size_mib)


def entry_of(choice: Choice, profile: ProfileReport) -> CandidateLatency:
    """The profile's entry for the chosen engine, at the first thread count.

    Raises:
        UserError: The choice and the profile are not of one run.
    """
    for entry in profile.entries:
        fits = entry.latency is None or entry.latency.threads == profile.threads[0]
        if entry.candidate == choice.candidate and (entry.runtime == choice.runtime or not profile.measured) and fits:
            return entry
    raise UserError(f"The profile has no entry for the chosen {choice.candidate}@{choice.runtime}.")
