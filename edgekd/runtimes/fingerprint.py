"""What a TensorRT engine was built on and with, kept beside it as `model.engine.json`, and whether it fits a device.

An engine is native code for one GPU and one TensorRT. Handing another file to TensorRT means running whatever is in
it, so only an engine whose digest stands in a fingerprint of our own is ever loaded. Standard library of Python 3.10
only: boards check it with the same lines.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FINGERPRINT_FILE = "model.engine.json"
SCHEMA_VERSION = 1
AMPERE = (8, 0)
"""Compute capability from which engines of the level `ampere+` run."""


class FingerprintError(ValueError):
    """A fingerprint that cannot be read, or an engine that it does not belong to; the message says which."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """A machine on which engines are built and run.

    Attributes:
        gpu: What the driver calls it.
        compute_capability: `8.7`.
        tensorrt: Version of the library, `10.3.0` or `10.3.0.26`.
        os: `linux`, as `platform.system()` in lower case.
        arch: `aarch64`, as `platform.machine()`.
        multiprocessors: Of the GPU; tells modules apart that share a name. None where it was not told.
        driver: Version of the kernel driver; None where it was not told.
        cuda: Version of the CUDA runtime; None where it was not told.
        jetpack: Release of a Jetson's system; None elsewhere.
    """

    gpu: str
    compute_capability: str
    tensorrt: str
    os: str
    arch: str
    multiprocessors: int | None = None
    driver: str | None = None
    cuda: str | None = None
    jetpack: str | None = None


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """One engine's origin; the fields of `model.engine.json`.

    Attributes:
        gpu, compute_capability, tensorrt, driver, cuda, jetpack, os, arch, multiprocessors: See `Device`.
        flags: Builder flags or the options of `trtexec` that decided what was built.
        builder: `python` or `trtexec`.
        settings: Shapes, precision, limits: what the builder was asked for.
        onnx_sha256: Of the graph.
        engine_sha256: Of the engine.
        timing_cache_sha256: Of the timing cache that was written beside it; None without one.
        version_compatible: It also runs in later releases of the same major version.
        hardware_compatible: It also runs on other GPUs from Ampere on.
    """

    gpu: str
    compute_capability: str
    tensorrt: str
    os: str
    arch: str
    onnx_sha256: str
    engine_sha256: str
    builder: str
    multiprocessors: int | None = None
    driver: str | None = None
    cuda: str | None = None
    jetpack: str | None = None
    flags: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    timing_cache_sha256: str | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False

    def plain(self) -> dict[str, Any]:
        """JSON-ready data, read back by `fingerprint_from_plain`."""
        made = dataclasses.asdict(self)
        return {"schema_version": SCHEMA_VERSION, **made, "flags": list(self.flags), "settings": dict(self.settings)}

    @property
    def summary(self) -> str:
        """What the engine is bound to in one word: `tensorrt-10.3.0/sm_87/Orin`."""
        return f"tensorrt-{self.tensorrt}/sm_{self.compute_capability.replace('.', '')}/{self.gpu}"

    def fits(self, here: Device) -> list[str]:
        """Why the engine would not run on a device, or would run badly; empty when it fits.

        Args:
            here: The device.
        """
        reasons = []
        if (self.os, self.arch) != (here.os, here.arch):
            reasons.append(f"it was built on {self.os} {self.arch}, this is {here.os} {here.arch}")
        if not _version_fits(self.tensorrt, here.tensorrt, later=self.version_compatible):
            also = " or a later release of that major version" if self.version_compatible else ""
            reasons.append(f"it needs TensorRT {self.tensorrt}{also}, here is {here.tensorrt}")
        return reasons + self._gpu_reasons(here)

    def _gpu_reasons(self, here: Device) -> list[str]:
        there = f"{here.gpu} (compute capability {here.compute_capability})"
        built = f"{self.gpu} (compute capability {self.compute_capability})"
        if self.hardware_compatible:
            if min(_numbers(self.compute_capability), _numbers(here.compute_capability)) >= AMPERE:
                return []
            return [f"it was built on {built} for GPUs from Ampere on, this is {there}"]
        if (self.gpu, self.compute_capability) != (here.gpu, here.compute_capability):
            return [f"it was built for {built}, this is {there}"]
        if None not in (self.multiprocessors, here.multiprocessors) and self.multiprocessors != here.multiprocessors:
            return [
                f"it was built for a {self.gpu} with {self.multiprocessors} multiprocessors, "
                f"this one has {here.multiprocessors}"
            ]
        return []


def fingerprint_from_plain(data: object, where: str) -> Fingerprint:
    """The fingerprint in what `plain` gave.

    Raises:
        FingerprintError: Another schema, a missing or unknown key, or a value of another type.
    """
    if not isinstance(data, Mapping):
        raise FingerprintError(f"{where} holds no object")
    given = dict(data)
    version = given.pop("schema_version", None)
    if version != SCHEMA_VERSION:
        raise FingerprintError(f"{where} has the schema {version!r}, this edgekd reads {SCHEMA_VERSION}")
    known = {entry.name: entry for entry in dataclasses.fields(Fingerprint)}
    unknown = sorted(set(given) - set(known))
    needed = [name for name, entry in known.items() if _is_required(entry) and name not in given]
    if unknown or needed:
        what = f"unknown keys {', '.join(unknown)}" if unknown else f"no {', '.join(needed)}"
        raise FingerprintError(f"{where} has {what}")
    for name, value in given.items():
        if not _has_type(name, value):
            raise FingerprintError(f"{where}: {name!r} is {value!r}, which is of another type than expected")
    given["flags"] = tuple(given.get("flags", ()))
    return Fingerprint(**given)


def read_fingerprint(path: Path) -> Fingerprint:
    """The fingerprint in a file.

    Raises:
        FingerprintError: No such file, or not one of ours.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as err:
        raise FingerprintError(f"there is no fingerprint {path.name} beside the engine ({err.strerror})") from err
    except ValueError as err:
        raise FingerprintError(f"{path} is no JSON: {err}") from err
    return fingerprint_from_plain(data, path.name)


def fingerprint_text(fingerprint: Fingerprint) -> str:
    """The text of `model.engine.json`: the same for equal fingerprints."""
    return json.dumps(fingerprint.plain(), indent=2, sort_keys=True) + "\n"


def require_own_engine(fingerprint: Fingerprint, engine: Path) -> None:
    """Refuses an engine file whose bytes are not those that the fingerprint was written for.

    Raises:
        FingerprintError: It was altered, cut off or exchanged.
    """
    found = sha256_of(engine)
    if found != fingerprint.engine_sha256:
        raise FingerprintError(
            f"the engine was altered after it was built: its SHA-256 is {found[:12]}..., the fingerprint has "
            f"{fingerprint.engine_sha256[:12]}..."
        )


def sha256_of(path: Path) -> str:
    """SHA-256 of a file in hexadecimal."""
    hasher = hashlib.sha256()
    with path.open("rb") as source:
        while chunk := source.read(1 << 20):
            hasher.update(chunk)
    return hasher.hexdigest()


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


_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "flags": (list, tuple),
    "settings": dict,
    "multiprocessors": int,
    "version_compatible": bool,
    "hardware_compatible": bool,
}
_OPTIONAL = ("multiprocessors", "driver", "cuda", "jetpack", "timing_cache_sha256")


def _is_required(entry: dataclasses.Field[Any]) -> bool:
    return entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING


def _has_type(name: str, value: object) -> bool:
    if value is None:
        return name in _OPTIONAL
    return isinstance(value, _TYPES.get(name, str))
