"""The package of a run: which engines go along, what is told of them, and the same bytes for the same results."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from edgekd.core.bundle import BundleKind
from edgekd.core.graph import Graph
from edgekd.core.report import Choice
from edgekd.export.archive import pack
from edgekd.export.package import verified_package
from edgekd.gate.artifacts import read_run
from edgekd.pipeline.draft import TEACHER, Draft
from edgekd.pipeline.results import Results
from edgekd.pipeline.shipping import shipment_of
from edgekd.runtimes.engines.settings import INT8, INT8_FP16
from edgekd.runtimes.formats import model_files
from edgekd.targets.load import load_target
from tests.gate.results import accuracy, entry, profile
from tests.pipeline.delivered import delivered
from tests.pipeline.finished import results


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("measured", [True, False])
def test_the_same_results_give_the_same_bytes_from_another_store_place_and_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured: bool
) -> None:
    found = results(measured=measured)
    delivered(found, tmp_path / "here")
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    monkeypatch.setattr("time.time", lambda: 2_000_000_000.0)
    monkeypatch.chdir(tmp_path)
    before = os.umask(0o077)
    try:
        delivered(found, tmp_path / "further" / "away")
    finally:
        os.umask(before)
    one, two = (verified_package(tmp_path / place / "bundle") for place in ("here", "further/away"))
    assert contents(one.folder) == contents(two.folder)
    assert len(contents(one.folder)) > 10
    pack(one, tmp_path / "one.edgekd")
    pack(two, tmp_path / "two.edgekd")
    assert (tmp_path / "one.edgekd").read_bytes() == (tmp_path / "two.edgekd").read_bytes()


def test_no_file_names_a_place_of_this_machine(tmp_path: Path) -> None:
    delivered(results(), tmp_path / "here")
    for name, data in contents(tmp_path / "here" / "bundle").items():
        assert str(tmp_path).encode() not in data, name
    assert "- Model: teacher.pt" in (tmp_path / "here" / "bundle" / "MODEL_CARD.md").read_text()


def test_another_measurement_changes_figures_and_no_engine(tmp_path: Path) -> None:
    found = results()
    faster = tuple(
        e.model_copy(update={"latency": e.latency.model_copy(update={"p50_ms": 0.9 * e.latency.p50_ms})})
        for e in found.profile.entries
        if e.latency is not None
    )
    again = replace(found, profile=found.profile.model_copy(update={"entries": faster}))
    delivered(found, tmp_path / "one")
    delivered(again, tmp_path / "two")
    one, two = contents(tmp_path / "one" / "bundle"), contents(tmp_path / "two" / "bundle")
    differ = {name for name in one if one[name] != two[name]}
    assert differ == {"manifest.json", "sbom.json", "deploy.json", "metrics.json", "README.txt", "MODEL_CARD.md"}


def test_the_figures_in_a_package_are_read_back_as_those_of_a_run(tmp_path: Path) -> None:
    delivered(results(), tmp_path)
    run = read_run(tmp_path / "bundle")
    assert run.choice.candidate == "student-int8-ort"
    assert all(e.latency is not None and e.latency.samples_ms == () for e in run.profile.entries)
    assert "teacher-fp32" not in run.stages
    assert {"student-fp32", "student-int8-ort"} <= run.stages.keys()


def test_a_licence_that_was_given_is_in_every_place_that_tells_one(tmp_path: Path) -> None:
    delivered(results(), tmp_path, license_text="CC BY 4.0")
    for name in ("NOTICE.txt", "MODEL_CARD.md", "sbom.json", "manifest.json"):
        assert "CC BY 4.0" in (tmp_path / "bundle" / name).read_text(), name


def test_only_the_chosen_engine_is_handed_over_when_that_was_asked(tmp_path: Path) -> None:
    delivered(results(), tmp_path, engines="chosen")
    package = verified_package(tmp_path / "bundle")
    assert package.deployment is not None
    assert [engine.name for engine in package.deployment.engines] == ["student-int8-ort"]
    assert not (tmp_path / "bundle" / "engines").exists()


def family(*entries: tuple[str, str, float], chosen: tuple[str, str], measured: bool = True) -> Results:
    """A run of one teacher with engines of several precisions: (name, runtime, ms)."""
    names = tuple(dict.fromkeys(name for name, _, _ in entries))
    draft = Draft()
    draft.add("teacher-fp32", "export", {}, {"model": TEACHER})
    for name in names[1:]:
        draft.add(name, "fp16" if "fp16" in name else "quantize", {}, {"model": "teacher-fp32"})
    draft.add("profile", "profile", {}, {"candidates": names})
    draft.add("chosen", "select", {"reference": "teacher-fp32"}, {"candidates": names, "profile": "profile"})
    return _with(draft.graph(), entries, chosen, measured)


def _with(
    graph: Graph, entries: tuple[tuple[str, str, float], ...], chosen: tuple[str, str], measured: bool
) -> Results:
    base = results()
    first = base.run.nodes[0]
    nodes = []
    for node in graph.nodes:
        made = next(n for n in graph.nodes if n.name == chosen[0]) if node.stage == "select" else node
        precision = next((p for p in ("int8", "fp16") if p in made.name), "fp32")
        kind = BundleKind.ENGINE if made.stage in ("build", "convert") else BundleKind.ONNX
        scheme = "" if precision != "int8" else INT8_FP16 if "fp16" in made.name else INT8
        tags = {"precision": precision, "scheme": scheme} | (
            {"format": made.config["to"]} if made.stage == "convert" else {}
        )
        bundle = first.bundle.model_copy(update={"tags": tags, "kind": kind})
        bundle = bundle.model_copy(update={"files": dict.fromkeys(model_files(bundle), node.name)})
        nodes.append(first.model_copy(update={"name": node.name, "stage": node.stage, "bundle": bundle}))
    timed = [
        entry(name, ms, runtime=runtime).model_copy(
            update={"latency": entry(name, ms, runtime=runtime).latency.model_copy(update={"runtime": runtime})}  # type: ignore[union-attr]
        )
        for name, runtime, ms in entries
    ]
    return replace(
        base,
        run=base.run.model_copy(update={"nodes": tuple(nodes)}),
        graph=graph,
        profile=profile(*timed, measured=measured),
        evaluations=tuple(accuracy(name, 0.9, runtime=runtime) for name, runtime, _ in entries),
        choice=Choice(
            candidate=chosen[0], runtime=chosen[1], precision="int8", reason="it is best.", within_budget=True
        ),
    )


ORT, VINO = "onnxruntime", "openvino"


def shipped(found: Results, target: str = "x86-cpu") -> dict[str, tuple[str, ...]]:
    shipment = shipment_of(found, load_target(target), "twins")
    return {engine.note.name: engine.note.runtimes for engine in (shipment.chosen, *shipment.twins)}


def test_the_fastest_engine_of_another_runtime_and_the_fp32_graph_go_along() -> None:
    found = family(
        ("teacher-fp32", ORT, 3.0), ("teacher-fp32", VINO, 2.0),
        ("teacher-int8-ort", ORT, 1.0), ("teacher-int8-ort", VINO, 1.9),
        ("teacher-int8-openvino", ORT, 2.9), ("teacher-int8-openvino", VINO, 0.8),
        chosen=("teacher-int8-openvino", VINO),
    )  # fmt: skip
    assert shipped(found) == {
        "teacher-int8-openvino": (VINO, ORT),
        "teacher-int8-ort": (ORT, VINO),
        "teacher-fp32": (VINO, ORT),
    }
    reasons = [twin.note.reason for twin in shipment_of(found, load_target("x86-cpu"), "twins").twins]
    assert reasons[0] == "the fastest engine that keeps the limits in onnxruntime"


def test_a_runtime_where_an_int8_engine_is_slower_than_its_twin_is_not_named_for_it() -> None:
    found = family(
        ("teacher-fp32", ORT, 1.0), ("teacher-fp32", VINO, 2.0),
        ("teacher-int8-openvino", ORT, 4.0), ("teacher-int8-openvino", VINO, 0.8),
        chosen=("teacher-int8-openvino", VINO),
    )  # fmt: skip
    assert shipped(found) == {"teacher-int8-openvino": (VINO,), "teacher-fp32": (ORT, VINO)}


def test_the_figures_of_an_engine_are_those_of_the_runtime_that_comes_first() -> None:
    found = family(
        ("teacher-fp32", ORT, 3.0), ("teacher-int8-ort", ORT, 1.0), ("teacher-int8-ort", VINO, 0.5),
        chosen=("teacher-int8-ort", ORT),
    )  # fmt: skip
    note = shipment_of(found, load_target("x86-cpu"), "twins").chosen.note
    assert note.latency is not None
    assert (note.latency.median_ms, note.latency.origin, note.latency.device) == (1.0, "measured", "a desk")
    assert (note.accuracy, note.reason) == (0.9, "it is best")


def test_agreement_is_never_told_as_accuracy() -> None:
    found = family(("teacher-fp32", ORT, 3.0), chosen=("teacher-fp32", ORT))
    agreeing = tuple(e.model_copy(update={"metric": "agreement"}) for e in found.evaluations)
    assert (
        shipment_of(replace(found, evaluations=agreeing), load_target("x86-cpu"), "twins").chosen.note.accuracy is None
    )


def test_a_native_engine_takes_the_graph_that_it_was_built_from_along() -> None:
    draft = Draft()
    draft.add("teacher-fp32", "export", {}, {"model": TEACHER})
    draft.add("teacher-fp16", "fp16", {}, {"model": "teacher-fp32"})
    names = ("teacher-fp32-engine", "teacher-fp16-engine")
    for name in names:
        draft.add(name, "build", {}, {"model": name.removesuffix("-engine")})
    draft.add("profile", "profile", {}, {"candidates": names})
    draft.add("chosen", "select", {"reference": names[0]}, {"candidates": names, "profile": "profile"})
    entries = tuple((name, "tensorrt", ms) for name, ms in zip(names, (2.0, 1.0), strict=True))
    found = _with(draft.graph(), entries, ("teacher-fp16-engine", "tensorrt"), True)
    shipment = shipment_of(found, load_target("jetson"), "twins")
    assert shipment.nodes == ("teacher-fp16-engine", "teacher-fp32-engine", "teacher-fp16", "teacher-fp32")
    assert [engine.note.source for engine in (shipment.chosen, *shipment.twins)] == [
        "teacher-fp16", "teacher-fp32", None, None,
    ]  # fmt: skip
    assert shipment.twins[1].note.reason == "the graph that teacher-fp16-engine was built from"


def converted(*names: str, chosen: tuple[str, str], measured: bool) -> Results:
    """A teacher's FP32 graph and engines that were converted from the teacher itself, `teacher-fp16-ncnn`."""
    draft = Draft()
    draft.add("teacher-fp32", "export", {}, {"model": TEACHER})
    for name in names:
        draft.add(name, "convert", {"to": name.rpartition("-")[2]}, {"model": TEACHER})
    listed = ("teacher-fp32", *names)
    draft.add("profile", "profile", {}, {"candidates": listed})
    draft.add("chosen", "select", {"reference": "teacher-fp32"}, {"candidates": listed, "profile": "profile"})
    entries = [("teacher-fp32", ORT, 3.0), *((name, name.rpartition("-")[2], 1.0) for name in names)]
    return _with(draft.graph(), tuple(entries), chosen, measured)


