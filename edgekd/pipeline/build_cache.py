"""Timings of earlier TensorRT builds: where they are found, which device they are of, and how they are written back."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from edgekd.core.blobs import disk_errors
from edgekd.export.package import Package
from edgekd.export.tensorrt_build import MadeEngine, TimingCache
from edgekd.runtimes.fingerprint import Device, Fingerprint, FingerprintError, read_fingerprint

_ORIGIN = ("gpu", "compute_capability", "tensorrt")


def cache_for(package: Package, graph: str, own: Path | None) -> TimingCache | None:
    """The user's file, or else the timings beside an engine that was built of a graph before; None without either.

    Args:
        package: Verified.
        graph: Name of the graph.
        own: File of the user; a missing one is no mistake, it will be written.
    """
    if own is not None:
        return TimingCache(path=own, origin=_origin_beside(own)) if own.is_file() else None
    for entry in package.deployment.engines if package.deployment is not None else ():
        if entry.source == graph and entry.timing_cache is not None and entry.fingerprint is not None:
            try:
                found = read_fingerprint(package.folder / entry.fingerprint)
            except FingerprintError:
                continue  # an engine that nobody may load; its timings are as doubtful
            return TimingCache(path=package.folder / entry.timing_cache, origin=_origin(found))
    return None


def cache_after(made: MadeEngine, before: TimingCache | None) -> TimingCache | None:
    """The timings for the next build: those of this one, which hold what it was told."""
    if "timing_cache" not in made.files:
        return before
    return TimingCache(path=made.files["timing_cache"], origin=_origin(made.device))


def write_cache(path: Path, cache: TimingCache) -> None:
    """Writes timings to a user's file, and beside it, as `NAME.json`, which device they are of."""
    with _replacing(path) as new:
        shutil.copyfile(cache.path, new)
    with _replacing(_beside(path)) as new:
        new.write_text(json.dumps(cache.origin, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _origin(found: Device | Fingerprint) -> Mapping[str, str]:
    return {key: str(getattr(found, key)) for key in _ORIGIN}


def _origin_beside(path: Path) -> Mapping[str, str] | None:
    """Which device a user's timing cache is of, as edgekd noted it beside the file; None where it did not."""
    try:
        found = json.loads(_beside(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    fits = isinstance(found, dict) and all(isinstance(found.get(key), str) for key in _ORIGIN)
    return {key: found[key] for key in _ORIGIN} if fits else None


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary place whose file takes the place of `path` at the end of the block."""
    made = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with disk_errors(path):
            yield made
            os.replace(made, path)
    finally:
        made.unlink(missing_ok=True)
