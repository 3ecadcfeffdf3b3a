from __future__ import annotations

import json
import os
import tempfile
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.digest import file_digest
from edgekd.core.stage import Context
from edgekd.errors import UserError
from edgekd.export import readme
from edgekd.export.archive import open_package, pack
from edgekd.export.deployment import EngineNote, Shipped
from edgekd.export.manifest import Manifest
from edgekd.export.package import read_package, verified_package, write_package
from edgekd.runtimes.samples import random_images
from edgekd.runtimes.session import open_bundle
from edgekd.targets.load import load_target
from edgekd.testing.harness import make_context
from edgekd.testing.toy_graphs import toy_onnx_bundle
from edgekd.testing.toys import toy_bundle


@pytest.fixture
def ctx(tmp_path: Path) -> Context:
    return make_context(tmp_path)


def write(
    ctx: Context, folder: Path, bundle: ModelBundle | None = None, target: str = "x86-cpu", **extra: str
) -> Manifest:
    return write_package(
        bundle or toy_onnx_bundle(ctx.blobs, ctx.scratch),
        ctx.blobs,
        folder,
        target=load_target(target),
        versions={"edgekd": "0.1.0"},
        extra={"run": "r1", **extra},
    )


def test_a_package_comes_back_as_the_bundle_that_went_in_and_runs(ctx: Context, tmp_path: Path) -> None:
    bundle = toy_onnx_bundle(ctx.blobs, ctx.scratch)
    write(ctx, tmp_path / "out", bundle)
    found, files = read_package(tmp_path / "out")
    assert found == bundle
    images = {"images": random_images((3, 8, 8), samples=2, seed=0)}
    with open_bundle(bundle, ctx.blobs, "onnxruntime") as one, open_bundle(found, files, "onnxruntime") as two:
        np.testing.assert_array_equal(one.infer(images)["logits"], two.infer(images)["logits"])


