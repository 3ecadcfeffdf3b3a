"""The build stage: an ONNX graph becomes a TensorRT engine on the device, or the command that would build it there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.stage import Context, Inputs, Port, Stage, StageConfig, StageResult, port
from edgekd.errors import DeviceUnavailable, UserError
from edgekd.export.tensorrt import engine_from_onnx
from edgekd.runtimes.onnx_file import MODEL_FILE, size_mib
from edgekd.runtimes.session import RUNTIMES
from edgekd.runtimes.tensorrt import device_fingerprint
from edgekd.targets.schema import Target

ENGINE_FILE = "model.engine"
SCHEMES = ("", "tensorrt-s8")
"""Graphs that TensorRT reads: unquantized ones, and Q/DQ with symmetric signed activations and float biases."""


class BuildConfig(StageConfig):
    """How the engine is built.

    Attributes:
        max_batch: Largest batch it will take; it is optimised for 1.
        workspace_mib: Limit of TensorRT's scratch memory; None leaves its own.
    """

    max_batch: int = Field(default=1, ge=1)
    workspace_mib: int | None = Field(default=None, ge=1)


class BuildStage(Stage[BuildConfig]):
    """ONNX to ENGINE on this machine's GPU.

    Not cacheable: an engine fits one GPU and one TensorRT, and neither is part of a key.
    """

    name: ClassVar[str] = "build"
    Config: ClassVar[type[StageConfig]] = BuildConfig
    ports: ClassVar[Mapping[str, Port]] = {"model": port(BundleKind.ONNX)}
    produces: ClassVar[BundleKind] = BundleKind.ENGINE
    cacheable: ClassVar[bool] = False

    def requires(self, inputs: Inputs, ctx: Context) -> None:
        scheme = inputs.one("model").tags.get("scheme", "")
        if scheme not in SCHEMES:
            raise UserError(
                f"TensorRT does not take the quantization scheme {scheme!r}.", hint="quantize with scheme tensorrt-s8"
            )
        found = RUNTIMES.get("tensorrt").availability()
        if not found.ok:
            raise DeviceUnavailable(
                f"An engine can only be built on the device it is for: {found.reason}.",
                hint=f"{found.install}; the package's README.txt has the trtexec command",
            )

    def run(self, inputs: Inputs, ctx: Context) -> StageResult:
        model = inputs.one("model")
        path = ctx.scratch / ENGINE_FILE
        engine_from_onnx(
            ctx.path(model, MODEL_FILE),
            path,
            images=model.inputs[0],
            precision=str(model.tags["precision"]),
            max_batch=self.config.max_batch,
            workspace_mib=self.config.workspace_mib,
        )
        fingerprint = device_fingerprint()
        bundle = model.model_copy(
            update={
                "kind": BundleKind.ENGINE,
                "files": {ENGINE_FILE: ctx.blobs.add(path)},
                "bound_to": fingerprint,
            }
        )
        return StageResult(
            bundle=bundle,
            metrics={"size_mib": size_mib(path)},
            decisions=(f"The engine runs only on {fingerprint}.",),
        )


def build_command(target: Target, model: ModelBundle, *, max_batch: int = 1) -> str:
    """The `trtexec` line that builds the engine on the device, in the folder of `model.onnx`.

    Args:
        target: A device with TensorRT.
        model: The ONNX bundle that is built.
        max_batch: Largest batch of the engine; it is optimised for 1.

    Raises:
        UserError: The target does not run TensorRT.
    """
    if target.support("tensorrt") is None:
        runs = ", ".join(entry.runtime for entry in target.runtimes)
        raise UserError(f"The target {target.name} does not run TensorRT; it runs {runs}.")
    images = model.inputs[0]
    one = "x".join(str(size) for size in (1, *images.shape[1:]))
    most = "x".join(str(size) for size in (max_batch, *images.shape[1:]))
    # Permissions that versions below 11 need; what the graph does not hold, they do not add, except that an INT8
    # graph's remaining float layers may run in half precision.
    allowed = {"fp32": [], "fp16": ["--fp16"], "int8": ["--int8", "--fp16"]}[str(model.tags["precision"])]
    # Considers sparse kernels for the layers whose weights have the pattern, and takes them where they are faster.
    sparse = ["--sparsity=enable"] if "sparsity" in model.tags else []
    return " ".join(
        [
            "trtexec",
            f"--onnx={MODEL_FILE}",
            f"--saveEngine={ENGINE_FILE}",
            f"--minShapes={images.name}:{one}",
            f"--optShapes={images.name}:{one}",
            f"--maxShapes={images.name}:{most}",
            *allowed,
            *sparse,
        ]
    )
