"""The main job, end to end, as a user runs it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from edgekd.export.package import verified_package
from edgekd.nn.build import module_from_recipe
from tests.pipeline.world import SIZE, World, edgekd, large_recipe


def _contents(out: Path) -> dict[str, str]:
    """Content digests of what does not depend on a measurement."""
    nodes = json.loads((out / "manifest.json").read_text())["nodes"]
    measured = ("profile", "chosen", "gate", "test-chosen")
    return {name: node["content"] for name, node in nodes.items() if name not in measured}


def test_the_whole_chain_runs_repeats_and_judges(world: World) -> None:
    budget = ["--max-latency-ms", "50", "--max-drop", "1.0"]
    first = edgekd(world.command("--data", str(world.data), *budget), world.folder)
    assert first.returncode == 0, first.stderr
    out = world.folder / "out"
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["verdict"]["status"] == "PASS"
    assert {"search", "student-distill", "student-prune", "student-recover", "teacher-recover"} <= set(
        metrics["stages"]
    )
    runtimes = {(e["candidate"], e["runtime"]) for e in metrics["profile"]["entries"]}
    assert {("teacher-fp32", "onnxruntime"), ("teacher-fp32", "openvino")} <= runtimes
    assert "<html" in (out / "report.html").read_text()
    assert {"model.onnx", "preprocessing.json", "labels.txt", "target.yaml", "manifest.json"} <= {
        path.name for path in (out / "bundle").iterdir()
    }

    before = _contents(out)
    again = edgekd(world.command("--data", str(world.data), *budget), world.folder)
    assert again.returncode == 0, again.stderr
    assert "student-distill  reused: nothing changed" in again.stderr
    assert _contents(out) == before

    gate = edgekd(["gate", str(out), "--max-latency-ms", "0.000001"], world.folder)
    assert gate.returncode == 1
    assert "FAIL" in gate.stdout


@pytest.mark.slow
def test_a_resolved_recipe_gives_the_same_result_in_another_store(world: World) -> None:
    command = world.command("--data", str(world.data), "--students", "prune")
    assert edgekd(command, world.folder).returncode == 0
    recipe = world.folder / "out" / "resolved.yaml"
    again = edgekd(["run", str(recipe), "-o", "again", "--store", "other"], world.folder)
    assert again.returncode == 0, again.stderr
    assert _contents(world.folder / "again") == _contents(world.folder / "out")


@pytest.mark.slow
def test_changing_one_option_reruns_only_what_depends_on_it(world: World) -> None:
    base = world.command("--data", str(world.data), "--students", "prune")
    assert edgekd(base, world.folder).returncode == 0
    plan = edgekd([*base, "--calib-method", "percentile", "--dry-run", "--format", "json"], world.folder)
    decisions = {d["node"]: d for d in json.loads(plan.stdout)["decisions"]}
    reused = {name for name, d in decisions.items() if d["action"] == "reuse"}
    assert {"calibration", "teacher-prune", "teacher-recover", "teacher-fp32", "teacher-pruned-fp32"} <= reused
    assert "config.calib_method" in " ".join(decisions["teacher-int8-ort"]["reasons"])
    assert decisions["teacher-int8-ort"]["action"] == "run"


def test_a_killed_run_continues_and_ends_with_the_same_content(world: World) -> None:
    arguments = ["--data", str(world.data), "--students", "prune", "--recover-epochs", "40"]
    whole = edgekd(world.command(*arguments, out="whole", store="s1"), world.folder)
    assert whole.returncode == 0, whole.stderr

    process = subprocess.Popen(
        [sys.executable, "-m", "edgekd", *world.command(*arguments, out="cut", store="s2"), "--format", "json"],
        cwd=world.folder,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
    )
    assert process.stderr is not None
    for line in process.stderr:
        event = json.loads(line) if line.startswith("{") else {}
        if event.get("event") == "node" and event.get("name") == "teacher-recover":
            break
    time.sleep(1.0)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()

    resumed = edgekd(world.command(*arguments, out="cut", store="s2"), world.folder)
    assert resumed.returncode == 0, resumed.stderr
    assert "teacher-prune  reused" in resumed.stderr
    assert _contents(world.folder / "cut") == _contents(world.folder / "whole")


def test_a_dry_run_explains_every_node_and_writes_the_recipe(world: World) -> None:
    done = edgekd(world.command("--data", str(world.data), "--dry-run"), world.folder)
    assert done.returncode == 0, done.stderr
    assert "student-distill" in done.stdout
    assert "runs: first time" in done.stdout
    recipe = yaml.safe_load((world.folder / "out" / "resolved.yaml").read_text())
    assert recipe["request"]["target"] == "host"
    assert not (world.folder / "out" / "bundle").exists()


def test_without_data_a_jetson_gets_what_can_honestly_be_done(world: World) -> None:
    command = ["compress", str(world.model), *world.command()[2:]]
    command[command.index("host")] = "jetson"
    done = edgekd(command, world.folder)
    assert done.returncode == 0, done.stderr
    assert "No data was given" in done.stderr
    out = world.folder / "out"
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["profile"]["measured"] is False
    assert metrics["verdict"]["status"] == "INCONCLUSIVE"
    assert {entry["precision"] for entry in metrics["profile"]["entries"]} == {"fp32", "fp16"}
    assert "trtexec" in (out / "bundle" / "README.txt").read_text()


def test_a_jetson_with_data_gets_a_calibrated_graph_and_an_open_verdict(world: World) -> None:
    command = world.command(
        "--data", str(world.data), "--students", "none", "--max-latency-ms", "5", "--max-drop", "1.0"
    )
    command[command.index("host")] = "jetson"
    done = edgekd(command, world.folder)
    assert done.returncode == 5, done.stderr
    assert "not measured" in done.stdout
    assert f"next     Build the engine on the device: edgekd build {(world.folder / 'out').resolve()}" in done.stdout
    metrics = json.loads((world.folder / "out" / "metrics.json").read_text())
    assert {e["precision"] for e in metrics["profile"]["entries"]} == {"fp32", "fp16", "int8"}
    assert any(e["split"] == "test" and e["candidate"] == "chosen" for e in metrics["evaluations"])
    package = verified_package(world.folder / "out" / "bundle")
    assert package.deployment is not None
    assert {engine.precision for engine in package.deployment.engines} == {"fp32", "fp16", "int8"}
    assert all(engine.runtimes[0] == "tensorrt" for engine in package.deployment.engines)
    int8 = {engine.scheme for engine in package.deployment.engines if engine.precision == "int8"}
    assert int8 == {"tensorrt-s8", "tensorrt-s8-fp16"}  # for TensorRT 8, and for 10 and newer


@pytest.mark.slow
def test_two_runs_from_two_stores_and_places_give_one_package_byte_for_byte(world: World, tmp_path: Path) -> None:
    # Nothing is measured for a target that is not here, so that everything in the package follows from the request.
    elsewhere = World(tmp_path / "else" / "where", *(tmp_path / "else" / "where" / n for n in ("model.pt", "data.npz")))
    elsewhere.folder.mkdir(parents=True)
    packages = []
    for place in (world, elsewhere):
        for path in (world.model, world.data):
            if place is elsewhere:
                shutil.copy(path, place.folder)
        command = place.command("--data", str(place.data), "--students", "prune", "--license", "CC BY 4.0")
        command[command.index("host")] = "jetson"
        done = edgekd(command, place.folder)
        assert done.returncode == 0, done.stderr
        packed = edgekd(["package", "out", "-o", "model.edgekd"], place.folder)
        assert packed.returncode == 0, packed.stderr
        packages.append((place.folder / "model.edgekd").read_bytes())
    assert packages[0] == packages[1]


@pytest.mark.slow
def test_images_without_labels_are_judged_by_agreement(world: World) -> None:
    with np.load(world.data) as arrays:
        np.savez(world.folder / "bare.npz", images=arrays["images"], val_images=arrays["val_images"])
    done = edgekd(world.command("--data", str(world.folder / "bare.npz"), "--max-drop", "1.0"), world.folder)
    assert done.returncode == 0, done.stderr
    assert "agreement" in done.stdout
    metrics = json.loads((world.folder / "out" / "metrics.json").read_text())
    assert {e["metric"] for e in metrics["evaluations"]} == {"agreement"}


@pytest.mark.slow
def test_generated_images_calibrate_and_are_called_synthetic(world: World) -> None:
    done = edgekd(world.command("--data", "synthetic"), world.folder)
    assert done.returncode == 0, done.stderr
    assert "synthetic" in done.stderr
    metrics = json.loads((world.folder / "out" / "metrics.json").read_text())
    assert metrics["evaluations"] == []
    assert metrics["stages"]["teacher-int8-ort"]["samples_origin"] == "synthetic"


@pytest.mark.slow
def test_a_program_is_compressed_like_weights(world: World) -> None:
    module = module_from_recipe(large_recipe(), seed=0)
    module.load_state_dict(torch.load(world.model, weights_only=True))
    images = torch.zeros(2, 3, SIZE, SIZE)
    program = torch.export.export(module, (images,), dynamic_shapes=({0: torch.export.Dim("N")},))
    torch.export.save(program, world.folder / "model.pt2")
    command = world.command("--data", str(world.data), "--students", "prune")
    start = command.index("--arch")
    end = command.index("--input-shape")
    command[1] = str(world.folder / "model.pt2")
    del command[start:end]
    done = edgekd(command, world.folder)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((world.folder / "out" / "metrics.json").read_text())
    assert "teacher-recover" in metrics["stages"]


@pytest.mark.slow
def test_an_override_of_the_request_reaches_choice_and_verdict(world: World) -> None:
    assert edgekd(world.command("--data", str(world.data), "--students", "none"), world.folder).returncode == 0
    recipe = world.folder / "out" / "resolved.yaml"
    store = str(world.folder / "store")
    judged = edgekd(
        ["run", str(recipe), "request.budget.max_latency_ms=0.000001", "-o", "out2", "--store", store], world.folder
    )
    assert judged.returncode == 1, judged.stderr
    assert "FAIL" in judged.stdout


@pytest.mark.slow
def test_mixed_precision_engines_are_measured_and_judged_beside_the_others(world: World) -> None:
    options = ["--students", "none", "--precision", "fp32,int8", "--rounding", "reconstruct", "--mixed", "1"]
    done = edgekd(world.command("--data", str(world.data), "--max-drop", "1.0", *options), world.folder)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((world.folder / "out" / "metrics.json").read_text())
    profiled = {entry["candidate"] for entry in metrics["profile"]["entries"]}
    evaluated = {entry["candidate"] for entry in metrics["evaluations"]}
    for name in ("teacher-int8-ort", "teacher-int8-ort-mixed1", "teacher-int8-openvino-mixed1"):
        assert name in profiled & evaluated
    assert metrics["stages"]["teacher-int8-ort-mixed1"]["layers_in_float"] == 1
    assert "1 layer in float" in done.stdout + done.stderr
    (table,) = (world.folder / "out" / "stages").glob("*-teacher-int8-ort-sensitivity")
    assert "Share of the INT8 noise by layer" in (table / "node.json").read_text()
    assert json.loads((table / "report.json").read_text())["layers"]
