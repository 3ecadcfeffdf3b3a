"""Builds a TensorRT engine on the device, from the graph and the timing cache of a bundle, and keeps it.

A build is a process of its own: it may crash, hang or take all memory without taking the program along. It uses
TensorRT's Python API where the binding has a builder, and `trtexec` where it has not. What was built lies in the cache
under everything it depends on, with a fingerprint as edgekd writes it. Not run on hardware yet.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekd_runtime.bundle import Bundle
from edgekd_runtime.deploy import EngineEntry
from edgekd_runtime.errors import Unusable
from edgekd_runtime.fingerprint import FINGERPRINT_FILE, SCHEMA_VERSION, Device, parse_fingerprint
from edgekd_runtime.session import model_file

TIMEOUT_S = 3600
ENGINE_FILE, TIMING_CACHE_FILE, GRAPH_FILE = "model.engine", "timing.cache", "model.onnx"
TRTEXEC_PLACES = ("/usr/src/tensorrt/bin/trtexec", "/usr/local/tensorrt/bin/trtexec")
DEFAULTS: dict[str, Any] = {
    "precision": "fp32",
    "workspace_mib": None,
    "optimization_level": None,
    "allow_fp16": False,
    "tf32": True,
    "sparsity": False,
    "dla_core": None,
    "version_compatible": False,
    "hardware_compatible": False,
}
"""What the builder is asked for; a fingerprint's settings come first."""


@dataclass(frozen=True)
class Job:
    """One engine to build.

    Attributes:
        graph: Path of the ONNX file in the bundle.
        graph_sha256: Its digest.
        timing_cache: Path in the bundle, or None.
        device: On which.
        settings: `DEFAULTS`, and `inputs`: name, min, opt and max shape of each.
    """

    graph: str
    graph_sha256: str
    timing_cache: str | None
    device: Device
    settings: Mapping[str, Any]

    @property
    def key(self) -> str:
        """Name in the cache: equal for equal engines."""
        parts = [self.graph_sha256, dataclasses.asdict(self.device), dict(self.settings)]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Built:
    """An engine that was built here: its bytes, and whether it holds host code of its own."""

    engine: bytes
    version_compatible: bool


def job_of(bundle: Bundle, entry: EngineEntry, source: EngineEntry, device: Device, settings: Mapping[str, Any]) -> Job:
    """What has to be built for an engine of a bundle on a device.

    Args:
        bundle: Holds the graph.
        entry: The engine.
        source: The entry of its graph; may be `entry` itself.
        device: This one.
        settings: Of the engine's fingerprint; empty when there is none.
    """
    graph = model_file(source, GRAPH_FILE)
    spec = bundle.deploy.input
    image = [1 if isinstance(size, str) else size for size in spec.shape]
    free = any(isinstance(size, str) for size in spec.shape)
    # A graph whose shapes are fixed takes no profile, and trtexec refuses to be told one.
    default = [{"name": spec.name, "min": image, "opt": image, "max": image}] if free else []
    wanted = {**DEFAULTS, "precision": source.precision, "inputs": default}
    return Job(
        graph=graph,
        graph_sha256=bundle.files[graph],
        timing_cache=entry.timing_cache or source.timing_cache,
        device=device,
        settings={key: settings.get(key, value) for key, value in wanted.items()},
    )


def built_before(job: Job, cache: Path) -> Built | None:
    """The engine of a job in the cache; None when there is none, or when it is not what its fingerprint says.

    Raises:
        Unusable: The cache can be written by others: an engine is native code.
    """
    folder = cache / job.key
    if not folder.is_dir():
        return None
    _require_private(cache)
    _require_private(folder)
    try:
        fingerprint = parse_fingerprint(json.loads((folder / FINGERPRINT_FILE).read_text("utf-8")), str(folder))
        content = (folder / ENGINE_FILE).read_bytes()
    except (OSError, ValueError, Unusable):
        return None
    whole = hashlib.sha256(content).hexdigest() == fingerprint.engine_sha256 and not fingerprint.misfits(job.device)
    return Built(content, fingerprint.version_compatible) if whole else None


def build(job: Job, bundle: Bundle, cache: Path, timeout_s: float = TIMEOUT_S) -> Built:
    """Builds an engine and puts it into the cache, whole or not at all.

    Args:
        job: What to build.
        bundle: Holds the graph and the timing cache.
        cache: Where it is kept; made when it is not there.
        timeout_s: The build is ended after this.

    Raises:
        Unusable: There is no builder, or it failed or took too long; the reason holds its last words.
    """
    try:
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        _require_private(cache)
        work = Path(tempfile.mkdtemp(prefix=".build-", dir=cache))
    except OSError as err:
        raise Unusable(f"the cache {cache} cannot be written: {err.strerror or err}") from err
    try:
        (work / GRAPH_FILE).write_bytes(bundle.read(job.graph))
        if job.timing_cache is not None:
            (work / TIMING_CACHE_FILE).write_bytes(bundle.read(job.timing_cache))
        (work / "job.json").write_text(json.dumps(dict(job.settings)), encoding="utf-8")
        builder = _run_builder(job, work, timeout_s)
        content = (work / ENGINE_FILE).read_bytes()
        for name in (GRAPH_FILE, "job.json"):
            (work / name).unlink()
        (work / FINGERPRINT_FILE).write_text(_fingerprint_text(job, builder, content, work), encoding="utf-8")
        shutil.rmtree(cache / job.key, ignore_errors=True)
        os.replace(work, cache / job.key)
    except OSError as err:
        raise Unusable(f"the engine could not be built in {cache}: {err.strerror or err}") from err
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return Built(content, bool(job.settings["version_compatible"]))