def test_the_manifest_holds_every_file_and_where_it_came_from(ctx: Context, tmp_path: Path) -> None:
    manifest = write(ctx, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {*manifest.files, "manifest.json"}
    assert {
        "model.onnx",
        "preprocessing.json",
        "labels.txt",
        "target.yaml",
        "bundle.json",
        "deploy.json",
        "README.txt",
    } <= names
    assert all(file_digest(tmp_path / "out" / name) == digest for name, digest in manifest.files.items())
    assert manifest.versions == {"edgekd": "0.1.0"}
    assert manifest.facts == {"run": "r1"}
    assert (tmp_path / "out" / "labels.txt").read_text() == "class0\nclass1\nclass2\nclass3\n"


def test_the_readme_says_how_to_feed_and_run_the_model(ctx: Context, tmp_path: Path) -> None:
    write(ctx, tmp_path / "out")
    text = (tmp_path / "out" / "README.txt").read_text()
    assert "float32, N x 3 x 8 x 8" in text
    assert "subtract [0.5, 0.5, 0.5] and divide by [0.5, 0.5, 0.5]" in text
    assert 'InferenceSession("model.onnx"' in text
    assert 'read_model("model.onnx"' in text
    assert "trtexec" not in text


def test_the_readme_s_code_runs_as_it_is_printed(ctx: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(ctx, tmp_path / "out")
    monkeypatch.chdir(tmp_path / "out")
    text = Path("README.txt").read_text()
    snippets = [part.split("\n\n")[0] for part in text.split(":\n\n    ")[1:]]
    assert len(snippets) == 2
    answers = []
    for snippet in snippets:
        names = {"images": random_images((3, 8, 8), samples=1, seed=0)}
        exec(textwrap.dedent(f"    {snippet}"), names)
        answers.append(np.asarray(names["logits"]))
    np.testing.assert_allclose(answers[0], answers[1], rtol=1e-4, atol=1e-5)


def test_the_chosen_runtime_comes_first_with_what_was_measured_there(ctx: Context, tmp_path: Path) -> None:
    facts = {"runtime": "openvino", "threads": "3", "latency": "0.361 ms", "measured_on": "a desk (4 cores)"}
    write(ctx, tmp_path / "out", **facts)
    text = (tmp_path / "out" / "README.txt").read_text()
    said = "Chosen to run in OpenVINO: a median latency of 0.361 ms at batch 1 and 3 CPU threads, measured on\na desk"
    assert text.index(said) < text.index("With OpenVINO:") < text.index("With ONNX Runtime:")
    assert '"INFERENCE_NUM_THREADS": 3' in text
    assert "intra_op_num_threads = 3" in text
    assert "graph.reshape([1, 3, 8, 8])" in text
    assert 'add_free_dimension_override_by_name("N", 1)' in text


def test_a_prediction_is_not_called_a_measurement(ctx: Context, tmp_path: Path) -> None:
    write(ctx, tmp_path / "out", target="jetson", runtime="tensorrt", threads="1", latency="1.20 ms")
    text = (tmp_path / "out" / "README.txt").read_text()
    assert "Chosen to run in TensorRT. Nothing was measured: the target's card predicts 1.20 ms at batch 1." in text
    assert "measured on" not in text


def test_a_model_without_labels_is_handed_over_without_a_word_of_them(ctx: Context, tmp_path: Path) -> None:
    bundle = toy_onnx_bundle(ctx.blobs, ctx.scratch)
    bundle = bundle.model_copy(update={"recipe": bundle.model.model_copy(update={"labels": ()})})
    write(ctx, tmp_path / "out", bundle)
    assert "labels" not in (tmp_path / "out" / "README.txt").read_text()
    assert not (tmp_path / "out" / "labels.txt").exists()


def test_a_jetson_package_holds_the_build_command(ctx: Context, tmp_path: Path) -> None:
    write(ctx, tmp_path / "out", target="jetson")
    assert "trtexec --onnx=model.onnx" in (tmp_path / "out" / "README.txt").read_text()


def test_a_torch_package_says_how_to_load_the_weights(ctx: Context, tmp_path: Path) -> None:
    write(ctx, tmp_path / "out", toy_bundle(ctx.blobs, ctx.scratch))
    assert "module_from_bundle(*read_package(FOLDER))" in (tmp_path / "out" / "README.txt").read_text()


def flip_last_byte(folder: Path) -> None:
    path = folder / "model.onnx"
    path.chmod(0o644)
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def drop_labels(folder: Path) -> None:
    (folder / "labels.txt").unlink()


def list_a_path_outside(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["../secret"] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps(manifest))


def forget_the_model(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["files"]["model.onnx"]
    (folder / "manifest.json").write_text(json.dumps(manifest))


def raise_the_schema(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "schema_version": 99}))


def remove_the_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (flip_last_byte, "model.onnx was changed"),
        (drop_labels, "the file labels.txt is missing"),
        (list_a_path_outside, "not a plain relative path"),
        (forget_the_model, "disagree about model.onnx"),
        (raise_the_schema, "package schema 99, this edgekd reads 1 and 2"),
        (remove_the_manifest, "is not a package"),
    ],
)
def test_a_package_that_was_changed_is_refused(
    ctx: Context, tmp_path: Path, tamper: Callable[[Path], None], message: str
) -> None:
    write(ctx, tmp_path / "out")
    tamper(tmp_path / "out")
    with pytest.raises(UserError, match=message):
        read_package(tmp_path / "out")


def test_an_earlier_package_is_replaced_and_anything_else_is_left_alone(ctx: Context, tmp_path: Path) -> None:
    write(ctx, tmp_path / "out", target="jetson")
    write(ctx, tmp_path / "out")
    assert "trtexec" not in (tmp_path / "out" / "README.txt").read_text()
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="not empty and not a package"):
        write(ctx, tmp_path / "home")
    with pytest.raises(UserError, match=r"thesis\.txt is a file"):
        write(ctx, tmp_path / "home" / "thesis.txt")
    assert (tmp_path / "home" / "thesis.txt").exists()


def test_a_manifest_alone_makes_no_package(ctx: Context, tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "manifest.json").write_text('{"name": "a web page", "files": ["index.html"]}')
    with pytest.raises(UserError, match="not empty and not a package"):
        write(ctx, tmp_path / "site")
    assert (tmp_path / "site" / "manifest.json").exists()


def test_a_write_that_fails_leaves_nothing_behind(
    ctx: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_args: object) -> str:
        raise UserError("no")

    monkeypatch.setattr("edgekd.export.package.package_readme", failing)
    before = set(tmp_path.iterdir())
    with pytest.raises(UserError, match="no"):
        write(ctx, tmp_path / "out")
    assert set(tmp_path.iterdir()) - before <= {tmp_path / "blobs"}


def test_what_is_no_model_cannot_be_packaged(ctx: Context, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="this is a report bundle"):
        write(ctx, tmp_path / "out", ModelBundle(kind=BundleKind.REPORT))


