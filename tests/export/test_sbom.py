"""The bill of materials and the notice: what they name, and that the check of a bill can fail."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from edgekd.core.digest import file_digest
from edgekd.export.licences import licence_of
from edgekd.export.notice import notice_text
from edgekd.export.package import write_package
from edgekd.export.sbom import problems_of
from edgekd.targets.load import load_target
from edgekd.testing.harness import make_context
from edgekd.testing.toy_graphs import toy_onnx_bundle

VERSIONS = {
    "edgekd": "0.1.0",
    "python": "3.11.0",
    "onnxruntime": metadata.version("onnxruntime"),
    "torch": metadata.version("torch"),
    "ncnn": "1.0",
    "pnnx": "2026",
}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    ctx = make_context(tmp_path)
    write_package(
        toy_onnx_bundle(ctx.blobs, ctx.scratch),
        ctx.blobs,
        tmp_path / "out",
        target=load_target("x86-cpu"),
        versions=VERSIONS,
        extra={"model": "cats.pt", "model_license": "CC BY 4.0", "data": "0" * 64},
    )
    return tmp_path / "out"


@pytest.fixture
def bill(package: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((package / "sbom.json").read_text())
    return found


def test_a_bill_names_every_file_with_its_digest(package: Path, bill: dict[str, Any]) -> None:
    assert problems_of(bill) == []
    files = {part["name"]: part for part in bill["components"] if part["bom-ref"].startswith("file:")}
    listed = set(json.loads((package / "manifest.json").read_text())["files"]) - {"sbom.json"}
    assert set(files) == listed
    assert all(part["hashes"][0]["content"] == file_digest(package / name) for name, part in files.items())
    assert files["model.onnx"]["type"] == "machine-learning-model"
    assert files["labels.txt"]["type"] == "file"


def test_what_is_only_installed_for_other_formats_has_no_part_in_a_package(package: Path, bill: dict[str, Any]) -> None:
    assert "torch" in json.loads((package / "manifest.json").read_text())["versions"]
    assert "torch" in (package / "NOTICE.txt").read_text()
    for text in ("NOTICE.txt", "sbom.json", "manifest.json"):
        assert "ncnn" not in (package / text).read_text()
        assert "pnnx" not in (package / text).read_text()


def test_a_bill_tells_what_runs_the_model_from_what_made_it(bill: dict[str, Any]) -> None:
    libraries = [part for part in bill["components"] if part["type"] == "library"]
    version = VERSIONS["onnxruntime"]
    assert [part["purl"] for part in libraries] == [f"pkg:pypi/onnxruntime@{version}"]
    assert libraries[0]["licenses"] == [{"expression": "MIT"}]
    tools = {part["name"]: part["type"] for part in bill["metadata"]["tools"]["components"]}
    assert tools == {"edgekd": "library", "python": "platform", "torch": "library"}
    model = bill["metadata"]["component"]
    assert (model["type"], model["name"]) == ("machine-learning-model", "cats.pt")
    assert model["licenses"] == [{"license": {"name": "CC BY 4.0"}}]
    assert {"name": "edgekd:data", "value": "0" * 64} in model["properties"]
    assert "timestamp" not in bill["metadata"]


@pytest.mark.parametrize(
    ("place", "value", "problem"),
    [
        (("specVersion",), "1.5", "bomFormat and specVersion"),
        (("metadata", "component", "name"), "", "needs a type and a name"),
        (("components", 0, "hashes", 0, "content"), "abc", "no SHA-256"),
        (("components", 0, "bom-ref"), "model", "must be unique"),
        (("dependencies", 0, "dependsOn"), ["nobody"], "'nobody', which is no component"),
    ],
)
def test_the_check_of_a_bill_can_fail(
    bill: dict[str, Any], place: tuple[str | int, ...], value: object, problem: str
) -> None:
    inner: Any = bill
    for part in place[:-1]:
        inner = inner[part]
    inner[place[-1]] = value
    assert any(problem in sentence for sentence in problems_of(bill))


def test_a_notice_tells_a_licence_that_was_given_from_one_that_is_not_known() -> None:
    given = notice_text(VERSIONS, {"model": "cats.pt", "model_license": "CC BY 4.0"})
    assert "The licence of cats.pt, as it was given: CC BY 4.0." in given
    assert f"  onnxruntime {VERSIONS['onnxruntime']}: MIT\n" in given
    unknown = notice_text({}, {"model": "cats.pt"})
    assert "The licence of cats.pt is not known" in unknown
    assert "(not recorded)" in unknown


def test_the_licence_of_a_library_is_only_told_for_the_version_that_is_installed() -> None:
    assert licence_of("onnxruntime", VERSIONS["onnxruntime"]) == "MIT"
    assert licence_of("onnxruntime", "0.0.1") is None
    assert licence_of("no-such-library-anywhere", "1.0") is None
