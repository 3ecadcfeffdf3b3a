"""What a TensorRT engine was built on, `model.engine.json`, and whether it fits this device.

An engine is native code for one GPU and one TensorRT. Handing another file to TensorRT means running whatever is in it,
so only an engine whose digest stands in a fingerprint is loaded, and only where the fingerprint fits. The rules are
edgekd's own; a test holds the two to the same answers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgekd_runtime.errors import Unusable

FINGERPRINT_FILE = "model.engine.json"
SCHEMA_VERSION = 1
AMPERE = (8, 0)
"""Compute capability from which hardware-compatible engines run."""


@dataclass(frozen=True)
class Device:
    """A machine with a GPU.

    Attributes:
        gpu: What the driver calls it.
        compute_capability: `8.7`.
        tensorrt: Version of the library.
        os: `linux`.
        arch: `aarch64`.
        multiprocessors: Of the GPU; tells modules apart that share a name. None where it is not told.
    """

    gpu: str
    compute_capability: str
    tensorrt: str
    os: str
    arch: str
    multiprocessors: int | None = None


@dataclass(frozen=True)
class Fingerprint:
    """One engine's origin.

    Attributes:
        device: That it was built on.
        engine_sha256: Of the engine's bytes.
        settings: What the builder was asked for.
        version_compatible: It also runs in later releases of the same major version.
        hardware_compatible: It also runs on other GPUs from Ampere on.
    """

    device: Device
    engine_sha256: str
    settings: Mapping[str, Any]
    version_compatible: bool
    hardware_compatible: bool

    def misfits(self, here: Device) -> list[str]:
        """Why the engine would not run on a device, clauses; empty when it fits."""
        there, reasons = self.device, []
        if (there.os, there.arch) != (here.os, here.arch):
            reasons.append(f"it was built on {there.os} {there.arch}, this is {here.os} {here.arch}")
        if not _version_fits(there.tensorrt, here.tensorrt, later=self.version_compatible):
            also = " or a later release of that major version" if self.version_compatible else ""
            reasons.append(f"it needs TensorRT {there.tensorrt}{also}, here is {here.tensorrt}")
        return reasons + self._gpu_misfits(here)

    def _gpu_misfits(self, here: Device) -> list[str]:
        there = self.device
        built = f"{there.gpu} (compute capability {there.compute_capability})"
        found = f"{here.gpu} (compute capability {here.compute_capability})"
        if self.hardware_compatible:
            if min(_numbers(there.compute_capability), _numbers(here.compute_capability)) >= AMPERE:
                return []
            return [f"it was built on {built} for GPUs from Ampere on, this is {found}"]
        if (there.gpu, there.compute_capability) != (here.gpu, here.compute_capability):
            return [f"it was built for {built}, this is {found}"]
        counts = there.multiprocessors, here.multiprocessors
        if None not in counts and counts[0] != counts[1]:
            return [f"it was built for a {there.gpu} with {counts[0]} multiprocessors, this one has {counts[1]}"]
        return []


def parse_fingerprint(data: Any, where: str) -> Fingerprint:
    """The content of `model.engine.json`.

    Raises:
        Unusable: Another schema, or fields that are missing.
    """
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        raise Unusable(f"{where} has the schema {version!r}, this version reads {SCHEMA_VERSION}")
    count = data.get("multiprocessors")
    try:
        device = Device(
            gpu=str(data["gpu"]),
            compute_capability=str(data["compute_capability"]),
            tensorrt=str(data["tensorrt"]),
            os=str(data["os"]),
            arch=str(data["arch"]),
            multiprocessors=None if count is None else int(count),
        )
        return Fingerprint(
            device=device,
            engine_sha256=str(data["engine_sha256"]),
            settings=dict(data.get("settings") or {}),
            version_compatible=bool(data.get("version_compatible", False)),
            hardware_compatible=bool(data.get("hardware_compatible", False)),
        )
    except (KeyError, TypeError, ValueError) as err:
        raise Unusable(f"{where} is incomplete: {type(err).__name__}: {err}") from err


def _version_fits(built: str, here: str, *, later: bool) -> bool:
    """Whether two versions are the same as far as both say, or `here` is a later one of the same major version."""
    first, second = _numbers(built), _numbers(here)
    shared = min(len(first), len(second))
    if shared < 3:
        return False
    if later:
        return first[0] == second[0] and second[:shared] >= first[:shared]
    return first[:shared] == second[:shared]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))
