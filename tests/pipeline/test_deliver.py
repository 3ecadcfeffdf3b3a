"""What a run may replace in its output folder, and what it must not touch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgekd.core.plan import RunReport
from edgekd.core.store import MemoryStore
from edgekd.errors import UserError
from edgekd.pipeline.deliver import STAGES_MARKER, _chosen_text, _write_stages, check_output
from tests.pipeline.finished import results


def test_an_empty_or_missing_folder_is_free(tmp_path: Path) -> None:
    check_output(tmp_path / "new")
    (tmp_path / "stages").mkdir()
    (tmp_path / "bundle").mkdir()
    check_output(tmp_path)
    assert list((tmp_path / "stages").iterdir()) == []


@pytest.mark.parametrize("name", ["stages", "bundle"])
def test_a_folder_of_the_user_is_refused_and_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    thesis = tmp_path / name / "thesis.txt"
    thesis.write_text("years of work")
    with pytest.raises(UserError, match="it is left as it is") as found:
        check_output(tmp_path)
    assert found.value.hint == "choose another folder with -o"
    assert thesis.read_text() == "years of work"


def test_a_manifest_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"name": "a web page"}))
    with pytest.raises(UserError, match=r"manifest\.json was not written by edgekd"):
        check_output(tmp_path)


def test_a_file_or_a_link_named_stages_is_refused(tmp_path: Path) -> None:
    (tmp_path / "stages").write_text("notes")
    with pytest.raises(UserError, match="was not written by edgekd"):
        check_output(tmp_path)
    (tmp_path / "stages").unlink()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "stages").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="was not written by edgekd"):
        check_output(tmp_path)


def test_the_stages_of_an_earlier_run_are_replaced(tmp_path: Path) -> None:
    store, folder = MemoryStore(tmp_path / "store"), tmp_path / "out" / "stages"
    folder.parent.mkdir()
    _write_stages(results().run, store, folder)
    assert (folder / "01-teacher-fp32" / "node.json").is_file()
    check_output(folder.parent)
    _write_stages(RunReport(seed=0, nodes=()), store, folder)
    assert [path.name for path in folder.iterdir()] == [STAGES_MARKER]
    check_output(folder.parent)


def test_stages_from_before_the_marker_are_known_by_the_manifest_beside_them(tmp_path: Path) -> None:
    (tmp_path / "stages" / "01-search").mkdir(parents=True)
    with pytest.raises(UserError, match="was not written by edgekd"):
        check_output(tmp_path)
    manifest = {"schema_version": 1, "seed": 0, "versions": {}, "nodes": {}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    check_output(tmp_path)


def test_the_chosen_engine_is_told_with_the_latency_of_the_runtime_it_was_chosen_for() -> None:
    assert _chosen_text(results()) == "student-int8-ort in onnxruntime, 0.500 ms, 1.00 MiB: more accurate"
