"""Builds a TensorRT engine from an explicit-precision ONNX graph.

The precision is in the graph (float16 values, Q/DQ nodes), never in calibrators or layer settings, which TensorRT 11
removed. Uses names that every TensorRT from 8.6 to 11 has and asks before using any other. Written against the
published Python bindings and not run on hardware yet.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgekd.core.blobs import disk_errors
from edgekd.core.bundle import TensorSpec
from edgekd.errors import BuildFailed

BYTES_PER_MIB = 1 << 20


def engine_from_onnx(
    source: Path,
    target: Path,
    *,
    images: TensorSpec,
    precision: str,
    max_batch: int,
    workspace_mib: int | None,
) -> None:
    """Writes an engine for the current GPU, optimised for batch 1.

    Args:
        source: The ONNX file.
        target: The engine file to write.
        images: The graph's input; its first axis is the batch.
        precision: `fp32`, `fp16` or `int8`; allows what the graph asks for on versions that need permission.
        max_batch: Largest batch of the optimisation profile.
        workspace_mib: Limit of scratch memory; None leaves TensorRT's own.

    Raises:
        BuildFailed: TensorRT cannot parse the graph or build it; the message holds its first error.
    """
    import tensorrt as trt

    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(source.read_bytes()):
        reason = parser.get_error(0) if parser.num_errors else "no reason given"
        raise BuildFailed(f"TensorRT {trt.__version__} cannot parse the graph: {reason}")
    config = builder.create_builder_config()
    if workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_mib * BYTES_PER_MIB)
    _permit_(config, trt, precision)
    profile = builder.create_optimization_profile()
    one, most = (1, *images.shape[1:]), (max_batch, *images.shape[1:])
    profile.set_shape(images.name, one, one, most)
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise BuildFailed(
            f"TensorRT {trt.__version__} could not build the engine; its log on stderr names the layer.",
            hint="the trtexec command in the package's README.txt, run with --verbose, shows the cause",
        )
    with disk_errors(target):
        target.write_bytes(engine)


def _network_flags(trt: Any) -> int:
    """Explicit batch, where it still has to be asked for."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH", None)
    return 0 if flag is None else 1 << int(flag)


def _permit_(config: Any, trt: Any, precision: str) -> None:
    """Allows lower precisions up to TensorRT 10; from 11 on the graph alone decides and the flags are gone."""
    allowed = {"fp32": (), "fp16": ("FP16",), "int8": ("INT8", "FP16")}[precision]
    for name in allowed:
        if hasattr(trt.BuilderFlag, name):
            config.set_flag(getattr(trt.BuilderFlag, name))