def trtexec_arguments(settings: Mapping[str, Any], version: tuple[int, ...], work: Path) -> list[str]:
    """The options of `trtexec` for a job, in the words of the given TensorRT."""
    words = [f"--onnx={work / GRAPH_FILE}", f"--saveEngine={work / ENGINE_FILE}"]
    for which in ("min", "opt", "max") if settings["inputs"] else ():
        shapes = ",".join(f"{one['name']}:{'x'.join(str(size) for size in one[which])}" for one in settings["inputs"])
        words.append(f"--{which}Shapes={shapes}")
    words += [f"--{name.lower()}" for name in permissions(settings, version)]
    if version[0] == 10 and not settings["allow_fp16"]:
        words.append("--stronglyTyped")
    if not settings["tf32"]:
        words.append("--noTF32")
    if settings["workspace_mib"] is not None:
        words.append(f"--memPoolSize=workspace:{settings['workspace_mib']}")
    if settings["optimization_level"] is not None:
        words.append(f"--builderOptimizationLevel={settings['optimization_level']}")
    if settings["sparsity"]:
        words.append("--sparsity=enable")
    if settings["dla_core"] is not None:
        words += [f"--useDLACore={settings['dla_core']}", "--allowGPUFallback"]
    if settings["version_compatible"]:
        words.append("--versionCompatible")
    if settings["hardware_compatible"]:
        words.append("--hardwareCompatibilityLevel=ampere+")
    words.append(f"--timingCacheFile={work / TIMING_CACHE_FILE}")
    return [*words, "--skipInference" if version >= (8, 6) else "--buildOnly"]


def permissions(settings: Mapping[str, Any], version: tuple[int, ...]) -> tuple[str, ...]:
    """Precisions that the builder must be allowed to use: none from TensorRT 10 on, where the graph's types bind it."""
    if version[0] >= 11 or (version[0] >= 10 and not settings["allow_fp16"]):
        return ()
    allowed = {"fp32": (), "fp16": ("FP16",), "int8": ("INT8", "FP16")}.get(str(settings["precision"]), ())
    return allowed if not settings["allow_fp16"] or "FP16" in allowed else (*allowed, "FP16")


def _run_builder(job: Job, work: Path, timeout_s: float) -> str:
    """`python` or `trtexec`, whichever built the engine."""
    version = tuple(int(part) for part in job.device.tensorrt.split(".")[:3] if part.isdigit())
    if _binding_builds():
        builder, command = "python", [sys.executable, "-m", "edgekd_runtime.tensorrt_worker", str(work)]
    else:
        places = [shutil.which("trtexec"), *TRTEXEC_PLACES]
        program = next((place for place in places if place is not None and Path(place).is_file()), None)
        if program is None:
            raise Unusable(
                "TensorRT here has no builder, and there is no trtexec",
                "JetPack: apt install tensorrt; or pip install tensorrt",
            )
        builder, command = "trtexec", [program, *trtexec_arguments(job.settings, version, work)]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
            env=_environment(),
        )
    except subprocess.TimeoutExpired as err:
        raise Unusable(f"building the engine took longer than {timeout_s:.0f} s and was ended") from err
    if done.returncode != 0 or not (work / ENGINE_FILE).is_file():
        said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        errors = [line for line in said if "error" in line.lower() or "[E]" in line]
        last = (errors or said or ["it said nothing"])[-1].strip()[:300]
        raise Unusable(f"TensorRT {job.device.tensorrt} could not build the engine (code {done.returncode}): {last}")
    return builder


def _binding_builds() -> bool:
    """Whether the installed binding has the builder and the parser; lean and dispatch runtimes have not."""
    import tensorrt

    return hasattr(tensorrt, "Builder") and hasattr(tensorrt, "OnnxParser")


def _environment() -> dict[str, str]:
    """This process's, with its module path: the worker must find what this process found."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def _fingerprint_text(job: Job, builder: str, engine: bytes, work: Path) -> str:
    cache = work / TIMING_CACHE_FILE
    return json.dumps(
        {
            "schema_version": SCHEMA_VERSION,
            **dataclasses.asdict(job.device),
            "driver": None,
            "cuda": None,
            "jetpack": None,
            "flags": [],
            "builder": builder,
            "settings": dict(job.settings),
            "onnx_sha256": job.graph_sha256,
            "engine_sha256": hashlib.sha256(engine).hexdigest(),
            "timing_cache_sha256": hashlib.sha256(cache.read_bytes()).hexdigest() if cache.is_file() else None,
            "version_compatible": bool(job.settings["version_compatible"]),
            "hardware_compatible": bool(job.settings["hardware_compatible"]),
        },
        indent=2,
        sort_keys=True,
    )


def _require_private(folder: Path) -> None:
    """Refuses a folder that other users may write to, where the system tells."""
    if not hasattr(os, "getuid"):
        return
    found = folder.stat()
    if found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise Unusable(
            f"the cache {folder} belongs to another user or can be written by others, and engines are native code",
            f"chmod go-w {folder}, or choose another cache",
        )
