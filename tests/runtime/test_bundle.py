"""A bundle opens whole and unaltered, or not at all; an archive from anywhere does no harm."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from edgekd_runtime import BundleError, archive
from edgekd_runtime.bundle import Bundle

from tests.runtime.bundles import deploy, entry, write_bundle, write_manifest, zipped


def _archive(path: Path, members: dict[str, bytes], **changes: Any) -> Path:
    """A zip file of members with a right manifest; `changes` are set on the last member."""
    files = {name: hashlib.sha256(data).hexdigest() for name, data in members.items()}
    manifest = json.dumps({"schema_version": 2, "files": files}).encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("manifest.json", manifest)
        for number, (name, data) in enumerate(members.items(), start=1):
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            for key, value in changes.items() if number == len(members) else ():
                setattr(info, key, value)
            made.writestr(info, data)
    return path


def test_a_folder_and_its_archive_read_the_same(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "bundle", files={"engines/other/notes.txt": b"text"})
    with Bundle(folder) as one, Bundle(zipped(folder, tmp_path / "model.edgekd")) as two:
        assert one.files == two.files
        assert one.deploy == two.deploy
        assert {name: one.read(name) for name in one.files} == {name: two.read(name) for name in two.files}
        assert two.file("engines/other/notes.txt").read_bytes() == b"text"
        (folder / "model.onnx").write_bytes(b"exchanged")  # what a library opens is what was verified
        with pytest.raises(BundleError, match="was altered or cut off"):
            one.file("model.onnx")


def test_a_library_opens_the_very_bytes_that_were_verified(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "bundle")
    whole = (folder / "model.onnx").read_bytes()
    with Bundle(folder) as bundle:
        path = bundle.file("model.onnx")
        (folder / "model.onnx").write_bytes(b"exchanged")
        assert path.read_bytes() == whole
    assert not path.exists()


@pytest.mark.parametrize(("before", "behind"), [(b"#!/bin/sh\nexit\n", b""), (b"", b"more"), (b"", b"x" * 70_000)])
def test_a_file_that_is_something_else_besides_is_refused(tmp_path: Path, before: bytes, behind: bytes) -> None:
    whole = zipped(write_bundle(tmp_path / "bundle"), tmp_path / "model.edgekd").read_bytes()
    (tmp_path / "model.edgekd").write_bytes(before + whole + behind)
    with pytest.raises(BundleError, match=r"bytes before or behind the archive|cannot be read as a bundle"):
        Bundle(tmp_path / "model.edgekd")


def test_the_folder_of_a_run_stands_for_its_bundle(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "out" / "bundle")
    (tmp_path / "out" / "manifest.json").write_text("{}")
    with Bundle(tmp_path / "out") as bundle:
        assert bundle.path == folder


def test_copies_of_an_archive_go_when_it_is_closed(tmp_path: Path) -> None:
    with Bundle(zipped(write_bundle(tmp_path / "bundle"), tmp_path / "model.edgekd")) as bundle:
        copy = bundle.file("model.onnx")
        assert copy.is_file()
    assert not copy.exists()


@pytest.mark.parametrize("as_archive", [False, True])
def test_an_altered_file_is_found(tmp_path: Path, as_archive: bool) -> None:
    folder = write_bundle(tmp_path / "bundle")
    (folder / "model.onnx").write_bytes((folder / "model.onnx").read_bytes() + b"\0")
    path = zipped(folder, tmp_path / "model.edgekd") if as_archive else folder
    with pytest.raises(BundleError, match=r"model.onnx was altered or cut off"):
        Bundle(path)


def test_a_file_that_is_exchanged_after_opening_is_not_handed_on(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "bundle")
    with Bundle(folder) as bundle:
        (folder / "model.onnx").write_bytes(b"other")
        with pytest.raises(BundleError, match="altered"):
            bundle.read("model.onnx")


@pytest.mark.parametrize("as_archive", [False, True])
def test_a_missing_file_is_named(tmp_path: Path, as_archive: bool) -> None:
    folder = write_bundle(tmp_path / "bundle")
    (folder / "model.onnx").unlink()
    path = zipped(folder, tmp_path / "model.edgekd") if as_archive else folder
    with pytest.raises(BundleError, match=r"model.onnx is missing"):
        Bundle(path)


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "bundle")
    outside = tmp_path / "outside.onnx"
    (folder / "model.onnx").rename(outside)
    (folder / "model.onnx").symlink_to(outside)
    with pytest.raises(BundleError, match="a link that leaves the bundle"):
        Bundle(folder)


def test_an_archive_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    path = zipped(write_bundle(tmp_path / "bundle"), tmp_path / "model.edgekd")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(BundleError, match="cannot be read as a bundle"):
        Bundle(path)


def test_damage_inside_of_an_archive_is_found(tmp_path: Path) -> None:
    path = zipped(write_bundle(tmp_path / "bundle"), tmp_path / "model.edgekd")
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as read:
        start = read.getinfo("model.onnx").header_offset
    content[start + 200] ^= 0xFF
    path.write_bytes(bytes(content))
    with pytest.raises(BundleError, match=r"model.onnx (is damaged|was altered)"):
        Bundle(path)


def test_a_path_to_nothing_is_said_to_be_nothing(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such file"):
        Bundle(tmp_path / "nothing.edgekd")
    with pytest.raises(BundleError, match=r"it has no manifest.json"):
        Bundle(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["../up.txt", "/etc/passwd", "a/../../b", "c:\\x", "a\\b", "a//b", "./a", "a/", "nul:", "line\nbreak", "dot."],
)
def test_names_that_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    assert not archive.safe_name(name)
    path = _archive(tmp_path / "model.edgekd", {name: b"x"})
    with pytest.raises(BundleError, match=r"outside its folder|not a plain relative path|is missing"):
        Bundle(path)


def test_names_in_the_manifest_of_a_folder_are_checked_too(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "bundle")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["../secret"] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"'\.\./secret', which is not a plain relative path"):
        Bundle(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"external_attr": 0o120777 << 16}, "not a plain file"),
        ({"external_attr": 0o755 << 16}, "executable"),
        ({"compress_type": zipfile.ZIP_BZIP2}, "compressed in an unusual way"),
    ],
)
def test_members_that_are_no_plain_files_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        Bundle(_archive(tmp_path / "model.edgekd", {"file": b"content"}, **changes))


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="zip bomb"):
        Bundle(_archive(tmp_path / "model.edgekd", {"bomb": bytes(4 << 20)}))


def test_members_that_share_bytes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.edgekd"
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("a.bin", b"x" * 500)
        made.writestr("b.bin", b"x" * 500)
        made.infolist()[1].header_offset = 10
    with pytest.raises(BundleError, match=r"a.bin and b.bin overlap"):
        Bundle(path)


def test_limits_hold_for_number_and_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = zipped(write_bundle(tmp_path / "bundle"), tmp_path / "model.edgekd")
    for name, limit in (("MAX_FILES", 2), ("MAX_FILE_BYTES", 10), ("MAX_TOTAL_BYTES", 100)):
        with monkeypatch.context() as patch:
            patch.setattr(archive, name, limit)
            with pytest.raises(BundleError, match=f"at most {limit} are read"):
                Bundle(path)


def test_a_member_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.edgekd"
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("a.txt", b"1")
        made.writestr("A.txt", b"2")
    with pytest.raises(BundleError, match=r"'A.txt' is there twice"):
        Bundle(path)


def test_a_stranger_in_the_archive_is_refused_and_one_in_a_folder_is_never_read(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "bundle")
    (folder / "notes.txt").write_text("mine")
    with Bundle(folder) as bundle, pytest.raises(BundleError, match="not in the manifest"):
        bundle.read("notes.txt")
    with pytest.raises(BundleError, match=r"notes.txt is in the archive and not in its manifest"):
        Bundle(zipped(folder, tmp_path / "model.edgekd"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[1]", "schema None"),
        (b'{"schema_version": 1, "files": {}}', "schema 1, this version reads 2"),
        (b'{"schema_version": 2, "files": []}', "does not list files"),
        (b"{", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"schema_version": 2, "files": {}}', "has no deploy.json"),
    ],
)
def test_manifests_that_are_not_understood_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(BundleError, match=message):
        Bundle(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 9}, "schema 9, this version reads 1"),
        ({"engines": []}, "expected engines with different names"),
        ({"engines": [entry(), entry()]}, "different names"),
        ({"engines": [entry(files={"model.onnx": "gone.onnx"})]}, "names gone.onnx, which is not in the manifest"),
        ({"engines": [{"name": "x"}]}, "incomplete: KeyError"),
        ({"engines": [entry(runtimes="onnxruntime")]}, "fp32 has no list of runtimes"),
        ({"engines": [entry(runtimes=[])]}, "fp32 has no list of runtimes"),
        ({"engines": [entry(threads=-3)]}, "fp32 has -3 threads"),
        ({"engines": [entry(latency={"p99_ms": 1.0})]}, "incomplete: KeyError: 'median_ms'"),
        ({"input": {"name": "images", "shape": ["N", 3, 9, 9]}}, "images are preprocessed to"),
        ({"labels": ["one"]}, "4 outputs, but 1 labels"),
        ({"outputs": []}, "at least one output"),
    ],
)
def test_deployments_that_do_not_fit_together_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    folder = write_bundle(tmp_path / "bundle")
    (folder / "deploy.json").write_text(json.dumps({**deploy([entry()]), **changes}))
    write_manifest(folder)
    with pytest.raises(BundleError, match=message):
        Bundle(folder)
