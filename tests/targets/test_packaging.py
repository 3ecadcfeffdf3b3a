"""The cards stand at the top of the repository and must be found in a wheel too."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import edgekd
from edgekd.core.shipped import shipped_folder

ROOT = Path(edgekd.__file__).parent.parent
PROBE = """
import json, sys
sys.path.insert(0, sys.argv[1])
import edgekd
from edgekd.core.shipped import shipped_folder
from edgekd.data.sources import load_dataset
from edgekd.runtimes.web.link import HERE
from edgekd.targets.load import known_targets
program = sorted(p.name for p in HERE.iterdir() if p.suffix in (".mjs", ".html"))
print(json.dumps([edgekd.__file__, [t.name for t in known_targets()], len(load_dataset("digits-tiny").train), program]))
"""


@pytest.mark.parametrize("name", ["targets", "calibration"])
def test_the_repository_is_where_its_cards_are_found(name: str) -> None:
    assert shipped_folder(name) == ROOT / name  # type: ignore[arg-type]
    assert list((ROOT / name).glob("*.yaml"))


@pytest.mark.slow
def test_a_wheel_holds_the_cards_and_finds_them(tmp_path: Path) -> None:
    if importlib.util.find_spec("setuptools") is None:
        pytest.skip("needs setuptools, to build without a network")
    source = tmp_path / "source"
    for folder in ("edgekd", "targets", "calibration"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "setup.py", "MANIFEST.in"):
        shutil.copy(ROOT / file, source)
    (source / "README.md").write_text("")
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), "."]
    subprocess.run(build, cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("edgekd-*.whl")
    site = tmp_path / "site"
    shutil.unpack_archive(wheel, site, "zip")
    done = subprocess.run([sys.executable, "-I", "-c", PROBE, str(site)], check=True, capture_output=True, text=True)
    where, targets, samples, program = json.loads(done.stdout)
    assert Path(where).is_relative_to(site)
    assert targets == sorted(path.stem for path in (ROOT / "targets").glob("*.yaml"))
    assert samples == 240
    assert program == ["engine.mjs", "node.mjs", "page.html"]
