from __future__ import annotations

from pathlib import Path

import pytest

from edgekd.runtimes.engines.device import driver_version, jetpack


def place(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# R36 (release), REVISION: 4.0, GCID: 37537400, BOARD: generic\n", "JetPack 6 (L4T 36.4.0)"),
        ("# R35 (release), REVISION: 4.1, GCID: 33958178\n", "JetPack 5 (L4T 35.4.1)"),
        ("# R99 (release), REVISION: 1.0\n", "L4T 99.1.0"),
        ("something else\n", None),
    ],
)
def test_a_jetson_names_its_release(tmp_path: Path, text: str, expected: str | None) -> None:
    place(tmp_path, "etc/nv_tegra_release", text)
    assert jetpack(tmp_path) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\n", "550.54.15"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.4.0  Release Build\n", "540.4.0"),
    ],
)
def test_the_driver_names_its_version(tmp_path: Path, text: str, expected: str) -> None:
    place(tmp_path, "proc/driver/nvidia/version", text)
    assert driver_version(tmp_path) == expected


def test_a_machine_without_either_tells_nothing(tmp_path: Path) -> None:
    assert (jetpack(tmp_path), driver_version(tmp_path)) == (None, None)
