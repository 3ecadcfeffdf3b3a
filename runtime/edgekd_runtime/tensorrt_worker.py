"""The process that builds one engine with TensorRT's Python API; started by `tensorrt_build.py`.

    python -m edgekd_runtime.tensorrt_worker FOLDER

The folder holds `model.onnx`, `job.json` and perhaps `timing.cache`; `model.engine` and `timing.cache` are written to
it. It names what every TensorRT from 8.6 to 11 has, and asks before it uses anything else.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from edgekd_runtime.tensorrt_build import ENGINE_FILE, GRAPH_FILE, TIMING_CACHE_FILE, permissions

BYTES_PER_MIB = 1 << 20


def main(arguments: list[str]) -> int:
    """0 when the engine was written; 1 after a line on stderr that says why not."""
    import tensorrt as trt

    work = Path(arguments[0])
    settings = json.loads((work / "job.json").read_text(encoding="utf-8"))
    version = tuple(int(part) for part in str(trt.__version__).split(".")[:3] if part.isdigit())
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    network = builder.create_network(_network_flags(trt, settings, version))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse((work / GRAPH_FILE).read_bytes()):
        return _failed(f"cannot parse the graph: {parser.get_error(0) if parser.num_errors else 'no reason given'}")
    config = builder.create_builder_config()
    _configure_(config, trt, settings, version)
    if settings["inputs"]:
        profile = builder.create_optimization_profile()
        for one in settings["inputs"]:
            profile.set_shape(one["name"], *(tuple(one[which]) for which in ("min", "opt", "max")))
        if config.add_optimization_profile(profile) < 0:
            return _failed(f"the graph does not take the shapes of the profile: {settings['inputs']}")
    before = work / TIMING_CACHE_FILE
    cache = config.create_timing_cache(before.read_bytes() if before.is_file() else b"")
    if cache is None or not config.set_timing_cache(cache, False):
        # Of another GPU or another TensorRT: it begins with an empty one.
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        return _failed("the build failed; the lines above say where")
    (work / ENGINE_FILE).write_bytes(bytes(engine))
    (work / TIMING_CACHE_FILE).write_bytes(bytes(config.get_timing_cache().serialize()))
    return 0


def _network_flags(trt: Any, settings: dict[str, Any], version: tuple[int, ...]) -> int:
    """Explicit batch where it has to be asked for, strong typing where it can be."""
    flags, known = 0, trt.NetworkDefinitionCreationFlag
    if version[0] < 10 and hasattr(known, "EXPLICIT_BATCH"):
        flags |= 1 << int(known.EXPLICIT_BATCH)
    if version[0] >= 10 and not settings["allow_fp16"] and hasattr(known, "STRONGLY_TYPED"):
        flags |= 1 << int(known.STRONGLY_TYPED)
    return flags


def _configure_(config: Any, trt: Any, settings: dict[str, Any], version: tuple[int, ...]) -> None:
    for name in permissions(settings, version):
        config.set_flag(getattr(trt.BuilderFlag, name))
    if not settings["tf32"]:
        config.clear_flag(trt.BuilderFlag.TF32)
    if settings["sparsity"]:
        config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    if settings["version_compatible"]:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if settings["hardware_compatible"]:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if settings["dla_core"] is not None:
        config.default_device_type = trt.DeviceType.DLA
        config.DLA_core = int(settings["dla_core"])
        config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
    if settings["workspace_mib"] is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(settings["workspace_mib"]) * BYTES_PER_MIB)
    if settings["optimization_level"] is not None:
        config.builder_optimization_level = int(settings["optimization_level"])


def _failed(reason: str) -> int:
    sys.stderr.write(f"error: {reason}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