def test_a_converted_engine_runs_in_its_one_runtime_and_was_built_from_no_graph() -> None:
    found = converted("teacher-fp16-ncnn", chosen=("teacher-fp32", ORT), measured=True)
    assert shipped(found, "raspberry-pi-5") == {"teacher-fp32": (ORT,), "teacher-fp16-ncnn": ("ncnn",)}
    twins = shipment_of(found, load_target("raspberry-pi-5"), "twins").twins
    assert (twins[0].note.source, twins[0].note.reason) == (None, "the fastest engine that keeps the limits in ncnn")


def test_a_converted_engine_that_was_chosen_takes_the_fp32_graph_along() -> None:
    for measured in (True, False):
        found = converted(
            "teacher-int8-executorch", chosen=("teacher-int8-executorch", "executorch"), measured=measured
        )
        found = replace(found, choice=found.choice.model_copy(update={"precision": "int8"}))
        assert shipped(found, "raspberry-pi-5") == {"teacher-int8-executorch": ("executorch",), "teacher-fp32": (ORT,)}


@pytest.mark.parametrize("chosen", ["teacher-fp32", "teacher-fp16-ncnn"])
def test_a_run_with_converted_engines_is_delivered(tmp_path: Path, chosen: str) -> None:
    found = converted("teacher-fp16-ncnn", chosen=(chosen, ORT if chosen == "teacher-fp32" else "ncnn"), measured=False)
    found = replace(found, choice=found.choice.model_copy(update={"precision": "fp32" if "fp32" in chosen else "fp16"}))
    delivered(found, tmp_path, target="raspberry-pi-5")
    deployment = verified_package(tmp_path / "bundle").deployment
    assert deployment is not None
    engines = {engine.name: (engine.format, engine.runtimes, engine.source) for engine in deployment.engines}
    assert engines == {
        "teacher-fp32": ("onnx", (ORT,), None),
        "teacher-fp16-ncnn": ("ncnn", ("ncnn",), None),
    }
    assert deployment.engines[0].name == chosen
    card = (tmp_path / "bundle" / "MODEL_CARD.md").read_text()
    assert f"| {chosen} (chosen) |" in card


