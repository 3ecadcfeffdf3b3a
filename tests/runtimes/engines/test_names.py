"""The names that edgekd asks TensorRT's bindings for, held to what the published bindings of each version offer."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

import edgekd
from edgekd.runtimes.engines.settings import PERMISSIONS
from tests.golden.tensorrt_names import NAMES

PACKAGE = Path(edgekd.__file__).parent
FILES = (
    "runtimes/engines/tensorrt_api.py",
    "runtimes/engines/tensorrt_run.py",
    "runtimes/tensorrt.py",
)
CLASS_OF = {
    "trt": "", "tensorrt": "", "builder": "Builder", "network": "INetworkDefinition", "parser": "OnnxParser",
    "error": "ParserError", "config": "IBuilderConfig", "profile": "IOptimizationProfile",
    "inspector": "EngineInspector",
    "engine": "ICudaEngine", "self._engine": "ICudaEngine", "self._context": "IExecutionContext", "runtime": "Runtime",
    "trt.BuilderFlag": "BuilderFlag", "trt.Logger": "Logger", "trt.ILogger": "ILogger", "tensorrt.Logger": "Logger",
    "trt.ILogger.Severity": "ILogger.Severity", "trt.MemoryPoolType": "MemoryPoolType", "trt.DeviceType": "DeviceType",
    "trt.ProfilingVerbosity": "ProfilingVerbosity", "trt.TensorIOMode": "TensorIOMode",
    "tensorrt.TensorIOMode": "TensorIOMode", "trt.LayerInformationFormat": "LayerInformationFormat",
    "trt.HardwareCompatibilityLevel": "HardwareCompatibilityLevel", "trt.IProfiler": "IProfiler",
    "trt.NetworkDefinitionCreationFlag": "NetworkDefinitionCreationFlag", "trt.IProgressMonitor": "IProgressMonitor",
}  # fmt: skip
"""What the expressions in these files stand for."""
OURS = {"self._engine": set(), "engine": {"name", "stem"}, "error": set(), "profile": set()}
GUARDED = {
    "IProgressMonitor": "hasattr", "IBuilderConfig.progress_monitor": "hasattr", "ParserError.node_operator": "hasattr",
    "ParserError.node_name": "hasattr", "NetworkDefinitionCreationFlag.EXPLICIT_BATCH": "getattr",
    "IProgressMonitor.__init__": "with IProgressMonitor",
    "NetworkDefinitionCreationFlag.STRONGLY_TYPED": "version[0] == 10",
}  # fmt: skip
"""Names that not every version has, and how the code asks before it uses them."""
SETTABLE = ("SPARSE_WEIGHTS", "VERSION_COMPATIBLE", "GPU_FALLBACK", "TF32")
"""Builder flags that are set by their text."""


def table() -> tuple[list[str], dict[str, str], dict[str, list[str]]]:
    """Versions, presence by name, and signatures by name."""
    found = json.loads(NAMES.read_text())
    rows = {name: row if isinstance(row, list) else [row] for name, row in found["names"].items()}
    return (
        found["versions"],
        {name: row[0] for name, row in rows.items()},
        {name: row[1:] for name, row in rows.items()},
    )


def used(source: str) -> set[str]:
    """Names of the bindings in a source text."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            owner = ast.unparse(node.value)
            if owner in CLASS_OF and node.attr not in OURS.get(owner, set()) and node.attr != "__version__":
                found.add(f"{CLASS_OF[owner]}.{node.attr}".removeprefix("."))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr"):
            owner, name = ast.unparse(node.args[0]), node.args[1]
            if owner in CLASS_OF and isinstance(name, ast.Constant):
                found.add(f"{CLASS_OF[owner]}.{name.value}".removeprefix("."))
    return found


def missing(names: set[str]) -> dict[str, str]:
    """Names that some version lacks and that the code does not ask for first, with their presence."""
    _, presence, _ = table()
    there = {name: presence.get(name, "nowhere") for name in names}
    return {name: letters for name, letters in there.items() if set(letters) != {"Y"} and name not in GUARDED}


@pytest.mark.parametrize("file", FILES)
def test_every_name_is_in_every_version_or_asked_for_first(file: str) -> None:
    names = used((PACKAGE / file).read_text())
    assert len(names) >= 3
    assert missing(names) == {}


def test_the_check_of_names_can_fail() -> None:
    assert missing(used("trt.BuilderFlag.INT8\nconfig.max_workspace_size\nparser.parse")) == {
        "BuilderFlag.INT8": "YYYYY-",
        "IBuilderConfig.max_workspace_size": "Y-----",
    }


def test_names_that_are_asked_for_first_are_really_missing_somewhere() -> None:
    _, presence, _ = table()
    assert {name for name in GUARDED if set(presence[name]) == {"Y"}} == set()


@pytest.mark.parametrize("flag", [*SETTABLE, *sorted({name for names in PERMISSIONS.values() for name in names})])
def test_flags_that_are_set_by_their_text_are_there_where_they_are_set(flag: str) -> None:
    versions, presence, _ = table()
    lacking = [v for v, there in zip(versions, presence[f"BuilderFlag.{flag}"], strict=True) if there != "Y"]
    # Permissions are given below 11 only; the others in every version.
    assert lacking == ([v for v in versions if v.startswith("11")] if flag in ("FP16", "INT8") else [])


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("OnnxParser.parse", "model, path="),
        ("IBuilderConfig.set_timing_cache", "cache, ignore_mismatch"),
        ("IBuilderConfig.create_timing_cache", "serialized_timing_cache"),
        ("IBuilderConfig.set_memory_pool_limit", "pool, pool_size"),
        ("IOptimizationProfile.set_shape", "input, min, opt, max"),
        ("Builder.create_network", "flags="),
        ("Builder.build_serialized_network", "network, config"),
        ("EngineInspector.get_engine_information", "format"),
        ("ILogger.log", "severity, msg"),
        ("IProfiler.report_layer_time", "layer_name, ms"),
        ("IProgressMonitor.phase_start", "phase_name, parent_phase, num_steps"),
        ("IProgressMonitor.step_complete", "phase_name, step"),
        ("IExecutionContext.set_input_shape", "name, shape"),
        ("IExecutionContext.set_tensor_address", "name, memory"),
        ("IExecutionContext.execute_async_v3", "stream_handle"),
    ],
)
def test_calls_have_the_arguments_that_the_code_gives_them(name: str, arguments: str) -> None:
    _, _, signatures = table()
    assert signatures[name]
    for signature in signatures[name]:
        assert signature.split(" | ")[0] == arguments


def test_the_bindings_are_of_every_major_version_that_edgekd_builds_for() -> None:
    versions, _, _ = table()
    assert {re.match(r"\d+", version)[0] for version in versions} == {"8", "10", "11"}  # type: ignore[index]
