"""`deploy.json`: what a program that has never heard of edgekd needs to run a package on a device.

It names every engine in the package, best first, how images are made into its input, and what was measured. It is a
published format: a field may be added with a new `schema_version`, none may change its meaning. How a package is
written and verified is in `edgekd.export.package`; which engines go into one is decided in `edgekd.pipeline`.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from edgekd.core.bundle import TensorSpec
from edgekd.core.preprocess import Preprocessing
from edgekd.core.report import Origin
from edgekd.core.schema import Schema

DEPLOY_FILE = "deploy.json"
ENGINES_FOLDER = "engines"
FINGERPRINT_FILE = "model.engine.json"
"""Beside an engine that is native code: the device and library it was built for."""
TIMING_CACHE_FILE = "timing.cache"
"""Beside such an engine: what makes building it again fast."""

EngineFormat = Literal["onnx", "tensorrt", "executorch", "ncnn", "litert"]
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"


class DeployedInput(TensorSpec):
    """The one input: preprocessed images.

    Attributes:
        layout: Of the axes; N is the batch.
    """

    layout: Literal["NCHW"] = "NCHW"


class DeployedLatency(Schema):
    """What is known of the latency of one call with one image.

    Attributes:
        median_ms: Half of the calls are faster.
        p99_ms: Of 100 calls, 99 are faster; None for a prediction, which has no distribution.
        origin: Measured or predicted; the two are never compared.
        device: Where it was measured, or which device was predicted.
    """

    median_ms: float = Field(gt=0)
    p99_ms: float | None = None
    origin: Origin
    device: str


class DeployedEngine(Schema):
    """One engine of a package.

    Attributes:
        name: Unique in the package; of the node that made it.
        format: Decides which library reads it.
        files: Path in the package by the name that the library expects the file to have.
        runtimes: In order of preference. `tensorrt` for an `onnx` engine means: an engine can be built from it.
        precision: Of the weights and activations that dominate: `fp32`, `fp16`, `int8`.
        scheme: Form of the quantization; empty without one.
        threads: CPU threads that the latency holds for.
        chosen: Whether it is the one that was chosen; exactly one is.
        reason: Why it is here, a sentence without a full stop.
        latency: None where it was neither measured nor predicted.
        accuracy: Top-1 accuracy in [0, 1] on held-out images; None where there were no labels, or where this engine was
            not evaluated itself: one built on a device has been compared with its graph on a few images.
        size_mib: Of its files together.
        fingerprint: Path of the file that says which device it was built for; None where it runs anywhere.
        source: Name of the `onnx` engine that it was built from; None where it is the source.
        timing_cache: Path of the file that makes building it again fast.
    """

    name: str = Field(pattern=NAME)
    format: EngineFormat
    files: dict[str, str] = Field(min_length=1)
    runtimes: tuple[str, ...] = Field(min_length=1)
    precision: str
    scheme: str = ""
    threads: int = Field(default=1, ge=1)
    chosen: bool = False
    reason: str = ""
    latency: DeployedLatency | None = None
    accuracy: float | None = Field(default=None, ge=0, le=1)
    size_mib: float = Field(ge=0)
    fingerprint: str | None = None
    source: str | None = None
    timing_cache: str | None = None

    @property
    def paths(self) -> tuple[str, ...]:
        """Every path in the package that the engine names."""
        more = (self.fingerprint, self.timing_cache)
        return (*self.files.values(), *(path for path in more if path is not None))


class Deployment(Schema):
    """What is in `deploy.json`.

    Attributes:
        task: What the outputs mean.
        input: What the engines are fed; all of them alike.
        outputs: The first one is the logits (N, K), unnormalised.
        preprocessing: From an image to the input.
        labels: K class names in the order of the logits; None where they are not known.
        engines: Best first; a native engine stands before the graph that it was built from.
    """

    schema_version: Literal[1] = 1
    task: Literal["classification"] = "classification"
    input: DeployedInput
    outputs: tuple[TensorSpec, ...] = Field(min_length=1)
    preprocessing: Preprocessing
    labels: tuple[str, ...] | None = None
    engines: tuple[DeployedEngine, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [engine.name for engine in self.engines]
        if len({name.casefold() for name in names}) < len(names):
            raise ValueError(f"two engines have one name: {', '.join(names)}")
        if sum(engine.chosen for engine in self.engines) != 1:
            raise ValueError("exactly one engine is the chosen one")
        graphs = {engine.name for engine in self.engines if engine.format == "onnx"}
        for engine in self.engines:
            if engine.source is not None and engine.source not in graphs:
                raise ValueError(f"{engine.name} is said to be built from {engine.source}, which is no graph in here")
        return self

    def engine(self, name: str) -> DeployedEngine | None:
        """An engine by its name; None when there is none."""
        return next((engine for engine in self.engines if engine.name == name), None)
