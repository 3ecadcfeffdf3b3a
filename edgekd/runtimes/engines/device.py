"""The machine that engines are built on, as far as it tells: read-only, without PyTorch.

Standard library of Python 3.10 only.
"""

from __future__ import annotations

import platform
import re
from pathlib import Path

from edgekd.runtimes.engines.cuda import Cuda
from edgekd.runtimes.fingerprint import Device

ROOT = Path("/")
_JETPACK_OF_L4T = {"32": "4", "34": "5", "35": "5", "36": "6", "38": "7"}
"""Major versions of JetPack by those of its Linux for Tegra."""


def device_here(tensorrt: str, *, cuda: Cuda | None = None, root: Path = ROOT) -> Device:
    """This machine with its current GPU.

    Args:
        tensorrt: Version of the library that is meant.
        cuda: The GPU; opened when not given.
        root: Of the file system.

    Raises:
        OSError: No CUDA runtime, or no GPU that it can use.
    """
    found = cuda or Cuda()
    major, minor, name = found.device()
    return Device(
        gpu=name,
        compute_capability=f"{major}.{minor}",
        tensorrt=tensorrt,
        os=platform.system().lower(),
        arch=platform.machine(),
        multiprocessors=found.multiprocessors(),
        driver=driver_version(root),
        cuda=found.version(),
        jetpack=jetpack(root),
    )


def driver_version(root: Path = ROOT) -> str | None:
    """Of the kernel module; None where it is not loaded."""
    found = re.search(
        r"(?:Kernel Module\D*|NVRM version:.*?)(\d+\.\d+(?:\.\d+)*)", _text(root / "proc/driver/nvidia/version")
    )
    return found[1] if found else None


def jetpack(root: Path = ROOT) -> str | None:
    """`JetPack 6 (L4T 36.4.0)`; None on a machine that is no Jetson."""
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", _text(root / "etc/nv_tegra_release"))
    if not found:
        return None
    release = f"L4T {found[1]}.{found[2]}"
    known = _JETPACK_OF_L4T.get(found[1])
    return release if known is None else f"JetPack {known} ({release})"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
