"""Names in a manifest come from outside and become paths: what is refused, and that a sound manifest is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekd.core.digest import file_digest
from edgekd.errors import UserError
from edgekd.export.manifest import (
    DEEPEST,
    LONGEST_PATH,
    MOST_FILES,
    Manifest,
    check_expected,
    check_paths,
    manifest_from_bytes,
    verify_files,
)

ZERO = "0" * 64
PLAIN = st.text("abcXYZ019_-äß", min_size=1, max_size=12)
PATHS = st.lists(PLAIN, min_size=1, max_size=DEEPEST - 1).map("/".join)


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/etc/passwd", "is an absolute path"),
        ("C:/windows/system.ini", "is an absolute path"),
        ("../secret", "is not a plain relative path"),
        ("engines/../../secret", "is not a plain relative path"),
        ("engines//model.onnx", "is not a plain relative path"),
        ("engines/./model.onnx", "is not a plain relative path"),
        ("", "is not a plain relative path"),
        ("engines/", "is not a plain relative path"),
        ("engines\\model.onnx", "a character that a file's name cannot have"),
        ("model.onnx:stream", "a character that a file's name cannot have"),
        ("model\0.onnx", "a character that a file's name cannot have"),
        ("model\n.onnx", "a character that a file's name cannot have"),
        ("\u202egnp.exe", "a character that a file's name cannot have"),
        ("engines/nul.txt", "is a name that Windows reserves"),
        ("model.onnx.", "is a name that Windows reserves"),
        ("a" * (LONGEST_PATH + 1), "is longer than"),
        ("/".join(["a"] * (DEEPEST + 1)), "is longer than"),
    ],
)
def test_a_name_that_leads_out_of_the_package_or_astray_is_refused(path: str, why: str) -> None:
    with pytest.raises(UserError, match=why):
        check_paths([path], "here")


@pytest.mark.parametrize(
    ("paths", "why"),
    [
        (["Model.onnx", "model.onnx"], "are one file where case does not count"),
        (["stra\u00dfe", "STRASSE"], "are one file where case does not count"),
        (["e\u0301.txt", "\u00e9.txt"], "are one file where case does not count"),
        (["manifest.json"], "are one file where case does not count"),
        (["MANIFEST.JSON"], "are one file where case does not count"),
        (["engines", "engines/a"], "is listed as a file and as a folder"),
        (["Engines", "engines/a/b"], "is listed as a file and as a folder"),
        ([f"f{n}" for n in range(MOST_FILES + 1)], "the limit is 1,000"),
    ],
)
def test_names_that_collide_are_refused(paths: list[str], why: str) -> None:
    with pytest.raises(UserError, match=why):
        check_paths(paths, "here")


@given(st.lists(PATHS, max_size=8, unique_by=str.casefold))
def test_plain_names_pass_unless_one_is_a_folder_of_another(paths: list[str]) -> None:
    nested = any(other.casefold().startswith(f"{path.casefold()}/") for path in paths for other in paths)
    if nested:
        with pytest.raises(UserError, match="as a folder"):
            check_paths(paths, "here")
    else:
        assert check_paths(paths, "here") is None  # type: ignore[func-returns-value]


@given(st.dictionaries(PLAIN, st.just(ZERO), max_size=5), st.dictionaries(st.text(max_size=5), st.text(), max_size=3))
def test_a_manifest_comes_back_as_it_went_in(files: dict[str, str], facts: dict[str, str]) -> None:
    manifest = Manifest(files={**files, "bundle.json": ZERO}, versions={"edgekd": "1"}, facts=facts)  # type: ignore[dict-item]
    try:
        check_paths(files, "here")
    except UserError:
        return
    assert manifest_from_bytes(manifest.to_bytes(), "here") == manifest


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("[]", "expected a mapping"),
        ('{"schema_version": 3, "files": {}}', "package schema 3, this edgekd reads 1 and 2"),
        ('{"schema_version": 2, "files": {"bundle.json": "' + ZERO + '"}, "files": {}}', "a key occurs twice"),
        ('{"schema_version": 2, "files": {"bundle.json": "abc"}}', "which is not a SHA-256"),
        ('{"schema_version": 2, "files": {"model.onnx": "' + ZERO + '"}}', "does not list bundle.json"),
        ('{"schema_version": 1, "files": {"a/b": "' + ZERO + '"}}', "packages of schema 1 do not have"),
        ('{"schema_version": 2, "files": {}, "scripts": []}', "unknown key 'scripts'"),
    ],
)
def test_what_is_no_manifest_is_refused(text: str, why: str) -> None:
    with pytest.raises(UserError, match=why):
        manifest_from_bytes(text.encode(), "here")


def test_a_file_reached_through_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a").write_text("a")
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "engines").symlink_to(tmp_path / "elsewhere")
    manifest = Manifest(files={"engines/a": file_digest(tmp_path / "elsewhere" / "a")})
    with pytest.raises(UserError, match="engines is a link"):
        verify_files(folder, manifest)
    (folder / "engines").unlink()
    (tmp_path / "elsewhere").rename(folder / "engines")
    verify_files(folder, manifest)
    link = tmp_path / "link"
    link.symlink_to(folder)
    verify_files(link, manifest)


def test_another_package_than_expected_is_refused() -> None:
    check_expected(ZERO, None, "here")  # type: ignore[arg-type]
    check_expected(ZERO, f"sha256:{ZERO}", "here")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="here is another package than expected"):
        check_expected(ZERO, "1" * 64, "here")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="'123' is not a digest"):
        check_expected(ZERO, "123", "here")  # type: ignore[arg-type]


def test_equal_manifests_give_equal_bytes_whatever_the_order() -> None:
    one = Manifest(files={"a": ZERO, "b": ZERO}, facts={"x": "1", "y": "2"})  # type: ignore[dict-item]
    two = Manifest(files={"b": ZERO, "a": ZERO}, facts={"y": "2", "x": "1"})  # type: ignore[dict-item]
    assert one.to_bytes() == two.to_bytes()
    assert json.loads(one.to_bytes())["schema_version"] == 2
