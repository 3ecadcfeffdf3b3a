"""Which engines a benchmark builds, where it tries them, and what it says of runtimes that are not there."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest

from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.graph import validate_graph
from edgekd.errors import UserError
from edgekd.export.convert import CONVERTERS, Conversion, Converted, Converter
from edgekd.pipeline.benchmark.draft import Contest, contest_of
from edgekd.pipeline.benchmark.request import BenchmarkRequest
from edgekd.pipeline.request import ModelSource
from edgekd.pipeline.stages import STAGES
from edgekd.runtimes.session import RUNTIMES, Availability, Runtime, Session
from edgekd.targets.schema import Precision
from edgekd.testing.harness import make_context
from edgekd.testing.toy_data import toy_dataset
from edgekd.testing.toy_graphs import toy_onnx_bundle
from edgekd.testing.toys import toy_bundle
from tests.profiling.cards import card

DATA = toy_dataset(n=64)


class Fake(Runtime):
    """A runtime of engines of its own, or of graphs."""

    name = "fake"
    accepts = frozenset({BundleKind.ENGINE})
    formats = frozenset({"fake"})
    model_file = "model.fake"
    state: ClassVar[Availability] = Availability(ok=True, version="1")

    def availability(self) -> Availability:
        return self.state

    def open(self, path: Path, *, threads: int | None = None, batch: int | None = None) -> Session:
        raise UserError("it opens nothing")


class FakeConverter(Converter):
    """Writes nothing."""

    name = "fake"
    takes = BundleKind.TORCH
    precisions: ClassVar[tuple[Precision, ...]] = ("fp32", "int8")
    state: ClassVar[Availability] = Availability(ok=True, version="1")

    def availability(self) -> Availability:
        return self.state

    def convert(self, job: Conversion) -> Converted:
        return Converted(files={})


RUNTIME, CONVERTER = Fake(), FakeConverter()


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RUNTIMES._where, "fake", f"{__name__}:RUNTIME")
    monkeypatch.setitem(CONVERTERS._where, "fake", f"{__name__}:CONVERTER")


def contest(model: ModelBundle, *, data: bool = True, **fields: object) -> Contest:
    given = {"model": ModelSource(path="m.pt"), "target": "host", "runtimes": ("onnxruntime", "openvino"), **fields}
    dataset = DATA if data else None
    found = contest_of(BenchmarkRequest.model_validate(given), {"model": model}, dataset, card(here=True))
    validate_graph(found.graph, STAGES)
    return found


def tried(found: Contest) -> dict[str, tuple[str, ...]]:
    return {contestant.name: contestant.runtimes for contestant in found.contestants}


@pytest.fixture
def torch_model(tmp_path: Path) -> ModelBundle:
    ctx = make_context(tmp_path)
    return toy_bundle(ctx.blobs, ctx.scratch)


@pytest.fixture
def graph(tmp_path: Path) -> ModelBundle:
    ctx = make_context(tmp_path)
    return toy_onnx_bundle(ctx.blobs, ctx.scratch)


def test_a_network_is_exported_and_its_twins_are_tried_where_their_form_belongs(torch_model: ModelBundle) -> None:
    found = contest(torch_model, runtimes=("onnxruntime", "openvino", "torch"))
    both = ("onnxruntime", "openvino")
    assert tried(found) == {
        "fp32": both, "fp16": both, "pytorch": ("torch",), "int8-ort": both, "int8-openvino": ("openvino",),
    }  # fmt: skip
    assert found.reference is not None
    assert (found.reference[0].name, found.reference[1]) == ("fp32", "onnxruntime")
    stages = [node.stage for node in found.graph.nodes]
    assert stages[:5] == ["calibration", "export", "fp16", "quantize", "quantize"]
    assert stages[5:] == ["answers"] * 8


def test_only_the_asked_precisions_are_built_and_fp32_always_because_all_is_compared_with_it(
    graph: ModelBundle,
) -> None:
    found = contest(graph, precisions=("int8",), runtimes=("onnxruntime",))
    assert list(tried(found)) == ["fp32", "int8-ort"]
    assert found.graph.nodes[1].stage == "conform"


def test_every_answer_is_compared_with_the_reference_which_is_kept(graph: ModelBundle) -> None:
    nodes = [node for node in contest(graph).graph.nodes if node.stage == "answers"]
    assert (nodes[0].name, nodes[0].config["keep"], "reference" in nodes[0].inputs) == (
        "answers-fp32-onnxruntime", True, False,
    )  # fmt: skip
    assert {node.inputs["reference"] for node in nodes[1:]} == {("answers-fp32-onnxruntime",)}


def test_without_data_int8_keeps_activations_in_float_and_the_table_says_what_images_would_add(
    graph: ModelBundle,
) -> None:
    found = contest(graph, data=False)
    assert tried(found)["int8-weights"] == ("onnxruntime", "openvino")
    assert "--data FOLDER_OR_NPZ" in found.decisions[0]


def test_a_graph_that_is_int8_already_is_measured_as_it_is(graph: ModelBundle) -> None:
    int8 = graph.model_copy(update={"tags": {"precision": "int8", "scheme": "ort-u8s8"}})
    found = contest(int8)
    assert tried(found) == {"model": ("onnxruntime", "openvino")}
    assert found.decisions == (
        "Measured as they are, and not built anew, are the finished engines of this model: model.",
    )
    assert found.reference is not None
    assert found.reference[0].precision == "int8"


def test_the_engines_of_a_package_are_compared_with_its_fp32_one_and_none_is_made(graph: ModelBundle) -> None:
    int8 = graph.model_copy(update={"tags": {"precision": "int8", "scheme": "ort-u8s8"}})
    request = BenchmarkRequest(model=ModelSource(path="m.edgekd"), target="host", runtimes=("onnxruntime",))
    found = contest_of(request, {"Student.int8": int8, "student-fp32": graph}, DATA, card(here=True))
    assert [node.name for node in found.graph.nodes] == [
        "answers-student-fp32-onnxruntime", "answers-student-int8-onnxruntime",
    ]  # fmt: skip
    assert found.reference is not None
    assert found.reference[0].name == "student-fp32"


def test_synthetic_images_need_the_statistics_of_a_network(graph: ModelBundle, torch_model: ModelBundle) -> None:
    request = BenchmarkRequest(model=ModelSource(path="m"), target="host", data="synthetic", runtimes=("onnxruntime",))
    found = contest_of(request, {"model": torch_model}, None, card(here=True))
    assert found.graph.nodes[0].stage == "synthetic-samples"
    assert "int8-ort" in tried(found)
    with pytest.raises(UserError, match="BatchNorm statistics of a PyTorch model, and this is a graph"):
        contest_of(request, {"model": graph}, None, card(here=True))


def test_an_unknown_runtime_is_refused_with_the_near_name(graph: ModelBundle) -> None:
    with pytest.raises(UserError, match="Did you mean 'openvino'"):
        contest(graph, runtimes=("openvin",))


@pytest.mark.usefixtures("fake")
def test_a_runtime_with_a_converter_gets_an_engine_of_each_precision_it_writes(
    torch_model: ModelBundle, graph: ModelBundle
) -> None:
    found = contest(torch_model, runtimes=("onnxruntime", "fake"))
    assert tried(found)["fake-fp32"] == tried(found)["fake-int8"] == ("fake",)
    assert "fake-int8" not in tried(contest(torch_model, data=False, runtimes=("onnxruntime", "fake")))
    (absent,) = contest(graph, runtimes=("onnxruntime", "fake")).absent
    assert absent.reason == "it runs nothing that can be made here from a model that comes as ONNX"


@pytest.mark.usefixtures("fake")
def test_a_missing_runtime_or_converter_is_told_with_the_command_that_installs_it(
    torch_model: ModelBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = Availability(ok=False, reason="fake is not installed", install="pip install fake")
    monkeypatch.setattr(FakeConverter, "state", gone)
    (absent,) = contest(torch_model, runtimes=("onnxruntime", "fake")).absent
    assert (absent.runtime, absent.installable) == ("fake", True)
    assert absent.reason == "its converter is missing: fake is not installed (pip install fake)"
    monkeypatch.setattr(Fake, "state", gone)
    (absent,) = contest(torch_model, runtimes=("onnxruntime", "fake")).absent
    assert absent.reason == "fake is not installed (pip install fake)"


def test_where_tensorrt_is_at_hand_its_engines_are_built_from_all_four_graphs(
    graph: ModelBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        type(RUNTIMES.get("tensorrt")), "availability", lambda self: Availability(ok=True, version="10")
    )
    found = contest(graph, runtimes=("onnxruntime", "tensorrt"))
    names = [name for name, runtimes in tried(found).items() if runtimes == ("tensorrt",)]
    assert names == ["fp32-engine", "fp16-engine", "int8-trt-engine", "int8-trt-fp16-engine"]
