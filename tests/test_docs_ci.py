"""The workflow and the shell recipe of docs/ci, executed: their own lines, in bash, on a bundle that is measured.

Limits are seconds or nanoseconds, so that no answer depends on how fast this machine is.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import onnx
import pytest
import yaml

from edgekd.testing.toy_graphs import toy_graph

ROOT = Path(__file__).resolve().parent.parent
WORKFLOW, RECIPE, PAGE = (ROOT / "docs" / name for name in ("ci/latency-gate.yml", "ci/latency-gate.sh", "ci.md"))
needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="bash is missing")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A checkout with a bundle, and an `edgekd` on a path of its own that runs this code."""
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "edgekd"
    command.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m edgekd "$@"\n')
    command.chmod(0o755)
    onnx.save(toy_graph(), tmp_path / "model.onnx")
    return tmp_path


def environment(place: Path, given: dict[str, str]) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("GITHUB_", "CI_"))}
    path = f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return kept | {"PATH": path, "GATE_LOCK": str(place / "lock"), **given}


def workflow() -> dict[Any, Any]:
    found: dict[Any, Any] = yaml.safe_load(WORKFLOW.read_text())
    return found


def run_workflow(place: Path, **inputs: str) -> tuple[int, str]:
    """Runs the `run:` steps as the runner does: until one fails, and then only those that always run."""
    loaded = workflow()
    declared = loaded[True]["workflow_call"]["inputs"]  # YAML 1.1 reads the key `on` as true
    assert set(inputs) <= set(declared)
    values = {name: str(inputs.get(name, spec.get("default", ""))) for name, spec in declared.items()}
    job = loaded["jobs"]["gate"]
    given = {k: re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda m: values[m[1]], v) for k, v in job["env"].items()}
    given |= {"GITHUB_STEP_SUMMARY": str(place / "summary.md"), "GITHUB_SHA": "abc"}
    code, said = 0, ""
    for step in job["steps"]:
        if "run" not in step or (code and step.get("if") != "always()"):
            continue
        assert "${{" not in step["run"], "inputs reach a script only as variables"
        done = subprocess.run(
            ["bash", "-e", "-c", step["run"]], cwd=place, env=environment(place, given), capture_output=True, text=True,
            timeout=180, check=False,
        )  # fmt: skip
        said += done.stdout + done.stderr
        code = code or done.returncode
    return code, said


@needs_bash
@pytest.mark.parametrize(
    ("limit", "code", "status"), [("10000", 0, "PASS"), pytest.param("0.000001", 1, "FAIL", marks=pytest.mark.slow)]
)
def test_the_workflow_judges_a_bundle_and_leaves_its_evidence(place: Path, limit: str, code: int, status: str) -> None:
    found, said = run_workflow(place, bundle="model.onnx", **{"max-latency-ms": limit, "time": "60"})
    assert found == code, said
    assert f"latency gate%3A {status}" in said
    assert (place / "summary.md").read_text().count(f"{status}: model.onnx") == 1
    (case,) = ElementTree.parse(place / "gate" / "junit.xml").iter("testcase")
    assert (case.find("failure") is not None) == (status == "FAIL")
    (line,) = (place / "gate" / "history.jsonl").read_text().splitlines()
    assert (json.loads(line)["status"], json.loads(line)["label"]) == (status, "abc")
    assert (place / "gate" / "history.svg").exists(), "the plot is drawn after a failure too"


@needs_bash
def test_the_workflow_reports_a_bundle_that_is_missing_as_an_error_and_not_as_a_verdict(place: Path) -> None:
    code, said = run_workflow(place, bundle="gone.onnx", time="1")
    assert code == 2
    assert "gone.onnx" in said
    assert not (place / "gate" / "junit.xml").exists()


@needs_bash
def test_the_shell_recipe_judges_against_an_accepted_bundle(place: Path) -> None:
    given = {"BUNDLE": "model.onnx", "BASELINE_BUNDLE": "model.onnx", "MAX_REGRESSION": "90%", "MAX_LATENCY_MS": "1e-6",
             "GATE_TIME": "60"}  # fmt: skip
    done = subprocess.run(
        ["bash", str(RECIPE)], cwd=place, env=environment(place, given), capture_output=True, text=True, timeout=180,
        check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert done.stdout == (place / "gate" / "summary.md").read_text()
    assert "latency against the baseline" in done.stdout
    cases = {str(case.get("name")) for case in ElementTree.parse(place / "gate" / "junit.xml").iter("testcase")}
    assert cases == {"latency", "latency against the baseline"}
    assert len((place / "gate" / "history.jsonl").read_text().splitlines()) == 1


@needs_bash
def test_the_shell_recipe_says_what_it_needs(place: Path) -> None:
    given = {k: v for k, v in environment(place, {}).items() if k != "BUNDLE"}
    done = subprocess.run(["bash", str(RECIPE)], cwd=place, env=given, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "set BUNDLE to the bundle" in done.stderr


def test_the_page_names_only_flags_and_files_that_exist() -> None:
    from edgekd.cli.baseline import update
    from edgekd.cli.gate import gate
    from edgekd.cli.history import history

    known = {flag for verb in (gate, update, history) for option in verb.params for flag in option.opts}
    text = PAGE.read_text() + WORKFLOW.read_text() + RECIPE.read_text()
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) <= known
    links = re.findall(r"\]\(([^)#]+)\)", PAGE.read_text())
    assert links
    assert [link for link in links if not (PAGE.parent / link).exists()] == []
