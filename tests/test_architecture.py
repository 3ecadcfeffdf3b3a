"""The import rules of the house, read from the syntax trees: floors, siblings, and where a heavy library may appear."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import edgekd

PACKAGE = Path(edgekd.__file__).parent
FLOORS: tuple[frozenset[str], ...] = (
    frozenset({"errors"}),
    frozenset({"core"}),
    frozenset({"targets", "tasks", "data"}),
    frozenset({"nn"}),
    frozenset({"runtimes"}),
    frozenset({"lint"}),
    frozenset({"train"}),
    frozenset({"search", "distill", "prune", "quant", "export", "profiling", "evaluate", "gate", "report"}),
    frozenset({"testing"}),
    frozenset({"pipeline"}),
    frozenset({"cli"}),
)
ROOT_MODULES = {"__init__", "__main__", "errors"}
ONLY_IN_FILES_NAMED_FOR_THEM = (
    "tensorrt",
    "onnxruntime",
    "openvino",
    "nncf",
    "timm",
    "ray",
    "torch_pruning",
    "executorch",
    "ncnn",
    "pnnx",
    "ai_edge_litert",
    "litert_torch",
    "ai_edge_quantizer",
)
FAMILY = {"ai_edge_litert": "litert", "litert_torch": "litert", "ai_edge_quantizer": "litert"}
"""Libraries whose files are named for the product that they belong to."""
NO_TENSORS = ("errors", "core", "gate", "targets")
MAX_LINES = 400

Import = tuple[Path, str, int]


def _files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def _room(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def _imports(source: str) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            if node.module == "edgekd":
                for alias in node.names:
                    yield f"edgekd.{alias.name}", node.lineno
            elif node.module:
                yield node.module, node.lineno


def _all_imports() -> list[Import]:
    return [(path, name, line) for path in _files() for name, line in _imports(path.read_text())]


def _floor(room: str) -> int:
    for index, rooms in enumerate(FLOORS):
        if room in rooms:
            return index
    raise AssertionError(f"edgekd/{room} stands on no floor: add it to FLOORS and to the design")


def floor_violations(imports: list[Import]) -> list[str]:
    """Imports of edgekd that point upwards, or sideways to another room."""
    wrong = []
    for path, name, line in imports:
        parts = name.split(".")
        room = _room(path)
        if parts[0] != "edgekd" or len(parts) < 2 or room in ROOT_MODULES - {"errors"}:
            continue
        other = parts[1]
        if other == room or other.startswith("__"):
            continue
        if _floor(other) >= _floor(room):
            wrong.append(f"{path.relative_to(PACKAGE)}:{line} ({room}) imports {name}")
    return wrong


def test_imports_point_downwards_and_siblings_do_not_import_each_other() -> None:
    assert floor_violations(_all_imports()) == []


def test_the_floor_check_can_fail() -> None:
    upward = (PACKAGE / "core" / "x.py", "edgekd.nn.build", 1)
    sideways = (PACKAGE / "quant" / "x.py", "edgekd.distill.stage", 2)
    allowed = (PACKAGE / "quant" / "x.py", "edgekd.core.stage", 3)
    assert len(floor_violations([upward, sideways, allowed])) == 2


@pytest.mark.parametrize("room", NO_TENSORS)
def test_rooms_without_tensors_import_neither_torch_nor_onnx(room: str) -> None:
    heavy = [
        f"{path}:{line}"
        for path, name, line in _all_imports()
        if _room(path) == room and name.split(".")[0] in ("torch", "onnx", "torchvision")
    ]
    assert heavy == []


def test_a_runtime_library_is_imported_only_in_a_file_named_for_it_and_only_inside_functions() -> None:
    wrong = []
    for path, name, line in _all_imports():
        library = name.split(".")[0]
        if library in ONLY_IN_FILES_NAMED_FOR_THEM and FAMILY.get(library, library) not in path.stem:
            wrong.append(f"{path.relative_to(PACKAGE)}:{line} imports {library}")
    for path in _files():
        for node in ast.parse(path.read_text()).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            wrong += [
                f"{path.relative_to(PACKAGE)}:{node.lineno} imports {n} at module level"
                for n in names
                if n.split(".")[0] in ONLY_IN_FILES_NAMED_FOR_THEM
            ]
    assert wrong == []


def test_click_and_rich_stay_in_the_command_line() -> None:
    outside = [
        f"{path.relative_to(PACKAGE)}:{line}"
        for path, name, line in _all_imports()
        if name.split(".")[0] in ("click", "rich") and _room(path) != "cli"
    ]
    assert outside == []


def test_no_file_is_longer_than_the_limit() -> None:
    root = PACKAGE.parent
    files = [*_files(), *(root / "tests").rglob("*.py"), *(root / "benchmarks").rglob("*.py")]
    assert [f"{p}: {n}" for p in files if (n := len(p.read_text().splitlines())) > MAX_LINES] == []


def test_benchmarks_name_what_the_package_has() -> None:
    """They are run by hand and seldom, so a name that went would be found out hours later."""
    wrong = []
    for path in sorted((PACKAGE.parent / "benchmarks").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in ("edgekd", "tests"):
                found = importlib.import_module(node.module)
                wrong += [
                    f"{path.name}:{node.lineno} {alias.name}" for alias in node.names if not _has(found, alias.name)
                ]
    assert wrong == []


def _has(module: ModuleType, name: str) -> bool:
    return hasattr(module, name) or importlib.util.find_spec(f"{module.__name__}.{name}") is not None


def test_every_module_says_why_it_exists() -> None:
    assert [str(p) for p in _files() if not ast.get_docstring(ast.parse(p.read_text()))] == []


def _calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """(dotted name, call) of every call in a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_nothing_prints_or_evaluates() -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)}:{call.lineno} {name}"
        for path in _files()
        for name, call in _calls(path)
        if name in ("print", "eval", "exec")
    ]
    assert wrong == []


def test_pickles_are_read_only_in_the_one_function_that_the_user_must_allow() -> None:
    unsafe = [
        (str(path.relative_to(PACKAGE)), name)
        for path in _files()
        for name, call in _calls(path)
        if name.startswith(("pickle.load", "pickle.Unpickler"))
        or (
            name == "torch.load"
            and not any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in call.keywords)
        )
    ]
    assert unsafe == [("nn/load.py", "torch.load")]


@pytest.mark.parametrize("argument", [["-c", "import edgekd"], ["-m", "edgekd", "--help"]])
def test_import_and_help_load_neither_torch_nor_onnx(argument: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *argument], capture_output=True, text=True, check=True, timeout=60
    )
    loaded = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert not loaded & {"torch", "onnx", "onnxruntime", "openvino", "timm", "nncf", "numpy"}
