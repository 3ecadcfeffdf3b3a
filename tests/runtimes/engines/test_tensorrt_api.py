"""What the Python builder asks each version for, against modules that have only what that version has."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgekd.runtimes.engines.settings import BuildSettings, InputShapes, SettingsError, version_from_text
from edgekd.runtimes.engines.tensorrt_api import ApiBuild, ApiError, build
from tests.golden.tensorrt_names import NAMES
from tests.runtimes.engines.fake_tensorrt import CACHE, make_module

VERSIONS: list[str] = json.loads(NAMES.read_text())["versions"]
ONE = (1, 3, 8, 8)
INT8 = BuildSettings(inputs=(InputShapes("images", ONE, ONE, (4, 3, 8, 8)),), precision="int8", workspace_mib=64)
FULL = replace(INT8, optimization_level=4, tf32=False, sparsity=True, version_compatible=True)

Build = Callable[..., tuple[ApiBuild, dict[str, Any]]]


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    """Builds a stand-in graph with a version; what was made, and what the builder was asked for."""
    control, graph = tmp_path / "control.json", tmp_path / "model.onnx"
    graph.write_bytes(_toy())
    monkeypatch.setenv("FAKE_TENSORRT", str(control))

    def run(version: str, settings: BuildSettings = INT8, **control_facts: Any) -> tuple[ApiBuild, dict[str, Any]]:
        control.write_text(json.dumps({"version": version, **control_facts}))
        monkeypatch.setitem(sys.modules, "tensorrt", make_module(version))
        made = build(
            settings, version_from_text(version), onnx=graph, engine=tmp_path / "model.engine",
            timing_cache=tmp_path / "timing.cache", layers=tmp_path / "layers.json",
            on_progress=lambda phase, done, total: None,
        )  # fmt: skip
        return made, json.loads(control.read_text())["calls"][0]

    return run


def _toy() -> bytes:
    from edgekd.testing.toy_graphs import toy_graph

    return bytes(toy_graph().SerializeToString())


@pytest.mark.parametrize("version", VERSIONS)
def test_each_version_builds_with_all_settings_from_names_that_it_has(
    version: str, built: Build, tmp_path: Path
) -> None:
    made, call = built(version, FULL)
    strong, major = version_from_text(version)[0] >= 10, version_from_text(version)[0]
    assert call["strong"] is (major == 10)  # in 11 every network is, and nothing is asked for
    assert call["flags"] == [
        *([] if strong else ["INT8", "FP16"]),
        "SPARSE_WEIGHTS",
        "VERSION_COMPATIBLE",
    ]
    assert (call["cleared"], call["pools"], call["level"]) == (["TF32"], {"WORKSPACE": 64 << 20}, 4)
    assert call["verbosity"] == "DETAILED"
    assert ("STRONGLY_TYPED" in made.flags) is strong
    assert (tmp_path / "timing.cache").read_bytes() == CACHE
    assert "CaskConvolution" in (tmp_path / "layers.json").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "control.json", "layers.json", "model.engine", "model.onnx", "timing.cache",
    ]  # fmt: skip


def test_float32_layers_may_be_allowed_half_precision_in_10_and_not_in_11(built: Build) -> None:
    allowed = replace(INT8, allow_fp16=True)
    _, call = built("10.3.0", allowed)
    assert (call["strong"], call["flags"]) == (False, ["INT8", "FP16"])
    with pytest.raises(SettingsError, match="half precision must be in the graph"):
        built("11.4.0.106", allowed)


def test_an_engine_for_other_gpus_is_asked_for_by_its_level(built: Build) -> None:
    made, call = built("10.3.0", replace(INT8, hardware_compatible=True))
    assert call["hardware"] == "AMPERE_PLUS"
    assert "AMPERE_PLUS" in made.flags


def test_an_accelerator_takes_what_it_can_and_the_gpu_the_rest(built: Build) -> None:
    one = replace(INT8, inputs=(InputShapes("images", ONE, ONE, ONE),), dla_core=1)
    _, call = built("10.3.0", one)
    assert (call["dla"], call["device"], call["flags"]) == (1, "DLA", ["GPU_FALLBACK"])


def test_a_graph_of_one_shape_gets_no_profile(built: Build) -> None:
    _, call = built("10.3.0", replace(INT8, inputs=()))
    assert call["shapes"] == []


def test_timings_of_this_device_are_told_and_others_are_ignored_and_said(built: Build, tmp_path: Path) -> None:
    (tmp_path / "timing.cache").write_bytes(CACHE)
    made, call = built("10.3.0")
    assert (call["cache"], made.notes) == (CACHE.decode(), [])
    for content in (b"FAKE-CACHE Thor", b"\x00damaged"):
        (tmp_path / "timing.cache").write_bytes(content)
        made, call = built("10.3.0")
        assert call["cache"] == ""
        assert "it is ignored" in made.notes[0]
        assert (tmp_path / "timing.cache").read_bytes() == CACHE


def test_an_operator_that_is_not_supported_is_named_with_its_node(built: Build, tmp_path: Path) -> None:
    with pytest.raises(ApiError, match=r"operator Frobnicate \(node 3, 'odd'\): No importer registered"):
        built("10.3.0", parses=False)
    with pytest.raises(ApiError, match=r"cannot take node 3: No importer registered"):
        built("8.6.1", parses=False)  # it does not tell the operator
    assert not (tmp_path / "model.engine").exists()


def test_memory_that_is_short_is_told_apart_from_other_failures(built: Build, tmp_path: Path) -> None:
    with pytest.raises(ApiError, match="out of memory") as caught:
        built("10.3.0", builds=[{"fail": "memory", "until_mib": 1}])
    assert caught.value.memory
    with pytest.raises(ApiError, match="Could not find any implementation") as caught:
        built("10.3.0", builds=[{"fail": "no kernel"}])
    assert not caught.value.memory
    assert not (tmp_path / "model.engine").exists()


def test_a_module_of_a_version_lacks_what_the_version_lacks(built: Build) -> None:
    trt = make_module("11.4.0.106")
    with pytest.raises(AttributeError):
        trt.BuilderFlag.INT8  # noqa: B018
    with pytest.raises(AttributeError):
        make_module("8.6.1").IProgressMonitor  # noqa: B018
