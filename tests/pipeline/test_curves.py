"""From a finished run to its pruning curves: which networks, which engines, which numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgekd.core.plan import NodeReport
from edgekd.core.report import CandidateLatency, Choice
from edgekd.pipeline.curves import curves_of
from edgekd.pipeline.draft import TEACHER, Draft
from edgekd.pipeline.results import Results
from edgekd.pipeline.steps import steps_of
from tests.gate.results import accuracy, latency, profile
from tests.pipeline.finished import results

MACS = {"teacher": 8.0, "teacher-pruned-1": 4.0, "teacher-pruned": 2.0}
MS = {
    # engine: ms in ONNX Runtime, ms in OpenVINO
    "teacher-fp32": (3.0, 2.0),
    "teacher-int8-ort": (1.5, 1.9),
    "teacher-pruned-1-fp32": (2.0, 1.4),
    "teacher-pruned-1-int8-ort": (1.1, 1.3),
    "teacher-pruned-1-int8-openvino": (1.4, 0.9),
    "teacher-pruned-fp32": (1.0, 0.9),
}


def cut(*, rounds: int = 2) -> Results:
    """A teacher that was cut `rounds` times; the last cut has no INT8 engine."""
    draft = Draft()
    made = {"teacher": TEACHER}
    for mark in ("-1", "")[2 - rounds :]:
        model = list(made.values())[-1]
        draft.add(f"teacher-prune{mark}", "prune", {}, {"model": model})
        draft.add(f"teacher-recover{mark}", "distill", {}, {"student": f"teacher-prune{mark}", "teacher": TEACHER})
        made[f"teacher-pruned{mark}"] = f"teacher-recover{mark}"
    engines = {name: pair for name, pair in MS.items() if name.rsplit("-fp32")[0].split("-int8")[0] in made}
    for name in engines:
        label = name.rsplit("-fp32")[0].split("-int8")[0]
        if name.endswith("fp32"):
            draft.add(name, "export", {}, {"model": made[label]})
        else:
            draft.add(name, "quantize", {}, {"model": f"{label}-fp32"})
    draft.add("profile", "profile", {}, {"candidates": tuple(engines)})
    draft.add("chosen", "select", {"reference": "teacher-fp32"}, {"candidates": tuple(engines), "profile": "profile"})
    graph, run = draft.graph(), results().run
    template = run.nodes[0]

    def node(name: str, stage: str) -> NodeReport:
        macs = MACS.get(name.removesuffix("-fp32"), 1.0)
        tags = {"precision": "int8" if "int8" in name else "fp32", "scheme": ""}
        bundle = template.bundle.model_copy(update={"tags": tags})
        own = {"name": name, "stage": stage, "metrics": {"macs_m": macs, "params_m": 1.0}, "bundle": bundle}
        return template.model_copy(update=own)

    entries = [
        CandidateLatency(
            candidate=name,
            runtime=runtime,
            precision="int8" if "int8" in name else "fp32",
            size_mib=1.0,
            latency=latency(p50).model_copy(update={"runtime": runtime}),
        )
        for name, pair in engines.items()
        for runtime, p50 in zip(("onnxruntime", "openvino"), pair, strict=True)
    ]
    return replace(
        results(),
        run=run.model_copy(update={"nodes": tuple(node(n.name, n.stage) for n in graph.nodes)}),
        graph=graph,
        profile=profile(*entries),
        evaluations=tuple(accuracy(n, 0.9, runtime=r) for n in engines for r in ("onnxruntime", "openvino")),
        choice=Choice(
            candidate="teacher-pruned-1-int8-ort",
            runtime="onnxruntime",
            precision="int8",
            reason="more accurate",
            within_budget=True,
        ),
    )


def test_a_curve_goes_from_the_whole_network_over_every_cut_by_what_is_left_of_the_arithmetic() -> None:
    found = cut()
    [curve] = curves_of(found, steps_of(found))
    assert curve.name == "Teacher"
    assert [(point.cut, point.kept) for point in curve.points] == [(0, 1.0), (1, 0.5), (2, 0.25)]
    fp32 = [next(e for e in point.engines if e.precision == "fp32") for point in curve.points]
    assert [(e.median_ms, e.runtime) for e in fp32] == [(2.0, "openvino"), (1.4, "openvino"), (0.9, "openvino")]
    assert [e.accuracy.value for e in fp32 if e.accuracy is not None] == [0.9] * 3
    assert fp32[0].low_ms <= fp32[0].median_ms <= fp32[0].high_ms


def test_the_fastest_engine_stands_for_its_precision_unless_another_one_is_chosen() -> None:
    found = cut()
    whole, first, last = curves_of(found, steps_of(found))[0].points
    [int8] = [e for e in first.engines if e.precision == "int8"]
    assert (int8.name, int8.chosen, int8.median_ms) == ("teacher-pruned-1-int8-ort", True, pytest.approx(1.1))
    assert [e.name for e in whole.engines if e.precision == "int8"] == ["teacher-int8-ort"]
    assert not [e for e in last.engines if e.precision == "int8"]


def test_one_cut_is_a_line_of_two_points_and_none_is_no_curve() -> None:
    found = cut(rounds=1)
    [curve] = curves_of(found, steps_of(found))
    assert [(point.cut, point.kept) for point in curve.points] == [(0, 1.0), (1, 0.25)]
    assert curve.missing == ()
    assert curves_of(results(), steps_of(results())) == ()


def without_latencies(found: Results, label: str) -> Results:
    assert found.profile is not None
    entries = tuple(
        entry.model_copy(update={"latency": None, "failure": "it crashed"})
        if entry.candidate.startswith((f"{label}-fp32", f"{label}-int8"))
        else entry
        for entry in found.profile.entries
    )
    return replace(found, profile=found.profile.model_copy(update={"entries": entries}))


def test_a_cut_without_a_timed_engine_is_named_and_the_others_stay() -> None:
    found = without_latencies(cut(), "teacher-pruned-1")
    [curve] = curves_of(found, steps_of(found))
    assert [point.cut for point in curve.points] == [0, 2]
    assert curve.missing == (1,)


def test_without_the_whole_network_there_is_nothing_to_compare_with() -> None:
    found = without_latencies(cut(), "teacher")
    assert curves_of(found, steps_of(found)) == ()
