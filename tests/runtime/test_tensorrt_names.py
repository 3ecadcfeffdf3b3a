"""Names of TensorRT's binding and options of `trtexec` are those that the real ones have, by the recorded lists."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
from edgekd_runtime import tensorrt, tensorrt_build, tensorrt_worker

GOLDEN = Path(__file__).parents[1] / "golden"
GUARDED = {"BuilderFlag.FP16", "BuilderFlag.INT8"}
"""Used below 11 only; `NetworkDefinitionCreationFlag` is asked with `hasattr`."""
METHODS = {
    "Runtime": ("deserialize_cuda_engine", "engine_host_code_allowed"),
    "ICudaEngine": (
        "create_execution_context",
        "get_tensor_dtype",
        "get_tensor_mode",
        "get_tensor_name",
        "get_tensor_profile_shape",
        "get_tensor_shape",
        "num_io_tensors",
    ),
    "IExecutionContext": ("execute_async_v3", "get_tensor_shape", "set_input_shape", "set_tensor_address"),
    "Builder": (
        "build_serialized_network",
        "create_builder_config",
        "create_network",
        "create_optimization_profile",
    ),
    "OnnxParser": ("get_error", "num_errors", "parse"),
    "IBuilderConfig": (
        "DLA_core",
        "add_optimization_profile",
        "builder_optimization_level",
        "clear_flag",
        "create_timing_cache",
        "default_device_type",
        "get_timing_cache",
        "hardware_compatibility_level",
        "set_flag",
        "set_memory_pool_limit",
        "set_timing_cache",
    ),
    "IOptimizationProfile": ("set_shape",),
    "ITimingCache": ("serialize",),
}
SETTINGS = {
    **tensorrt_build.DEFAULTS,
    "inputs": [{"name": "x", "min": [1], "opt": [1], "max": [1]}],
    "precision": "int8",
    "tf32": False,
    "workspace_mib": 1,
    "optimization_level": 1,
    "sparsity": True,
    "dla_core": 0,
    "version_compatible": True,
    "hardware_compatible": True,
}


def _golden(name: str) -> Any:
    path = GOLDEN / name
    if not path.is_file():
        pytest.skip(f"{path.name} is not there")
    return json.loads(path.read_text())


def _attributes() -> set[str]:
    """Everything that is written as `trt.NAME`, and every method that is called above."""
    found = {f"{owner}.{name}" for owner, names in METHODS.items() for name in names}
    for module in (tensorrt, tensorrt_worker):
        for node in ast.walk(ast.parse(Path(str(module.__file__)).read_text())):
            text = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
            if text.startswith("trt.") and not text.endswith("__"):
                found.add(text.removeprefix("trt."))
    return found


def test_every_name_is_there_in_every_version() -> None:
    recorded = _golden("tensorrt_names.json")["names"]
    used = _attributes()
    assert {"Logger.ERROR", "TensorIOMode.INPUT", "BuilderFlag.TF32"} <= used
    missing = {name for name in used - GUARDED if "-" in str(recorded.get(name, "-"))[:12]}
    assert missing == set()


def test_methods_above_are_those_that_are_called() -> None:
    text = "".join(Path(str(module.__file__)).read_text() for module in (tensorrt, tensorrt_worker))
    assert [name for names in METHODS.values() for name in names if f".{name}" not in text] == []


@pytest.mark.parametrize("version", ["8.6.1", "10.3.0", "11.0.0"])
def test_every_option_of_trtexec_is_known_to_its_version(version: str, tmp_path: Path) -> None:
    known = set(_golden("trtexec_options.json")[version])
    numbers = tuple(int(part) for part in version.split("."))
    words = tensorrt_build.trtexec_arguments(SETTINGS, numbers, tmp_path)
    assert {word.split("=")[0].lstrip("-") for word in words} - {word.lstrip("-") for word in known} == set()
