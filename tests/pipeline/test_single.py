"""Opening finished bundles, and matching data to them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgekd.core.blobs import FolderBlobs
from edgekd.core.digest import file_digest
from edgekd.data.sources import load_dataset
from edgekd.errors import UserError
from edgekd.export.archive import pack
from edgekd.export.package import verified_package, write_package
from edgekd.pipeline.single import Origin, data_for, workbench
from edgekd.targets.load import load_target
from edgekd.testing.toy_graphs import toy_graph, toy_onnx_bundle

IMAGES = np.random.default_rng(0).integers(0, 256, (80, 8, 8, 3), dtype=np.uint8)
LABELS = np.arange(80) % 4
NAMES = tuple(f"class{number}" for number in range(4))


def _package(folder: Path, **facts: str) -> Path:
    """A package of a toy graph, in the place where `compress` puts it."""
    blobs = FolderBlobs(folder / "blobs")
    (folder / "scratch").mkdir()
    bundle = toy_onnx_bundle(blobs, folder / "scratch")
    write_package(bundle, blobs, folder / "out" / "bundle", target=load_target("host"), versions={}, extra=facts)
    return folder / "out"


def _data(folder: Path, names: tuple[str, ...] | None = NAMES) -> str:
    arrays = {"images": IMAGES, "labels": LABELS} | ({} if names is None else {"classes": np.array(names)})
    np.savez(folder / "data.npz", **arrays)  # type: ignore[arg-type]  # numpy's stubs leave no room for names
    return str(folder / "data.npz")


def test_a_package_opens_from_the_folder_of_its_run_and_says_where_it_came_from(tmp_path: Path) -> None:
    out = _package(tmp_path, seed="7", data="abc", candidate="x")
    with workbench([("run", out), ("bundle", out / "bundle")]) as bench:
        assert bench.origins["run"] == bench.origins["bundle"] == Origin(seed=7, data="abc")
        assert bench.bundles["run"].model.labels == NAMES
        assert bench.store.blobs.path(bench.bundles["run"].file("model.onnx")).exists()


def test_a_package_of_unknown_origin_says_nothing(tmp_path: Path) -> None:
    with workbench([("x", _package(tmp_path))]) as bench:
        assert bench.origins["x"] == Origin()


def test_a_seed_that_is_no_number_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=r"manifest.json: facts: 'seed'"),
        workbench([("x", _package(tmp_path, seed="a"))]),
    ):
        pass


def test_data_in_another_order_of_classes_is_renumbered_to_the_bundles(tmp_path: Path) -> None:
    with workbench([("x", _package(tmp_path))]) as bench:
        spec = _data(tmp_path, NAMES[::-1])
        data, warning = data_for(bench.bundles["x"], Origin(), spec, None)
    assert data.classes == NAMES
    raw = load_dataset(spec)
    assert np.array_equal(data.test.labels, 3 - raw.test.labels)  # type: ignore[arg-type, operator]
    assert warning is None


def test_data_of_another_number_of_classes_is_refused(tmp_path: Path) -> None:
    with workbench([("x", _package(tmp_path))]) as bench:
        bare = bench.bundles["x"].model_copy(
            update={"recipe": bench.bundles["x"].model.model_copy(update={"labels": ()})}
        )
        np.savez(tmp_path / "six.npz", images=IMAGES, labels=np.arange(80) % 6)
        with pytest.raises(UserError, match=r"The model has 4 classes, but the data six.npz has 6"):
            data_for(bare, Origin(), str(tmp_path / "six.npz"), None)


def test_the_split_follows_the_bundles_seed_and_other_data_is_warned_of(tmp_path: Path) -> None:
    spec = _data(tmp_path)
    made_with = load_dataset(spec, seed=3).digest
    with workbench([("x", _package(tmp_path, seed="3", data=made_with))]) as bench:
        bundle, origin = bench.bundles["x"], bench.origins["x"]
        same, none = data_for(bundle, origin, spec, None)
        _, split = data_for(bundle, origin, spec, 4)
        _, other = data_for(bundle, origin.model_copy(update={"data": "0" * 64}), spec, None)
    assert same.digest == made_with
    assert none is None
    assert split is not None
    assert other is not None
    assert split.startswith("another split (seed 4) or other data than the bundle was made with")
    assert other.startswith("other data than the bundle was made with")


def test_data_without_labels_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "bare.npz", images=IMAGES)
    with (
        workbench([("x", _package(tmp_path))]) as bench,
        pytest.raises(UserError, match="has no labels, and accuracy needs them"),
    ):
        data_for(bench.bundles["x"], Origin(), str(tmp_path / "bare.npz"), None)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_bare_graph_opens_with_an_assumed_preprocessing(tmp_path: Path, channels: int) -> None:
    onnx.save(toy_graph(channels=channels), tmp_path / "x.onnx")
    with workbench([("x", tmp_path / "x.onnx")]) as bench:
        assert bench.bundles["x"].model.preprocessing.input_shape == (channels, 8, 8)
        assert bench.origins["x"] == Origin()


def test_a_graph_of_four_channels_is_refused_in_the_users_terms(tmp_path: Path) -> None:
    onnx.save(toy_graph(channels=4), tmp_path / "x.onnx")
    with (
        pytest.raises(UserError, match=r"expected images of 1 or 3 channels, \(N, C, H, W\), got \('N', 4, 8, 8\)"),
        workbench([("x", tmp_path / "x.onnx")]),
    ):
        pass


def test_a_path_without_anything_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file or folder"), workbench([("x", tmp_path / "gone")]):
        pass


def test_a_package_in_one_file_opens_as_its_folder_does(tmp_path: Path) -> None:
    out = _package(tmp_path, seed="7", data="abc")
    pack(verified_package(out / "bundle"), tmp_path / "model.edgekd")
    with workbench([("folder", out), ("file", tmp_path / "model.edgekd")]) as bench:
        assert bench.bundles["file"] == bench.bundles["folder"]
        assert bench.origins["file"] == bench.origins["folder"]
        assert bench.cards["file"] == bench.cards["folder"]
        assert bench.cards["file"] is not None


def test_a_card_of_aliases_is_refused_before_they_unfold(tmp_path: Path) -> None:
    out = _package(tmp_path) / "bundle"
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]" for before, name in itertools.pairwise("abcdefghi")]
    (out / "target.yaml").write_text("\n".join([*lines, "sources: *i"]))
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["files"]["target.yaml"] = file_digest(out / "target.yaml")
    (out / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="a card in a package holds no aliases"), workbench([("x", out)]):
        pass
