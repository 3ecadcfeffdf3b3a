"""A finished run that never ran: a teacher and a student whose INT8 engine was chosen where it is not fastest."""

from __future__ import annotations

from datetime import UTC, datetime

from pydantic import JsonValue

from edgekd.core.bundle import BundleKind, ModelBundle, TensorSpec
from edgekd.core.graph import Graph
from edgekd.core.plan import Action, NodeReport, RunReport
from edgekd.core.report import CandidateLatency, Choice, Metric, Verdict
from edgekd.pipeline.draft import TEACHER, Draft
from edgekd.pipeline.results import Results
from edgekd.testing.toys import toy_recipe
from tests.gate.results import accuracy, latency, prediction, profile

ENGINES = {
    # candidate: ms in ONNX Runtime, ms in OpenVINO
    "teacher-fp32": (3.0, 2.0),
    "student-fp32": (1.0, 1.2),
    "student-int8-ort": (0.5, 0.4),
}
CHOICE = Choice(
    candidate="student-int8-ort", runtime="onnxruntime", precision="int8", reason="more accurate", within_budget=True
)


def graph() -> Graph:
    draft = Draft()
    draft.add("teacher-fp32", "export", {}, {"model": TEACHER})
    draft.add("pick", "pick", {})
    draft.add("student-distill", "distill", {}, {"student": "pick", "teacher": TEACHER})
    draft.add("student-fp32", "export", {}, {"model": "student-distill"})
    draft.add("student-int8-ort", "quantize", {"scheme": "ort-u8s8"}, {"model": "student-fp32"})
    draft.add("profile", "profile", {}, {"candidates": tuple(ENGINES)})
    draft.add("chosen", "select", {"reference": "teacher-fp32"}, {"candidates": tuple(ENGINES), "profile": "profile"})
    return draft.graph()


def results(metric: Metric = "top1", *, measured: bool = True, origin: str = "real") -> Results:
    """Everything that the pipeline reads of a run; its bundles hold no files."""
    drawn = graph()
    metrics: dict[str, JsonValue] = {"params_m": 0.1, "macs_m": 2.0, "samples_origin": origin, "loss_samples": 32}
    nodes = []
    for node in drawn.nodes:
        int8 = node.stage in ("quantize", "select")
        bundle = ModelBundle(
            kind=BundleKind.ONNX,
            inputs=(TensorSpec(name="images", shape=("N", 3, 8, 8)),),
            outputs=(TensorSpec(name="logits", shape=("N", 4)),),
            recipe=toy_recipe(),
            tags={"precision": "int8" if int8 else "fp32", "scheme": "ort-u8s8" if int8 else ""},
        )
        nodes.append(
            NodeReport(
                name=node.name,
                stage=node.stage,
                action=Action.RUN,
                reasons=("first time",),
                key="0" * 64,
                seconds=1.0,
                finished=datetime.now(UTC),
                metrics=metrics,
                decisions=(),
                bundle=bundle,
            )
        )
    entries = [
        CandidateLatency(
            candidate=name,
            runtime=runtime,
            precision="int8" if "int8" in name else "fp32",
            size_mib=1.0,
            latency=latency(p50).model_copy(update={"runtime": runtime}) if measured else None,
            prediction=None if measured else prediction(p50).model_copy(update={"runtime": runtime}),
        )
        for name, pair in ENGINES.items()
        for runtime, p50 in zip(("onnxruntime", "openvino"), pair, strict=True)
    ]
    return Results(
        run=RunReport(seed=0, nodes=tuple(nodes)),
        graph=drawn,
        profile=profile(*entries, measured=measured),
        evaluations=tuple(
            accuracy(name, 0.9, runtime=runtime, metric=metric)
            for name in ENGINES
            for runtime in ("onnxruntime", "openvino")
        ),
        choice=CHOICE,
        verdict=Verdict(status="PASS", reason="Every limit holds."),
        reference="teacher-fp32",
    )
