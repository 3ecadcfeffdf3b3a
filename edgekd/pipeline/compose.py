"""Writes the compression graph for a request: which students, which precisions, how they are judged, and why.

The full chain is search -> distill -> prune -> recover (distill) -> export -> quantize -> profile -> select -> gate.
Every model carries its FP32 (and FP16) twin beside the INT8 one; the teacher's own engines are candidates too, so that
"do nothing" and "only quantize" compete with every student. What the situation does not allow is left out, and the
draft says so.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import JsonValue

from edgekd.core.graph import Graph
from edgekd.core.text import points
from edgekd.pipeline.converted import Candidate
from edgekd.pipeline.draft import TEACHER, Draft
from edgekd.pipeline.engines import draft_engines, draft_samples
from edgekd.pipeline.few_bits import check_weight_levels
from edgekd.pipeline.request import Options, Request
from edgekd.pipeline.situation import Situation
from edgekd.pipeline.students import draft_students
from edgekd.pipeline.teaching import TEACHER_ENGINE, draft_teaching

FINAL = "chosen"
PROFILE = "profile"
VERDICT = "gate"
DEFAULT_DROP = 0.01
"""What a choice may lose where the user set no limit; the verdict then judges no accuracy."""
EVALUATED_IN = "onnxruntime"
"""Where accuracy is computed when the target's own runtimes are not at hand, and where the teacher's FP32 is."""


@dataclass(frozen=True, kw_only=True)
class Composition:
    """A graph and the reasons for its shape."""

    graph: Graph
    decisions: tuple[str, ...]


def compose(request: Request, options: Options, situation: Situation) -> Composition:
    """The graph that answers `request`.

    Raises:
        UserError: Options that contradict each other or the data (an objective that needs labels without labels).
    """
    check_weight_levels(options)
    draft = Draft()
    _say_what_is_left_out(draft, options, situation)
    samples = draft_samples(draft, request, options, situation)
    options = draft_teaching(draft, request, options, situation)
    models = [("teacher", TEACHER), *draft_students(draft, request, options, situation)]
    candidates = [
        candidate
        for label, node in models
        for candidate in draft_engines(draft, options, request.budget, situation, label, node, samples)
    ]
    _draft_judgement(draft, request, options, situation, candidates)
    return Composition(graph=draft.graph(), decisions=tuple(draft.decisions))


def _say_what_is_left_out(draft: Draft, options: Options, situation: Situation) -> None:
    """One sentence for every wish that this situation cannot fulfil."""
    if situation.dataset is None:
        if options.weight_bits is not None:
            draft.say("--weight-bits was ignored: quantized distillation needs training images.")
        if options.quantize == "qat":
            draft.say("--quantize qat was ignored: quantization-aware training needs training images.")
    else:
        for phrase in situation.dataset.decisions:
            draft.say(f"{phrase[:1].upper()}{phrase[1:].removesuffix('.')}.")
        if not options.students and options.weight_bits is not None:
            draft.say("--weight-bits was ignored: without students nothing is trained.")
    for precision in options.precisions:
        if precision != "fp16" and not situation.runs(precision):
            draft.say(f"No {precision.upper()} engine is built: no runtime of {situation.target.name} runs it.")


def _draft_judgement(
    draft: Draft, request: Request, options: Options, situation: Situation, candidates: list[Candidate]
) -> None:
    names = [candidate.node for candidate in candidates]
    # PyTorch runs the teacher as it came, for reference only: it is never chosen.
    runtimes: list[JsonValue] = [*(s.runtime for s in situation.runtimes), "torch"] if situation.measured else []
    profiled = [*names, TEACHER] if situation.measured else names
    draft.add(
        PROFILE,
        "profile",
        {
            "runtimes": runtimes,
            "threads": list(options.threads),
            "warmup_s": options.warmup_s,
            "duration_s": options.duration_s,
        },
        {"candidates": profiled},
    )
    evaluations = _draft_evaluations(draft, situation, candidates)
    budget = request.budget.plain()
    reference = names[0]
    tolerated = budget
    if request.budget.max_drop is None:
        tolerated = budget | {"max_drop": DEFAULT_DROP, "drop_type": "absolute"}
        if situation.dataset is not None:
            draft.say(f"No --max-drop was given: an engine that loses more than {points(DEFAULT_DROP)} is not chosen.")
    draft.add(
        FINAL,
        "select",
        {"budget": tolerated, "reference": reference},
        {"candidates": names, "profile": PROFILE, "evaluations": evaluations},
    )
    finals: list[str] = []
    if situation.dataset is not None:
        elsewhere: list[JsonValue] = [EVALUATED_IN]
        finals = [
            draft.add(
                "test-teacher",
                "evaluate",
                {"splits": ["test"], "runtimes": elsewhere, "candidate": reference},
                {"model": TEACHER_ENGINE, "teacher": _agreement_teacher(situation)},
            ),
            draft.add(
                "test-chosen",
                "evaluate",
                # On the device itself the chosen runtime is in the bundle's tags; elsewhere only a converted engine's
                # is sure to run here.
                {
                    "splits": ["test"],
                    "runtimes": [] if situation.measured or any(c.converted for c in candidates) else elsewhere,
                    "candidate": FINAL,
                    "exact": not situation.measured,
                },
                {"model": FINAL, "teacher": _agreement_teacher(situation)},
            ),
        ]
        draft.say(
            "Decisions are taken on the `select` split; the `test` split is used once, for the teacher and for the "
            "chosen engine, and gives the verdict."
        )
    draft.add(VERDICT, "gate", {"budget": budget}, {"chosen": FINAL, "profile": PROFILE, "evaluations": finals})


def _draft_evaluations(draft: Draft, situation: Situation, candidates: list[Candidate]) -> list[str]:
    """One evaluate node per candidate on the select split, in the runtimes where it may be deployed."""
    if situation.dataset is None:
        return []
    return [
        draft.add(
            f"accuracy-{candidate.node}",
            "evaluate",
            {
                "splits": ["select"],
                "runtimes": list(candidate.runtimes) if situation.measured or candidate.converted else [EVALUATED_IN],
                "candidate": candidate.node,
                "exact": not situation.measured,
            },
            {"model": candidate.node, "teacher": _agreement_teacher(situation)},
        )
        for candidate in candidates
    ]


def _agreement_teacher(situation: Situation) -> str | None:
    """Agreement needs the teacher's answers; top-1 against labels does not."""
    return None if situation.dataset is None or situation.dataset.labelled else TEACHER
