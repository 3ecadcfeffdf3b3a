"""`deploy.json`: what it says of each engine, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from edgekd.core.bundle import BundleKind, ModelBundle, TensorSpec
from edgekd.core.deployment import DeployedEngine, Deployment
from edgekd.core.digest import file_digest
from edgekd.core.stage import Context
from edgekd.errors import UserError
from edgekd.export.amend import AddedEngine, with_engines
from edgekd.export.deployment import EngineNote, Shipped, note_from_bundle, runtimes_for
from edgekd.export.manifest import Manifest
from edgekd.export.package import verified_package, write_package
from edgekd.targets.load import load_target
from edgekd.testing.harness import make_context
from edgekd.testing.toy_graphs import toy_onnx_bundle
from edgekd.testing.toys import toy_bundle


@pytest.fixture
def ctx(tmp_path: Path) -> Context:
    return make_context(tmp_path)


def shipped(ctx: Context, name: str, seed: int = 0, **more: object) -> Shipped:
    bundle = toy_onnx_bundle(ctx.blobs, ctx.scratch, seed=seed)
    return Shipped(bundle=bundle.model_copy(update=more), note=EngineNote(name=name, runtimes=("onnxruntime",)))


def write(ctx: Context, folder: Path, chosen: Shipped, *twins: Shipped) -> Manifest:
    return write_package(
        chosen.bundle,
        ctx.blobs,
        folder,
        target=load_target("x86-cpu"),
        versions={},
        extra={},
        chosen=chosen,
        twins=twins,
    )


def test_twins_lie_in_folders_of_their_own_and_the_chosen_one_at_the_top(ctx: Context, tmp_path: Path) -> None:
    write(ctx, tmp_path / "out", shipped(ctx, "int8", 0), shipped(ctx, "fp32", 1))
    package = verified_package(tmp_path / "out")
    assert package.deployment is not None
    first, second = package.deployment.engines
    assert (first.name, first.chosen, first.files) == ("int8", True, {"model.onnx": "model.onnx"})
    assert (second.name, second.chosen, second.files) == ("fp32", False, {"model.onnx": "engines/fp32/model.onnx"})
    assert (tmp_path / "out" / "engines" / "fp32" / "model.onnx").stat().st_size / (1 << 20) == second.size_mib
    assert package.bundle.files["model.onnx"] == file_digest(tmp_path / "out" / "model.onnx")
    plain = json.loads((tmp_path / "out" / "deploy.json").read_text())
    assert plain["input"] == {"name": "images", "shape": ["N", 3, 8, 8], "dtype": "float32", "layout": "NCHW"}
    assert plain["labels"] == [f"class{n}" for n in range(4)]
    assert Deployment.parse(plain, "deploy.json") == package.deployment


def test_engines_that_cannot_stand_in_for_each_other_are_refused(ctx: Context, tmp_path: Path) -> None:
    other = shipped(ctx, "other", 1, outputs=(TensorSpec(name="logits", shape=("N", 9)),))
    with pytest.raises(UserError, match="other has other inputs or outputs than the others"):
        write(ctx, tmp_path / "out", shipped(ctx, "a"), other)
    with pytest.raises(UserError, match="two engines have one name"):
        write(ctx, tmp_path / "out", shipped(ctx, "a"), shipped(ctx, "A"))
    assert not (tmp_path / "out").exists()


def converted(ctx: Context, name: str, format: str, files: tuple[str, ...]) -> Shipped:
    """An engine for one image a call, as `convert` makes it."""
    one = shipped(ctx, name)
    specs = {
        port: tuple(spec.model_copy(update={"shape": (1, *spec.shape[1:])}) for spec in getattr(one.bundle, port))
        for port in ("inputs", "outputs")
    }
    content = one.bundle.files["model.onnx"]
    update = {
        "kind": BundleKind.ENGINE, "files": dict.fromkeys(files, content), **specs,
        "tags": {"format": format, "precision": "fp16"},
    }  # fmt: skip
    return Shipped(
        bundle=one.bundle.model_copy(update=update), note=note_from_bundle(one.bundle.model_copy(update=update), PI)
    )


PI = load_target("raspberry-pi-5")
FILES = {"ncnn": ("model.param", "model.bin"), "executorch": ("model.pte",), "litert": ("model.tflite",)}


@pytest.mark.parametrize("format", FILES)
def test_a_converted_engine_is_named_with_its_format_files_and_runtime(
    ctx: Context, tmp_path: Path, format: str
) -> None:
    one = converted(ctx, "converted", format, FILES[format])
    graph = shipped(ctx, "fp32", 1)
    for chosen, twins, free in ((graph, [one], "N"), (one, [graph], "N"), (one, [], 1)):
        named = [
            Shipped(bundle=each.bundle, note=replace(each.note, name=name))
            for name, each in zip("ab", (chosen, *twins), strict=False)
        ]
        write(ctx, tmp_path / "out", *named)
        found = verified_package(tmp_path / "out").deployment
        assert found is not None
        entry = next(engine for engine in found.engines if engine.format == format)
        assert entry.runtimes == (format,)
        assert sorted(entry.files) == sorted(FILES[format])
        assert entry.source is None
        assert (found.input.shape[0], found.outputs[0].shape[0]) == (free, free)
        size = sum((tmp_path / "out" / path).stat().st_size for path in entry.files.values())
        assert entry.size_mib == size / (1 << 20)


def test_a_graph_is_not_said_to_run_where_engines_are_converted(ctx: Context) -> None:
    assert runtimes_for(toy_onnx_bundle(ctx.blobs, ctx.scratch), PI) == ("onnxruntime",)


def test_weights_deploy_nothing_yet(ctx: Context, tmp_path: Path) -> None:
    write_package(toy_bundle(ctx.blobs, ctx.scratch), ctx.blobs, tmp_path / "out", target=None, versions={}, extra={})
    assert verified_package(tmp_path / "out").deployment is None
    assert not (tmp_path / "out" / "deploy.json").exists()


def test_a_package_of_schema_1_is_still_read(ctx: Context, tmp_path: Path) -> None:
    manifest = write(ctx, tmp_path / "out", shipped(ctx, "a"))
    old = {name: digest for name, digest in manifest.files.items() if name != "deploy.json"}
    (tmp_path / "out" / "manifest.json").write_text(json.dumps({"schema_version": 1, "files": old}))
    found = verified_package(tmp_path / "out")
    assert found.deployment is None
    assert found.bundle.file("model.onnx") == old["model.onnx"]


def test_an_engine_of_unlisted_files_is_refused(ctx: Context, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(ctx, out, shipped(ctx, "a"))
    plain = json.loads((out / "deploy.json").read_text())
    plain["engines"][0]["files"] = {"model.onnx": "/etc/passwd"}
    (out / "deploy.json").write_text(json.dumps(plain))
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["files"]["deploy.json"] = file_digest(out / "deploy.json")
    (out / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="names /etc/passwd, which the manifest does not list"):
        verified_package(out)


def test_runtimes_come_in_the_order_of_the_choice_then_the_card(ctx: Context) -> None:
    fp32 = toy_onnx_bundle(ctx.blobs, ctx.scratch)
    assert runtimes_for(fp32, load_target("x86-cpu"), "openvino")[0] == "openvino"
    assert runtimes_for(fp32, load_target("jetson")) == ("tensorrt", "onnxruntime")
    unsigned = fp32.model_copy(update={"tags": {"precision": "int8", "scheme": "ort-u8s8"}})
    assert "tensorrt" not in runtimes_for(unsigned, load_target("jetson"))


def engine(ctx: Context, tmp_path: Path, name: str, source: str | None) -> AddedEngine:
    paths = {f"engines/{name}/model.engine": b"plan", f"engines/{name}/model.engine.json": b"{}"}
    for number, data in enumerate(paths.values()):
        (tmp_path / f"{number}").write_bytes(data)
    (first, second) = paths
    entry = {
        "name": name, "format": "tensorrt", "files": {"model.engine": first}, "runtimes": ["tensorrt"],
        "precision": "fp32", "size_mib": 0.1, "fingerprint": second, "source": source,
    }  # fmt: skip
    files = {path: tmp_path / f"{number}" for number, path in enumerate(paths)}
    return AddedEngine(entry=DeployedEngine.parse(entry, "x"), files=files)


def test_an_engine_that_was_built_later_stands_before_its_source(ctx: Context, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(ctx, out, shipped(ctx, "a"), shipped(ctx, "b", 1))
    with_engines(verified_package(out), out, [engine(ctx, tmp_path, "b-engine", "b")])
    once = verified_package(out)
    assert once.deployment is not None
    assert [e.name for e in once.deployment.engines] == ["a", "b-engine", "b"]
    assert (out / "engines" / "b-engine" / "model.engine").read_bytes() == b"plan"
    with_engines(once, tmp_path / "two", [engine(ctx, tmp_path, "b-engine", "b")])
    assert verified_package(tmp_path / "two").digest == once.digest


def test_an_engine_that_does_not_keep_to_its_place_is_refused(ctx: Context, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(ctx, out, shipped(ctx, "a"))
    package = verified_package(out)
    with pytest.raises(UserError, match="the name of the chosen one"):
        with_engines(package, out, [engine(ctx, tmp_path, "a", None)])
    with pytest.raises(UserError, match="built from nobody, which is no graph"):
        with_engines(package, out, [engine(ctx, tmp_path, "b", "nobody")])
    stray = engine(ctx, tmp_path, "b", "a")
    stray = AddedEngine(entry=stray.entry, files={**stray.files, "README.txt": tmp_path / "0"})
    with pytest.raises(UserError, match=r"b names README\.txt, which was not given for it"):
        with_engines(package, out, [stray])
    assert verified_package(out).digest == package.digest


def test_a_bundle_of_files_that_collide_is_never_written(ctx: Context, tmp_path: Path) -> None:
    one = shipped(ctx, "a")
    files = {**one.bundle.files, "MODEL.onnx": one.bundle.files["model.onnx"]}
    twice = Shipped(bundle=ModelBundle.model_copy(one.bundle, update={"files": files}), note=one.note)
    with pytest.raises(UserError, match="are one file where case does not count"):
        write(ctx, tmp_path / "out", twice)
