"""The build stage: an ONNX graph becomes a TensorRT engine on the device, with the fingerprint that it is loaded by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.deployment import FINGERPRINT_FILE, TIMING_CACHE_FILE
from edgekd.core.stage import Context, Inputs, Port, Stage, StageConfig, StageResult, port
from edgekd.errors import DeviceUnavailable
from edgekd.export.tensorrt import ENGINE_FILE, BuildConfig, require_read, settings_for
from edgekd.export.tensorrt_build import BuildTask, MadeEngine, built_here, probe_images
from edgekd.runtimes.engines.trtexec import find_trtexec
from edgekd.runtimes.fingerprint import fingerprint_text
from edgekd.runtimes.onnx_file import MODEL_FILE
from edgekd.runtimes.session import RUNTIMES
from edgekd.targets.schema import Target


class BuildStage(Stage[BuildConfig]):
    """ONNX to ENGINE on this machine's GPU.

    Not cacheable: an engine fits one GPU and one TensorRT, and neither is part of a key.
    """

    name: ClassVar[str] = "build"
    version: ClassVar[int] = 2
    Config: ClassVar[type[StageConfig]] = BuildConfig
    ports: ClassVar[Mapping[str, Port]] = {"model": port(BundleKind.ONNX)}
    produces: ClassVar[BundleKind] = BundleKind.ENGINE
    reads: ClassVar[frozenset[str]] = frozenset({"target"})
    cacheable: ClassVar[bool] = False

    def requires(self, inputs: Inputs, ctx: Context) -> None:
        model = inputs.one("model")
        require_read(model)
        settings_for(model, self.config, ctx.resource("target", Target))
        found = RUNTIMES.get("tensorrt").availability()
        if not found.ok and find_trtexec() is None:
            raise DeviceUnavailable(
                f"An engine can only be built on the device it is for: {found.reason}, and there is no trtexec.",
                hint=f"{found.install}; the package's README.txt has the trtexec command",
            )

    def run(self, inputs: Inputs, ctx: Context) -> StageResult:
        model = inputs.one("model")
        folder = ctx.scratch / "tensorrt"
        folder.mkdir(exist_ok=True)
        task = BuildTask(
            model=model,
            graph=ctx.path(model, MODEL_FILE),
            config=self.config,
            images=probe_images(model, self.config, ctx.seed),
            target=ctx.resource("target", Target),
        )
        made = built_here(task, folder, ctx.reporter)
        metrics: dict[str, float] = {"size_mib": made.size_mib, "build_s": made.build_s}
        return StageResult(
            bundle=_bundle(model, made, ctx),
            metrics=metrics,
            decisions=(*made.decisions, f"The engine runs only on {made.fingerprint.summary}."),
        )


def _bundle(model: ModelBundle, made: MadeEngine, ctx: Context) -> ModelBundle:
    """The ENGINE bundle: the engine, its fingerprint, and the timing cache that makes building it again fast."""
    sidecar = ctx.scratch / FINGERPRINT_FILE
    sidecar.write_text(fingerprint_text(made.fingerprint), encoding="utf-8")
    files = {ENGINE_FILE: ctx.blobs.add(made.files["engine"]), FINGERPRINT_FILE: ctx.blobs.add(sidecar)}
    if "timing_cache" in made.files:
        files[TIMING_CACHE_FILE] = ctx.blobs.add(made.files["timing_cache"])
    return model.model_copy(update={"kind": BundleKind.ENGINE, "files": files, "bound_to": made.fingerprint.summary})
