"""The runtime stands alone: nothing of edgekd, nothing heavy at import, Python 3.10, installed without PyTorch."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import edgekd_runtime
import pytest

from tests.runtime.bundles import write_bundle, zipped

PACKAGE = Path(edgekd_runtime.__file__).parent
DISTRIBUTION = PACKAGE.parent
AT_IMPORT = frozenset(sys.stdlib_module_names) | {"numpy", "edgekd_runtime"}
LIBRARIES = frozenset({"onnxruntime", "openvino", "tensorrt", "ai_edge_litert", "ncnn"})
ANYWHERE = AT_IMPORT | {"PIL"} | LIBRARIES
HEAVY = ("torch", "edgekd", "onnx", "onnxruntime", "openvino", "tensorrt", "PIL", "pydantic", "cv2", "scipy")
MAX_LINES = 400


def _modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def _imports(tree: ast.AST, *, deep: bool) -> Iterator[str]:
    """First names of what is imported; without `deep`, only by importing the module."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield str(node.module).split(".")[0]
        elif deep or isinstance(node, ast.ClassDef):
            yield from _imports(node, deep=deep)


@pytest.mark.parametrize("path", _modules(), ids=lambda path: path.stem)
def test_a_module_imports_little_and_its_library_late(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert set(_imports(tree, deep=False)) <= AT_IMPORT
    everything = set(_imports(tree, deep=True))
    assert everything <= ANYWHERE
    assert {name for name in everything & LIBRARIES if path.stem.split("_")[0] not in name} == set()


def test_the_import_check_can_fail() -> None:
    tree = ast.parse("def f():\n    import torch\nimport edgekd.core\n")
    assert set(_imports(tree, deep=False)) == {"edgekd"}
    assert set(_imports(tree, deep=True)) == {"edgekd", "torch"}


@pytest.mark.parametrize("path", _modules(), ids=lambda path: path.stem)
def test_a_module_is_python_of_3_10_and_says_why_it_exists(path: Path) -> None:
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text, feature_version=(3, 10)))
    assert len(text.splitlines()) <= MAX_LINES


def test_the_syntax_check_can_fail() -> None:
    with pytest.raises(SyntaxError):
        ast.parse("try:\n    pass\nexcept* ValueError:\n    pass\n", feature_version=(3, 10))


def test_nothing_prints_or_evaluates() -> None:
    calls = {
        ast.unparse(node.func)
        for path in _modules()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
    }
    assert not calls & {"print", "eval", "exec", "pickle.loads", "pickle.load"}


def test_importing_it_and_running_a_bundle_loads_nothing_heavy(tmp_path: Path) -> None:
    bundle = zipped(write_bundle(tmp_path / "b"), tmp_path / "model.edgekd")
    code = (
        "import sys, json, edgekd_runtime as r\n"
        "first = sorted(sys.modules)\n"
        f"engine = r.Engine.load({str(bundle)!r})\n"
        "import numpy\n"
        "engine(numpy.zeros((9, 9, 3), numpy.uint8))\n"
        "print(json.dumps([first, sorted(sys.modules)]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(DISTRIBUTION)},
        cwd=tmp_path,
    )
    first, last = json.loads(done.stdout)
    assert set(first) & set(HEAVY) == set()
    assert set(last) & set(HEAVY) == {"onnxruntime"}


def test_it_installs_and_runs_where_pytorch_is_not_there(tmp_path: Path) -> None:
    """As `pip install ./runtime` does it, into a folder beside numpy, ONNX Runtime and Pillow and nothing else."""
    source, site = tmp_path / "source", tmp_path / "site"
    shutil.copytree(DISTRIBUTION, source, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    arguments = ["--no-deps", "--no-build-isolation", "--no-index", "--target", str(site), str(source)]
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", *arguments], check=True, timeout=120)
    for name in ("numpy", "onnxruntime", "PIL"):
        package = Path(__import__(name).__file__ or "").parent
        for entry in package.parent.glob(f"{package.name}*"):
            (site / entry.name).symlink_to(entry)
    for libraries in Path(__import__("numpy").__file__ or "").parent.parent.glob("*.libs"):
        if not (site / libraries.name).exists():
            (site / libraries.name).symlink_to(libraries)
    bundle = zipped(write_bundle(tmp_path / "b"), tmp_path / "model.edgekd")
    from PIL import Image

    Image.new("RGB", (20, 20), (200, 10, 10)).save(tmp_path / "image.png")
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        "from edgekd_runtime.__main__ import main\n"
        f"code = main([{str(bundle)!r}, {str(tmp_path / 'image.png')!r}])\n"
        "import importlib.util, importlib.metadata as m\n"
        "assert 'torch' not in sys.modules and importlib.util.find_spec('torch') is None\n"
        "assert importlib.util.find_spec('edgekd') is None\n"
        f"assert {str(site)!r} in sys.modules['edgekd_runtime'].__file__\n"
        "print(m.version('edgekd-runtime'), m.requires('edgekd-runtime')[0]); sys.exit(code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, timeout=120, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    *classes, version = done.stdout.splitlines()
    assert len(classes) == 4
    assert version == f"{edgekd_runtime.__version__} numpy>=1.23"
    assert (site / "edgekd_runtime" / "py.typed").is_file()
