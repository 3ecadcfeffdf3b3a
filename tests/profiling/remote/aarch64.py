"""An aarch64 userland on this machine: Debian's arm64 packages and wheels in a folder, run by qemu's user emulation.

`make_sysroot` needs Debian's and Python's package registries and some minutes; the host's own packages are left alone
(apt works on a state of its own, nothing is installed). Emulation is for correctness: its times mean nothing.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

SYSROOT_VARIABLE = "EDGEKD_AARCH64_SYSROOT"
PACKAGES = ("python3.11", "libstdc++6")
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")
_CPUINFO = """processor\t: 0
BogoMIPS\t: 100.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x1
CPU part\t: 0xd0b
CPU revision\t: 0

"""
"""Of a Cortex-A76. qemu 7 would show the file of the host, and ONNX Runtime crashes on reading one of another kind."""


def make_sysroot(folder: Path, onnxruntime_version: str) -> None:
    """Fills an empty folder with a Python 3.11, ONNX Runtime and NumPy for aarch64, and with the emulator."""
    root, site = folder / "root", folder / "root" / "site"
    for path in (
        folder / "state/lists/partial",
        folder / "cache/archives/partial",
        folder / "host",
        site,
        root / "proc",
    ):
        path.mkdir(parents=True, exist_ok=True)
    (folder / "status").touch()
    options = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "Dir::State": folder / "state",
        "Dir::State::status": folder / "status",
        "Dir::Cache": folder / "cache",
        "Debug::NoLocking": "1",
    }
    apt = ["apt-get", "-q", *(word for key, value in options.items() for word in ("-o", f"{key}={value}"))]
    _run(*apt, "update")
    _run(*apt, "-y", "--no-install-recommends", "--download-only", "install", *PACKAGES)
    for package in (folder / "cache" / "archives").glob("*.deb"):
        _run("dpkg", "-x", str(package), str(root))
    _run("apt-get", "-q", "download", "qemu-user-static", cwd=folder / "host")
    for package in (folder / "host").glob("qemu-user-static_*.deb"):
        _run("dpkg", "-x", str(package), str(folder / "host"))
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    _run(
        sys.executable, "-m", "pip", "download", "-q", "--only-binary=:all:", "--python-version", "3.11",
        "--implementation", "cp", *platforms, "-d", str(folder / "wheels"), f"onnxruntime=={onnxruntime_version}",
    )  # fmt: skip
    for wheel in (folder / "wheels").glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
    (root / "proc" / "cpuinfo").write_text(_CPUINFO)


def missing_in(folder: Path) -> str:
    """What `make_sysroot` would still have to bring; empty when the folder is complete."""
    wanted = (
        "host/usr/bin/qemu-aarch64-static",
        "root/usr/bin/python3.11",
        "root/site/onnxruntime",
        "root/proc/cpuinfo",
    )
    return next((name for name in wanted if not (folder / name).exists()), "")


def emulated_python(folder: Path, program: Path) -> str:
    """The shell line of a `python3` that runs the emulated one.

    Args:
        folder: The sysroot.
        program: Where the line will stand; the emulated Python takes it for its own path, so that the processes it
            starts are emulated too.
    """
    emulator, root = folder / "host/usr/bin/qemu-aarch64-static", folder / "root"
    return (
        f"export PYTHONHOME=/usr PYTHONPATH=/site; "
        f'exec {emulator} -L {root} -0 {program} {root}/usr/bin/python3.11 "$@"'
    )


def emulator_version(folder: Path) -> str:
    """As the emulator names itself."""
    done = subprocess.run(
        [folder / "host/usr/bin/qemu-aarch64-static", "--version"],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    return done.stdout.splitlines()[0]


def _run(*command: str, cwd: Path | None = None) -> None:
    subprocess.run(command, check=True, cwd=cwd, stdout=subprocess.DEVNULL, env={**os.environ, "LC_ALL": "C"})
