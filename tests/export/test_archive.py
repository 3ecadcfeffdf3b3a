"""`model.edgekd`: the same bytes for the same package, and a reader that survives whatever it is given."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import stat
import struct
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from edgekd.core.digest import file_digest
from edgekd.errors import UserError
from edgekd.export import archive
from edgekd.export.archive import open_package, pack, unpack
from edgekd.export.deployment import EngineNote, Shipped
from edgekd.export.manifest import Manifest
from edgekd.export.package import verified_package, write_package
from edgekd.targets.load import load_target
from edgekd.testing.harness import make_context
from edgekd.testing.toy_graphs import toy_onnx_bundle

Entries = list[tuple[zipfile.ZipInfo, bytes]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of two engines."""
    place = tmp_path_factory.mktemp("made")
    ctx = make_context(place)
    engines = [
        Shipped(
            bundle=toy_onnx_bundle(ctx.blobs, ctx.scratch, seed=seed),
            note=EngineNote(name=f"engine{seed}", runtimes=("onnxruntime",)),
        )
        for seed in (0, 1)
    ]
    write_package(
        engines[0].bundle,
        ctx.blobs,
        place / "package",
        target=load_target("x86-cpu"),
        versions={"edgekd": "0"},
        extra={},
        chosen=engines[0],
        twins=engines[1:],
    )
    return place / "package"


@pytest.fixture(scope="module")
def packed(folder: Path) -> Path:
    out = folder.parent / "model.edgekd"
    pack(verified_package(folder), out)
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_package_comes_back_from_one_file_as_it_went_in(folder: Path, packed: Path) -> None:
    with open_package(packed) as found:
        assert contents(found.folder) == contents(folder)
        assert found.digest == file_digest(folder / "manifest.json")
        assert found.bundle == verified_package(folder).bundle
        place = found.folder
    assert not place.exists()
    with open_package(packed, found.digest), pytest.raises(UserError, match="another package than expected"):
        open_package(packed, "0" * 64).__enter__()


