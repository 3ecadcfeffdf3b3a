"""The runtimes of engines under the conformance suite, each on an engine that its own converter or builder made."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from edgekd.core.blobs import Blobs
from edgekd.core.bundle import ModelBundle
from edgekd.core.stage import Context, StageResult
from edgekd.errors import UserError
from edgekd.export.convert import CONVERTERS
from edgekd.export.convert_stage import ConvertConfig, ConvertStage
from edgekd.export.engine import BuildConfig, BuildStage
from edgekd.export.parity import module_logits
from edgekd.nn.build import module_from_bundle
from edgekd.runtimes.native_output import native_stderr
from edgekd.runtimes.samples import random_images
from edgekd.runtimes.session import FloatArray, open_bundle
from edgekd.testing.conformance_session import SessionConformance, Subject, need_runtime
from edgekd.testing.harness import make_context, make_inputs, run_stage
from edgekd.testing.toys import toy_bundle
from tests.runtimes.test_session import onnx_subject

SIZE = 32
"""Large enough that the trace of layers, which counts in microseconds, sees them."""


@dataclass(frozen=True)
class Made:
    """A TORCH bundle and the engine that was converted from it."""

    ctx: Context
    source: ModelBundle
    result: StageResult

    @property
    def subject(self) -> Subject:
        module = module_from_bundle(self.source, self.ctx.blobs)

        def reference(images: FloatArray) -> FloatArray:
            return module_logits(module, images)

        bundle = self.result.bundle
        return Subject(runtime=bundle.format, bundle=bundle, blobs=self.ctx.blobs, reference=reference)


def converted(folder: Path, runtime: str) -> Made:
    need_runtime(runtime)
    ctx = make_context(folder)
    source = toy_bundle(ctx.blobs, ctx.scratch, size=SIZE)
    return Made(ctx, source, run_stage(ConvertStage(ConvertConfig(to=runtime)), make_inputs(model=source), ctx))


@pytest.fixture(scope="module")
def executorch(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return converted(tmp_path_factory.mktemp("executorch"), "executorch")


@pytest.fixture(scope="module")
def ncnn(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return converted(tmp_path_factory.mktemp("ncnn"), "ncnn")


@pytest.fixture(scope="module")
def litert(tmp_path_factory: pytest.TempPathFactory) -> Made:
    found = CONVERTERS.get("litert").availability()
    if not found.ok:
        pytest.skip(f"needs the converter to litert: {found.reason} ({found.install})")
    return converted(tmp_path_factory.mktemp("litert"), "litert")


@pytest.mark.slow
@pytest.mark.needs("executorch")
class TestExecuTorch(SessionConformance):
    @pytest.fixture
    def subject(self, executorch: Made) -> Subject:
        return executorch.subject

    def test_sessions_of_other_thread_counts_take_turns_with_one_pool(self, subject: Subject) -> None:
        images = subject.images(1)
        with subject.open(threads=1) as one, subject.open(threads=3) as three:
            for _ in range(3):  # a pool that is exchanged under a loaded program ends the process
                found = [s.infer({subject.input_name: images})[subject.output_name] for s in (one, three)]
                np.testing.assert_array_equal(*found)
            assert (one.environment()["threads"], three.environment()["threads"]) == (1, 3)

    def test_a_file_that_is_no_program_is_refused_with_the_library_s_reason(self, tmp_path: Path) -> None:
        from edgekd.runtimes.executorch import RUNTIME

        need_runtime("executorch")
        path = tmp_path / "model.pte"
        path.write_bytes(b"not a program at all" * 10)
        with pytest.raises(UserError, match=r"cannot load .*model\.pte: Program identifier"):
            RUNTIME.open(path)

    def test_a_truncated_program_is_refused(self, executorch: Made, tmp_path: Path) -> None:
        from edgekd.runtimes.executorch import RUNTIME

        whole = executorch.ctx.path(executorch.result.bundle, "model.pte").read_bytes()
        path = tmp_path / "model.pte"
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(UserError, match="File size is too small"):
            RUNTIME.open(path)

    def test_a_program_that_is_opened_alone_has_the_usual_names(self, executorch: Made) -> None:
        from edgekd.runtimes.executorch import RUNTIME

        with RUNTIME.open(executorch.ctx.path(executorch.result.bundle, "model.pte")) as session:
            assert session.input_names == ("images",)


@pytest.mark.needs("ncnn")
class TestNcnn(SessionConformance):
    @pytest.fixture
    def subject(self, ncnn: Made) -> Subject:
        return ncnn.subject

    def test_a_file_that_is_no_network_is_refused_with_the_library_s_reason(self, tmp_path: Path) -> None:
        from edgekd.runtimes.ncnn import RUNTIME

        need_runtime("ncnn")
        (tmp_path / "model.param").write_text("not a network\n")
        with pytest.raises(UserError, match=r"cannot load .*model\.param .*: parse magic failed"):
            RUNTIME.open(tmp_path / "model.param")

    def test_missing_weights_are_said(self, ncnn: Made, tmp_path: Path) -> None:
        from edgekd.runtimes.ncnn import RUNTIME

        text = ncnn.ctx.path(ncnn.result.bundle, "model.param").read_text()
        (tmp_path / "model.param").write_text(text)
        with pytest.raises(UserError, match=r"with .*model\.bin: fopen .* failed"):
            RUNTIME.open(tmp_path / "model.param")

    def test_full_precision_is_computed_in_full_precision(self, subject: Subject) -> None:
        with subject.open() as session:
            assert session.environment()["arithmetic"] == "float32"


@pytest.mark.slow
@pytest.mark.needs("litert")
class TestLiteRt(SessionConformance):
    @pytest.fixture
    def subject(self, litert: Made) -> Subject:
        return litert.subject

    def test_a_file_that_is_no_model_is_refused_with_the_library_s_reason(self, tmp_path: Path) -> None:
        from edgekd.runtimes.litert import RUNTIME

        need_runtime("litert")
        (tmp_path / "model.tflite").write_bytes(b"no model")
        with pytest.raises(UserError, match=r"LiteRT .* cannot load .*model\.tflite"):
            RUNTIME.open(tmp_path / "model.tflite")

    def test_xnnpack_takes_the_whole_graph(self, subject: Subject) -> None:
        with subject.open() as session:
            found = session.environment()
        assert (found["provider"], found["xnnpack_parts"]) == ("XNNPACK", 1)


@pytest.mark.needs("tensorrt", "gpu")
class TestTensorRt(SessionConformance):
    @pytest.fixture
    def subject(self, tmp_path: Path) -> Subject:
        need_runtime("tensorrt")
        graph = onnx_subject("tensorrt", tmp_path)
        built = run_stage(BuildStage(BuildConfig(max_batch=8)), make_inputs(model=graph.bundle), _beside(graph.blobs))
        return Subject(runtime="tensorrt", bundle=built.bundle, blobs=graph.blobs, reference=graph.reference)


def _beside(blobs: Blobs) -> Context:
    folder = Path(str(blobs.folder)).parent  # type: ignore[attr-defined]
    return make_context(folder)


def test_images_of_a_batch_do_not_depend_on_each_other(request: pytest.FixtureRequest) -> None:
    made: Made = request.getfixturevalue("ncnn")
    images = random_images((3, SIZE, SIZE), samples=3, seed=4)
    with open_bundle(made.result.bundle, made.ctx.blobs, "ncnn", threads=1) as session:
        whole = session.infer({"images": images})["logits"]
        swapped = session.infer({"images": np.ascontiguousarray(images[::-1])})["logits"]
    np.testing.assert_array_equal(whole, swapped[::-1])


def test_what_native_code_writes_to_stderr_is_kept_and_shown_no_more(capfd: pytest.CaptureFixture[str]) -> None:
    with native_stderr() as said:
        os.write(2, b"[program.cpp:168] first\n[program.cpp:170] the reason\n\n")
    os.write(2, b"after")
    assert said.last == "the reason"
    with native_stderr() as said:
        sys.stderr.write("[x.cpp:1] by way of Python\n")
    assert said.last == "by way of Python"
    assert capfd.readouterr().err == "after"