def test_where_nothing_was_measured_each_precision_goes_along_once_and_int8_in_both_forms_of_tensorrt() -> None:
    entries = (
        ("teacher-fp32", "tensorrt", 3.0),
        ("teacher-fp16", "tensorrt", 2.0),
        ("teacher-int8-trt", "tensorrt", 1.0),
        ("teacher-int8-trt-qat", "tensorrt", 1.0),
        ("teacher-int8-trt-fp16", "tensorrt", 0.9),
    )
    found = family(*entries, chosen=("teacher-fp16", "tensorrt"), measured=False)
    found = replace(found, choice=found.choice.model_copy(update={"precision": "fp16"}))
    assert shipped(found, "jetson") == {
        "teacher-fp16": ("tensorrt", ORT),
        "teacher-fp32": ("tensorrt", ORT),
        "teacher-int8-trt": ("tensorrt", ORT),
        "teacher-int8-trt-fp16": ("tensorrt", ORT),
    }


def test_the_manifest_of_a_package_says_what_it_was_chosen_and_made_from(tmp_path: Path) -> None:
    manifest = delivered(results(), tmp_path)
    assert manifest.facts["candidate"] == "student-int8-ort"
    assert manifest.facts["measured_on"] == "a desk"
    assert {"sbom.json", "NOTICE.txt", "MODEL_CARD.md", "metrics.json", "deploy.json"} <= manifest.files.keys()
    plain = json.loads((tmp_path / "bundle" / "deploy.json").read_text())
    assert [e["name"] for e in plain["engines"]] == ["student-int8-ort", "student-fp32"]