def test_a_package_is_read_only(ctx: Context, tmp_path: Path) -> None:
    write(ctx, tmp_path / "out")
    _, files = read_package(tmp_path / "out")
    with pytest.raises(UserError, match="read-only"):
        files.add(tmp_path / "out" / "README.txt")
    with pytest.raises(UserError, match="no file with the digest"):
        files.path(file_digest(tmp_path / "out" / "manifest.json"))


def test_a_package_that_cannot_take_its_place_leaves_the_earlier_one(
    ctx: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(ctx, tmp_path / "out", run="first")
    before, real = (tmp_path / "out" / "manifest.json").read_bytes(), os.replace

    def failing(source: Path, target: Path) -> None:
        if Path(target) == tmp_path / "out" and not str(source).endswith("-old"):
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(KeyboardInterrupt):
        write(ctx, tmp_path / "out", run="second")
    assert (tmp_path / "out" / "manifest.json").read_bytes() == before
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".package-")] == []


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    labels=st.lists(st.text(max_size=8), min_size=4, max_size=4),
    facts=st.dictionaries(st.text(max_size=6), st.text(max_size=12), max_size=3),
    name=st.from_regex(r"[a-z0-9][a-z0-9._-]{0,20}[a-z0-9]", fullmatch=True),
    reason=st.text(max_size=20),
)
def test_whatever_goes_into_a_package_comes_out_of_one_file(
    ctx: Context, labels: list[str], facts: dict[str, str], name: str, reason: str
) -> None:
    plain = toy_onnx_bundle(ctx.blobs, ctx.scratch)
    bundle = plain.model_copy(update={"recipe": plain.model.model_copy(update={"labels": tuple(labels)})})
    note = EngineNote(name=name, runtimes=("onnxruntime",), reason=reason)
    twin = Shipped(bundle=bundle, note=EngineNote(name="other-twin", runtimes=("onnxruntime",)))
    with tempfile.TemporaryDirectory() as place:
        folder, target = Path(place, "out"), load_target("x86-cpu")
        write_package(
            bundle, ctx.blobs, folder, target=target, versions={}, extra=facts,
            chosen=Shipped(bundle=bundle, note=note), twins=[twin],
        )  # fmt: skip
        pack(verified_package(folder), Path(place, "model.edgekd"))
        with open_package(Path(place, "model.edgekd")) as found:
            assert found.bundle == bundle
            assert found.manifest.facts == facts
            assert found.deployment is not None
            assert found.deployment.labels == tuple(labels)
            assert (found.deployment.engines[0].name, found.deployment.engines[0].reason) == (name, reason)


@pytest.mark.parametrize("name", ["bundle.json", "deploy.json"])
def test_json_that_is_nested_without_end_is_refused(ctx: Context, tmp_path: Path, name: str) -> None:
    write(ctx, tmp_path / "out")
    (tmp_path / "out" / name).write_text("[" * 100_000)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    manifest["files"][name] = file_digest(tmp_path / "out" / name)
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"not valid JSON"):
        read_package(tmp_path / "out")


def engine(ctx: Context, runtime: str, *files: str, precision: str = "fp32") -> ModelBundle:
    """An engine of another runtime; its files are not looked into."""
    source = toy_onnx_bundle(ctx.blobs, ctx.scratch)
    held = {}
    for name in files:
        (ctx.scratch / name).write_text(name)
        held[name] = ctx.blobs.add(ctx.scratch / name)
    tags = {"format": runtime, "precision": precision, "converter": "maker 1.2"}
    return source.model_copy(update={"kind": BundleKind.ENGINE, "files": held, "tags": tags})


def test_an_engine_s_package_says_how_to_run_it_and_what_made_it(ctx: Context, tmp_path: Path) -> None:
    write(ctx, tmp_path / "out", engine(ctx, "ncnn", "model.param", "model.bin", precision="fp16"), "raspberry-pi-5")
    text = (tmp_path / "out" / "README.txt").read_text()
    assert 'network.load_param("model.param")' in text
    assert "half = True" in text
    assert "made by maker 1.2" in text
    assert "onnxruntime" not in text
    assert read_package(tmp_path / "out")[0].format == "ncnn"


def test_an_engine_without_a_text_of_its_own_says_what_its_files_are(
    ctx: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(readme._ENGINES, "litert")
    write(ctx, tmp_path / "out", engine(ctx, "litert", "model.tflite"))
    assert "model.tflite: an engine for LiteRT, made by maker 1.2." in (tmp_path / "out" / "README.txt").read_text()
