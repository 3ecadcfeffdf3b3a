"""What runs on a board keeps the board's rules: the standard library, Python 3.10, nothing printed."""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path

import pytest

import edgekd.profiling.agent as agent

FOLDER = Path(agent.__file__).parent
ADAPTERS = {
    "cpu.py": ("numpy",),
    "onnxruntime.py": ("onnxruntime",),
    "openvino.py": ("openvino",),
    "openvino_request.py": ("openvino",),
    "executorch.py": ("executorch.extension.pybindings", "executorch.runtime", "torch"),
    "ncnn.py": ("ncnn",),
    "ncnn_network.py": ("ncnn", "numpy"),
    "litert.py": ("ai_edge_litert.interpreter",),
    "litert_values.py": ("numpy",),
    "tensorrt.py": ("tensorrt",),
    "tensorrt_api.py": ("tensorrt",),
    "tensorrt_run.py": ("tensorrt",),
}
"""What an adapter may import, inside functions: the runtime that it is named for and what that brings along."""
NEWER = {
    "typing": {"Self", "Never", "LiteralString", "assert_never", "reveal_type", "Required", "NotRequired", "Unpack",
               "TypeVarTuple", "override", "dataclass_transform", "assert_type"},
    "enum": {"StrEnum", "ReprEnum", "verify", "EnumCheck", "member", "nonmember"},
    "datetime": {"UTC"},
    "contextlib": {"chdir"},
    "itertools": {"batched"},
    "asyncio": {"TaskGroup", "timeout", "Runner"},
}  # fmt: skip
"""Names that Python 3.10 does not have."""
NEWER_MODULES = {"tomllib", "wsgiref.types", "_zoneinfo"}


def files() -> list[Path]:
    outside = [Path(str(importlib.import_module(name).__file__)) for name in agent.NEEDS]
    return [*sorted(FOLDER.glob("*.py")), *outside]


def violations(source: str, name: str) -> list[str]:
    """Imports and names that a board does not have."""
    found = []
    tree = ast.parse(source, feature_version=(3, 10))
    within = {id(node) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for node in ast.walk(f)}
    for node in ast.walk(tree):
        modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
            found += [f"{node.module}.{a.name}" for a in node.names if a.name in NEWER.get(node.module or "", ())]
            if node.module == "edgekd.profiling":
                modules = [f"edgekd.profiling.{a.name}" for a in node.names]
        for module in modules:
            ours = module == agent.__name__ or module.startswith(f"{agent.__name__}.") or module in agent.NEEDS
            standard = module.partition(".")[0] in sys.stdlib_module_names and module not in NEWER_MODULES
            runtime = module in ADAPTERS.get(name, ()) and id(node) in within
            if not (ours or standard or runtime):
                found.append(module)
    return found


@pytest.mark.parametrize("path", files(), ids=lambda path: path.name)
def test_the_agent_imports_the_standard_library_of_python_3_10_and_itself(path: Path) -> None:
    assert violations(path.read_text(), path.name) == []


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("import psutil", "facts.py"),
        ("import numpy", "cpu.py"),
        ("def f():\n    import numpy", "tensorrt.py"),
        ("def f():\n    import torch", "tensorrt.py"),
        ("from edgekd.errors import UserError", "loop.py"),
        ("from typing import Self", "loop.py"),
        ("import tomllib", "loop.py"),
        ("from edgekd.profiling import measure", "loop.py"),
        ("def f():\n    import numpy", "loop.py"),
    ],
)
def test_the_check_can_fail(source: str, name: str) -> None:
    assert violations(source, name)


def test_the_check_lets_a_runtime_into_a_function_of_its_adapter() -> None:
    assert violations("def f():\n    import numpy", "cpu.py") == []


def test_newer_syntax_is_refused() -> None:
    with pytest.raises(SyntaxError):
        violations("try:\n    pass\nexcept* ValueError:\n    pass", "loop.py")