def test_an_int8_twin_is_compared_with_those_of_its_own_runtime() -> None:
    found = family(
        ("teacher-fp32", ORT, 3.0), ("teacher-fp32", VINO, 0.9),
        ("teacher-int8-ort", ORT, 1.0), ("teacher-int8-openvino", VINO, 0.5),
        chosen=("teacher-int8-openvino", VINO),
    )  # fmt: skip
    assert shipped(found)["teacher-int8-ort"] == (ORT,)


def test_an_engine_that_misses_a_limit_does_not_go_along() -> None:
    found = family(
        ("teacher-fp32", ORT, 3.0), ("teacher-fp32", VINO, 2.0),
        ("teacher-int8-ort", ORT, 1.0), ("teacher-int8-openvino", VINO, 0.5),
        chosen=("teacher-int8-openvino", VINO),
    )  # fmt: skip
    budget = {"max_drop": 0.01}
    nodes = [
        node if node.name != "chosen" else node.model_copy(update={"config": {**node.config, "budget": budget}})
        for node in found.graph.nodes
    ]
    worse = tuple(
        accuracy(e.candidate, 0.5, runtime=e.runtime) if e.candidate == "teacher-int8-ort" else e
        for e in found.evaluations
    )
    found = replace(found, graph=found.graph.model_copy(update={"nodes": tuple(nodes)}), evaluations=worse)
    assert shipped(found).keys() == {"teacher-int8-openvino", "teacher-fp32"}
