from __future__ import annotations

import ast
import io
import sys
import zipfile

import pytest

from edgekd.profiling.remote.archive import agent_archive, agent_sources

OLDEST = (3, 10)
BESIDE_A_RUNTIME = {
    "cpu": {"numpy"},
    "onnxruntime": {"onnxruntime"},
    "openvino": {"openvino"},
    "openvino_request": {"openvino"},
    "executorch": {"executorch", "torch"},
    "ncnn": {"ncnn"},
    "ncnn_network": {"ncnn", "numpy"},
    "litert": {"ai_edge_litert"},
    "litert_values": {"numpy"},
    "tensorrt": {"tensorrt"},
    "tensorrt_api": {"tensorrt"},
    "tensorrt_run": {"tensorrt"},
}
"""What an adapter may import, by its file."""


def foreign(sources: dict[str, str]) -> list[str]:
    """Imports that a bare board could not satisfy."""
    modules = {path.removesuffix(".py").replace("/", ".").removesuffix(".__init__") for path in sources}
    wrong = []
    for path, text in sources.items():
        allowed = BESIDE_A_RUNTIME.get(path.rpartition("/")[2].removesuffix(".py"), set())
        for node in ast.walk(ast.parse(text)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                top = name.split(".")[0]
                if top == "edgekd" and name not in modules:
                    wrong.append(f"{path}: {name} does not travel")
                elif top != "edgekd" and top not in sys.stdlib_module_names and top not in allowed:
                    wrong.append(f"{path}: {name}")
    return wrong


def test_the_agent_imports_only_what_travels_with_it_and_the_standard_library() -> None:
    assert foreign(agent_sources()) == []


def test_the_import_check_can_fail() -> None:
    bad = {"edgekd/a.py": "import numpy\nimport edgekd.core.bundle\nfrom os import path"}
    assert foreign(bad) == ["edgekd/a.py: numpy", "edgekd/a.py: edgekd.core.bundle does not travel"]


@pytest.mark.parametrize("path", sorted(agent_sources()))
def test_the_agent_is_written_in_the_syntax_of_the_oldest_python(path: str) -> None:
    assert ast.parse(agent_sources()[path], feature_version=OLDEST)


def test_equal_sources_give_equal_bytes_and_the_name_carries_their_digest() -> None:
    first = agent_archive()
    agent_archive.cache_clear()
    assert agent_archive() == first
    assert first.name == f"agent-{first.digest[:16]}.pyz"
    with zipfile.ZipFile(io.BytesIO(first.content)) as archive:
        assert "__main__.py" in archive.namelist()
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
