"""What the report tells of a run: commands that work when they are typed, and samples called what they were."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgekd.cli.gate import gate
from edgekd.cli.run import run
from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.report import Budget
from edgekd.export.manifest import MANIFEST_FILE
from edgekd.gate.artifacts import METRICS_FILE
from edgekd.pipeline.page import BUNDLE, RESOLVED, page_of
from edgekd.pipeline.recipes import Recipe, read_recipe, write_recipe
from edgekd.pipeline.request import ModelSource, Request
from edgekd.pipeline.results import Results, metrics_of
from edgekd.pipeline.situation import Situation
from edgekd.pipeline.steps import steps_of
from edgekd.report.data import ReportData
from edgekd.testing.toys import toy_recipe
from tests.pipeline.finished import graph, results
from tests.profiling.cards import card


def recipe() -> Recipe:
    return Recipe(request=Request(model=ModelSource(path="m.pt"), target="host", budget=Budget()), graph=graph())


def page(found: Results, out: Path, *, here: bool = True) -> ReportData:
    (out / BUNDLE).mkdir(parents=True)
    (out / BUNDLE / MANIFEST_FILE).write_text('{"files": {}}')
    write_recipe(recipe(), out / RESOLVED)
    (out / METRICS_FILE).write_text(metrics_of(found, recipe()).to_json())
    teacher = ModelBundle(kind=BundleKind.TORCH, recipe=toy_recipe())
    target = card(here=here, runtime="onnxruntime" if here else "tensorrt")
    situation = Situation(
        teacher=teacher, teacher_macs=1, trainable=True, dataset=None, target=target, runtimes=target.runtimes
    )
    return page_of(found, steps_of(found), recipe(), situation, {}, out)


def test_the_command_runs_the_recipe_that_lies_there(tmp_path: Path) -> None:
    out = tmp_path / "my results"
    command = shlex.split(page(results(), out).asked.command)
    assert command[:2] == ["edgekd", "run"]
    assert read_recipe(Path(command[2]))[0].graph == graph()
    context = run.make_context("run", command[2:])
    assert Path(context.params["recipe"]) == out / RESOLVED
    assert context.params["out"] == out


@pytest.mark.parametrize("measured", [True, False])
def test_the_next_step_judges_again_as_it_is_printed(tmp_path: Path, measured: bool) -> None:
    found = page(results(measured=measured), tmp_path / "out", here=measured)
    line = found.next_steps[-1]
    command = shlex.split(line[line.index("edgekd gate") :])
    done = CliRunner().invoke(gate, command[2:], standalone_mode=False)
    assert done.exception is None
    assert "verdict" in done.output
    assert not any("OUT" in step or "..." in step for step in found.next_steps)
    assert f"edgekd package {tmp_path / 'out'} -o model.edgekd" in found.next_steps[-2]
    assert any(f"edgekd profile {tmp_path / 'out'} --device" in step for step in found.next_steps) is not measured


def test_an_engine_that_is_built_elsewhere_is_built_in_the_bundle_of_this_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = results(measured=False)
    read = found.chosen_bundle.model_copy(update={"tags": {"precision": "int8", "scheme": "tensorrt-s8"}})
    monkeypatch.setattr(Results, "chosen_bundle", property(lambda self: read))
    first = page(found, tmp_path / "out", here=False).next_steps[0]
    assert f"edgekd build {tmp_path / 'out'} --device ssh://USER@HOST" in first
    assert f"in a copy of {tmp_path / 'out' / BUNDLE}: trtexec --onnx=model.onnx" in first


def test_a_graph_that_tensorrt_does_not_read_is_not_built(tmp_path: Path) -> None:
    steps = page(results(measured=False), tmp_path / "out", here=False).next_steps
    assert not any("trtexec" in step for step in steps)


@pytest.mark.parametrize("origin", ["real", "synthetic", "random"])
def test_parity_says_how_many_samples_there_were_and_of_what_kind(tmp_path: Path, origin: str) -> None:
    row = next(row for row in page(results(origin=origin), tmp_path).parity if row.node == "student-int8-ort")
    assert (row.samples, row.origin) == (32, origin)
