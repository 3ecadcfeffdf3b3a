"""The last two nodes of a graph: `select` joins the branches into one engine, `gate` judges it."""

from __future__ import annotations

import json
from typing import ClassVar

from pydantic import Field

from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.report import Budget, Choice, Evaluation, EvaluationReport, ProfileReport
from edgekd.core.report_io import bundle_from_report, report_from_bundle, schema_from_json
from edgekd.core.stage import Context, Inputs, Stage, StageConfig, StageResult, port
from edgekd.errors import UserError
from edgekd.gate.artifacts import judge_choice
from edgekd.gate.baseline import Baseline
from edgekd.gate.candidates import FP32, Candidate
from edgekd.gate.choose import choose
from edgekd.targets.schema import Target

DEPLOYABLE = frozenset({BundleKind.ONNX, BundleKind.ENGINE})
CHOICE_FILE = "choice.json"
"""Beside the model in the bundle that `select` makes: the `Choice`, with the reasons against every other engine."""


class SelectConfig(StageConfig):
    """What `select` needs to know.

    Attributes:
        budget: Limits.
        reference: Candidate that the drop is counted from.
    """

    budget: Budget = Field(default_factory=Budget)
    reference: str


class SelectStage(Stage[SelectConfig]):
    """Passes on the one bundle that is deployed.

    Its tags gain `candidate` (the node that made it), `runtime` (where it runs best) and `reference`; the reasons lie
    beside the model in `choice.json`.
    """

    name = "select"
    version = 5
    Config = SelectConfig
    ports: ClassVar = {
        "candidates": port(*DEPLOYABLE, many=True),
        "profile": port(BundleKind.REPORT),
        "evaluations": port(BundleKind.REPORT, many=True, optional=True),
    }
    produces = DEPLOYABLE
    reads = frozenset({"target"})

    def run(self, inputs: Inputs, ctx: Context) -> StageResult:
        bundles = dict(inputs.all("candidates"))
        choice = choose(
            [candidate_from_bundle(name, bundle) for name, bundle in bundles.items()],
            report_from_bundle(inputs.one("profile"), ProfileReport, ctx, "profile"),
            _evaluations(inputs, ctx),
            self.config.budget,
            reference=self.config.reference,
            runtimes=runtime_by_precision(ctx.resource("target", Target)),
        )
        path = ctx.scratch / CHOICE_FILE
        path.write_text(json.dumps(choice.plain(), indent=1, sort_keys=True), encoding="utf-8")
        chosen = bundles[choice.candidate]
        tags = {"candidate": choice.candidate, "runtime": choice.runtime, "reference": self.config.reference}
        bundle = chosen.model_copy(
            update={
                "tags": {**chosen.tags, **tags},
                "files": {**chosen.files, CHOICE_FILE: ctx.blobs.add(path)},
            }
        )
        return StageResult(bundle=bundle, decisions=_decisions(choice))


class GateConfig(StageConfig):
    """What `gate` judges by.

    Attributes:
        budget: Limits.
        baseline: Earlier result that must not be regressed from.
    """

    budget: Budget = Field(default_factory=Budget)
    baseline: Baseline | None = None


class GateStage(Stage[GateConfig]):
    """Gives the `Verdict` on the chosen engine, on the `test` split. It never fails: a verdict is a result."""

    name = "gate"
    Config = GateConfig
    ports: ClassVar = {
        "chosen": port(*DEPLOYABLE, named=True),
        "profile": port(BundleKind.REPORT),
        "evaluations": port(BundleKind.REPORT, many=True, optional=True),
    }
    produces = BundleKind.REPORT
    reads = frozenset({"target"})
    cacheable = False

    def run(self, inputs: Inputs, ctx: Context) -> StageResult:
        producer, chosen = inputs.all("chosen")[0]
        verdict = judge_choice(
            choice_from_bundle(chosen, ctx),
            report_from_bundle(inputs.one("profile"), ProfileReport, ctx, "profile"),
            _evaluations(inputs, ctx),
            self.config.budget,
            target=ctx.resource("target", Target).name,
            chosen=producer,
            reference=str(chosen.tags["reference"]),
            baseline=self.config.baseline,
        )
        return StageResult(bundle=bundle_from_report(verdict, ctx), decisions=(f"{verdict.status}: {verdict.reason}",))


def choice_from_bundle(bundle: ModelBundle, ctx: Context) -> Choice:
    """The choice that made a bundle of `select`.

    Raises:
        UserError: The bundle comes from another stage.
    """
    if CHOICE_FILE not in bundle.files:
        raise UserError("This bundle was not chosen by a select node, so there is no choice to judge.")
    return schema_from_json(ctx.path(bundle, CHOICE_FILE), Choice, "select")


def candidate_from_bundle(name: str, bundle: ModelBundle) -> Candidate:
    """What a choice needs to know of a deployable bundle.

    Args:
        name: Of the node that made it.
        bundle: ONNX or ENGINE.
    """
    recipe = bundle.content if bundle.recipe is None else bundle.recipe.digest
    precision = str(bundle.tags.get("precision", FP32))
    return Candidate(
        name=name,
        precision=precision,
        # Models of one architecture share a recipe; the tag that `export` sets tells their weights apart too.
        family=str(bundle.tags.get("model", recipe)),
        runtime=bundle.format if bundle.kind is BundleKind.ENGINE else None,
        packed=precision == FP32 and bundle.tags.get("scheme") == "weight-only",
    )


def _evaluations(inputs: Inputs, ctx: Context) -> tuple[Evaluation, ...]:
    found: list[Evaluation] = []
    for name, bundle in inputs.all("evaluations"):
        found += report_from_bundle(bundle, EvaluationReport, ctx, name).evaluations
    return tuple(found)


def runtime_by_precision(target: Target) -> dict[str, str]:
    """The first runtime of the card that runs each precision."""
    found: dict[str, str] = {}
    for support in target.runtimes:
        for precision in support.precisions:
            found.setdefault(precision, support.runtime)
    return found


def _decisions(choice: Choice) -> tuple[str, ...]:
    chosen = f"{choice.candidate} in {choice.runtime} is deployed: {choice.reason}."
    return (chosen, *(f"Not {name}: {why}." for name, why in choice.rejected.items()))