def test_equal_packages_give_equal_files_whatever_their_place_time_and_permissions(
    folder: Path, packed: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "elsewhere" / "copy"
    shutil.copytree(folder, copy)
    for number, path in enumerate(sorted(copy.rglob("*"), reverse=True)):
        path.chmod(0o700)
        os.utime(path, (1e9 + number, 1e9 + number))
    (copy / "notes.txt").write_text("not part of the package")
    pack(verified_package(copy), tmp_path / "other.edgekd")
    assert (tmp_path / "other.edgekd").read_bytes() == packed.read_bytes()
    with zipfile.ZipFile(packed) as found:
        assert found.namelist()[0] == "manifest.json"
        assert {entry.date_time for entry in found.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert {entry.external_attr >> 16 for entry in found.infolist()} == {stat.S_IFREG | 0o644}


def test_a_zip_that_another_tool_deflated_is_read(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.edgekd"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for name, data in contents(folder).items():
            out.writestr(name, data)
    with open_package(path) as found:
        assert contents(found.folder) == contents(folder)


def test_the_folder_of_a_run_and_a_package_open_alike(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "out" / "bundle")
    with open_package(tmp_path / "out") as run, open_package(tmp_path / "out" / "bundle") as package:
        assert run == package


def entries_of(packed: Path) -> Entries:
    with zipfile.ZipFile(packed) as found:
        return [(entry, found.read(entry)) for entry in found.infolist()]


def zipped(path: Path, entries: Entries, method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as out:
        for entry, data in entries:
            fresh = zipfile.ZipInfo(entry.filename, entry.date_time)
            fresh.external_attr, fresh.compress_type = entry.external_attr, method
            out.writestr(fresh, data)
    return path


def with_entry(name: str, data: bytes = b"x", mode: int = stat.S_IFREG | 0o644) -> Callable[[Entries], Entries]:
    def change(entries: Entries) -> Entries:
        entry = zipfile.ZipInfo(name)
        entry.external_attr = mode << 16
        return [*entries, (entry, data)]

    return change


def without(name: str) -> Callable[[Entries], Entries]:
    return lambda entries: [(entry, data) for entry, data in entries if entry.filename != name]


def changed(name: str) -> Callable[[Entries], Entries]:
    return lambda entries: [(e, data[:-1] + b"\0" if e.filename == name else data) for e, data in entries]


def listing_also(name: str) -> Callable[[Entries], Entries]:
    """The manifest lists a name that leads elsewhere, and an entry has it."""

    def change(entries: Entries) -> Entries:
        (head, data), *rest = entries
        manifest = json.loads(data)
        manifest["files"][name] = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
        return [(head, json.dumps(manifest).encode()), *with_entry(name)(rest)]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (listing_also("../outside"), "is not a plain relative path"),
        (listing_also("/tmp/outside"), "is an absolute path"),
        (listing_also("a\\b"), "cannot have everywhere"),
        (listing_also("README.TXT"), "are one file where case does not count"),
        (listing_also("README.txt/x"), "is listed as a file and as a folder"),
        (with_entry("stray.txt"), "holds 'stray.txt', which its manifest does not list"),
        (with_entry("engines/", b""), "is a link, a folder or a device"),
        (with_entry("link", b"/etc/passwd", stat.S_IFLNK | 0o777), "is a link, a folder or a device"),
        (with_entry("fifo", b"", stat.S_IFIFO | 0o644), "is a link, a folder or a device"),
        (with_entry("model.onnx"), "two entries of one name"),
        (without("model.onnx"), "the file model.onnx is missing"),
        (without("manifest.json"), r"it has no manifest\.json"),
        (changed("engines/engine1/model.onnx"), "engines/engine1/model.onnx was changed"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_zip_that_is_not_exactly_its_package_is_refused_and_leaves_nothing(
    packed: Path, tmp_path: Path, change: Callable[[Entries], Entries], message: str
) -> None:
    bad = zipped(tmp_path / "bad.edgekd", change(entries_of(packed)))
    with pytest.raises(UserError, match=message), open_package(bad):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["bad.edgekd"]
    assert not (tmp_path.parent / "outside").exists()


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_another_compression_is_refused(packed: Path, tmp_path: Path, method: int) -> None:
    bad = zipped(tmp_path / "bad.edgekd", entries_of(packed), method)
    with pytest.raises(UserError, match=r"is compressed in a way that is not read|is in a form that is not read"):
        unpack(bad, tmp_path)


def bombed(packed: Path, tmp_path: Path) -> Path:
    zeros = bytes(8 << 20)
    return zipped(tmp_path / "bad.edgekd", with_entry("zeros.bin", zeros)(entries_of(packed)), zipfile.ZIP_DEFLATED)


def test_a_file_that_unfolds_is_refused_before_it_is_unpacked(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'zeros\.bin' unpacks to more than 200 times its size: it may be a zip bomb"):
        unpack(bombed(packed, tmp_path), tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


def test_too_much_in_all_and_too_many_files_are_refused(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "MOST_BYTES", 1000)
    with pytest.raises(UserError, match=r"unpacks to [\d,]+ bytes, the limit is 1,000"):
        unpack(packed, tmp_path)
    many = [(zipfile.ZipInfo(f"{n}"), b"") for n in range(1002)]
    with pytest.raises(UserError, match="holds 1,002 files, the limit is 1,000"):
        unpack(zipped(tmp_path / "many.edgekd", many), tmp_path)


def patched(packed: Path, tmp_path: Path, change: Callable[[bytearray], object]) -> Path:
    data = bytearray(packed.read_bytes())
    change(data)
    (tmp_path / "bad.edgekd").write_bytes(bytes(data))
    return tmp_path / "bad.edgekd"


def central(data: bytearray) -> int:
    return int(struct.unpack_from("<L", data, len(data) - 6)[0])


def lie_about_the_size(data: bytearray) -> None:
    """Smaller in both headers than the data that follows."""
    for offset in (central(data) + 20, 18):
        struct.pack_into("<LL", data, offset, 10, 10)


def overlap(data: bytearray) -> None:
    """The second entry's record points at the first one's data."""
    length, more, note = struct.unpack_from("<HHH", data, central(data) + 28)
    second = central(data) + 46 + length + more + note
    struct.pack_into("<L", data, second + 42, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.insert(0, 0), "does not start as a zip does"),
        (lambda data: data.extend(b"behind"), "is cut off, or has something behind its end"),
        (lambda data: data.__setitem__(slice(len(data) - 100, None), b""), "is cut off"),
        (lambda data: data.__setitem__(central(data) + 8, 1), "is encrypted"),
        (lambda data: data.__setitem__(central(data) + 8, 8), r"in a form that is not read \(flags 0x8\)"),
        (lambda data: data.__setitem__(6, 1), "and the directory disagree"),
        (lie_about_the_size, "entries overlap, or something lies between them"),
        (overlap, "entries overlap|disagree"),
        (lambda data: data.__setitem__(slice(None), b"PK"), "does not start as a zip does"),
    ],
)
def test_a_zip_that_says_two_things_is_refused(
    packed: Path, tmp_path: Path, change: Callable[[bytearray], object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        unpack(patched(packed, tmp_path, change), tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


def small_zip() -> tuple[bytes, dict[str, bytes]]:
    """A deflated package of three little files, of which a good part is structure."""
    files = {"bundle.json": b"{}", "engines/a/model.onnx": b"x" * 50, "labels.txt": b"hello" * 30}
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("manifest.json", Manifest(files=digests).to_bytes())  # type: ignore[arg-type]
        for name, data in files.items():
            made.writestr(name, data)
    return out.getvalue(), files


WHOLE, FILES = small_zip()
PLACES = st.integers(0, len(WHOLE) - 1) | st.integers(len(WHOLE) - 300, len(WHOLE) - 1)
"""Anywhere, or in the directory at the end."""
EDITS = st.tuples(PLACES, st.binary(min_size=1, max_size=4) | st.just(b"\xff" * 4) | st.just(bytes(4)))


@settings(max_examples=250, deadline=None)
@given(st.lists(EDITS, max_size=3), st.integers(1, len(WHOLE)) | st.none())
@example([(WHOLE.index(b"PK\1\2") + 28, bytes(4))], None)  # an entry without a name
def test_a_file_that_was_changed_or_cut_anywhere_is_refused_or_gives_what_went_in(
    edits: list[tuple[int, bytes]], length: int | None
) -> None:
    broken = bytearray(WHOLE)
    for place, data in edits:
        broken[place : place + len(data)] = data
    with tempfile.TemporaryDirectory() as name:
        out = Path(name, "out")
        out.mkdir()
        Path(name, "bad.edgekd").write_bytes(broken[:length])
        try:
            unpack(Path(name, "bad.edgekd"), out)
        except UserError:
            return
        found = contents(out)
        del found["manifest.json"]
        assert found == FILES


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.lists(st.text("abcXYZ09_-äß", min_size=1, max_size=6), min_size=1, max_size=3).map("/".join),
        st.binary(max_size=200),
        max_size=6,
    )
)
def test_any_files_come_back_from_a_zip(tmp_path: Path, files: dict[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        (place / "out").mkdir()
        everything = {**files, "bundle.json": b"{}"}
        digests = {path: hashlib.sha256(data).hexdigest() for path, data in everything.items()}
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as zipped_files:
            zipped_files.writestr("manifest.json", Manifest(files=digests).to_bytes())  # type: ignore[arg-type]
            for path, data in everything.items():
                zipped_files.writestr(path, data)
        (place / "x.edgekd").write_bytes(out.getvalue())
        try:
            unpack(place / "x.edgekd", place / "out")
        except UserError as err:
            assert "as a folder" in err.message or "case does not count" in err.message  # noqa: PT017
            return
        found = contents(place / "out")
        del found["manifest.json"]
        assert found == everything


def test_what_is_no_file_of_ours_is_refused_in_the_users_terms(folder: Path, tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=r"No such file or folder: .*gone\.edgekd"),
        open_package(tmp_path / "gone.edgekd"),
    ):
        pass
    with pytest.raises(UserError, match=r"ends in \.edgekd, and .*model\.zip does not"):
        pack(verified_package(folder), tmp_path / "model.zip")
    (tmp_path / "dir.edgekd").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        pack(verified_package(folder), tmp_path / "dir.edgekd")


def test_a_packing_that_fails_leaves_the_earlier_file(folder: Path, packed: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.edgekd"
    shutil.copyfile(packed, out)
    package = verified_package(folder)
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "model.onnx").write_bytes(b"changed")
    with pytest.raises(UserError, match="was changed while it was packed"):
        pack(replace(package, folder=tmp_path / "copy"), out)
    assert out.read_bytes() == packed.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"model.edgekd", "copy"}


def test_a_package_too_large_for_one_file_is_not_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "MOST_BYTES", 1000)
    with pytest.raises(UserError, match="one file takes up to 1,000"):
        pack(verified_package(folder), tmp_path / "model.edgekd")
    assert list(tmp_path.iterdir()) == []
