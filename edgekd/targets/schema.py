"""What a target is: a device as data, with the source of every number."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from edgekd.core.cost import OpKind
from edgekd.core.digest import Digest, digest
from edgekd.core.schema import Schema

Precision = Literal["fp32", "fp16", "int8"]
QuantScheme = Literal["ort-u8s8", "openvino", "tensorrt-s8", "xnnpack", "litert-s8"]


class RuntimeSupport(Schema):
    """One runtime on a device.

    Attributes:
        runtime: Registry name, such as `onnxruntime`.
        versions: Version range in words, or a specifier such as `>=8.6`.
        precisions: What it can run there at all; a measurement decides whether it pays.
        scheme: Form of INT8 that it runs fast, None when it has no INT8; `xnnpack` and `litert-s8` are made by the
            converters to ExecuTorch and LiteRT.
        notes: What one must know.
    """

    runtime: str
    versions: str = ""
    precisions: tuple[Precision, ...] = Field(min_length=1)
    scheme: QuantScheme | None = None
    notes: str = ""

    @model_validator(mode="after")
    def _scheme_for_int8(self) -> Self:
        if ("int8" in self.precisions) != (self.scheme is not None):
            raise ValueError("int8 among the precisions needs a scheme, and a scheme needs int8")
        return self


class Peak(Schema):
    """How fast the device could be, and how much of that real networks get; the input of the latency model.

    Attributes:
        gmacs_per_s: 10^9 multiply-accumulates per second by precision, all cores, as the data sheet has it (sparsity
            excluded) or as computed from clock and width.
        bandwidth_gb_s: Memory bandwidth in 10^9 bytes per second.
        efficiency: Share of `gmacs_per_s` reached, by kind of operation; `other` serves kinds that are not listed.
        precision_efficiency: A further share by precision, 1 where not listed: what INT8 gains falls short of its peak.
        bandwidth_efficiency: Share of `bandwidth_gb_s` reached.
        op_overhead_us: Cost of one more operation, whatever its size.
        fixed_us: Cost of one inference, whatever the network.
        relative_error: Median relative error of the model against published latencies; None when it was not
            calibrated.
        sources: Where each number comes from, and which are estimates.
    """

    gmacs_per_s: dict[Precision, float]
    bandwidth_gb_s: float = Field(gt=0)
    efficiency: dict[OpKind, float]
    precision_efficiency: dict[Precision, float] = Field(default_factory=dict)
    bandwidth_efficiency: float = Field(default=0.6, gt=0, le=1)
    op_overhead_us: float = Field(ge=0)
    fixed_us: float = Field(default=0.0, ge=0)
    relative_error: float | None = Field(default=None, ge=0)
    sources: tuple[str, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _usable(self) -> Self:
        if not self.gmacs_per_s or min(self.gmacs_per_s.values()) <= 0:
            raise ValueError("gmacs_per_s needs a positive rate for at least one precision")
        shares = [*self.efficiency.values(), *self.precision_efficiency.values()]
        if "other" not in self.efficiency or not all(0 < share <= 1 for share in shares):
            raise ValueError("efficiency needs 'other', and every share must be in (0, 1]")
        return self


class Presence(Schema):
    """How to tell that this machine is the target. Every given fact must hold; without any it never is.

    Attributes:
        machine: As `platform.machine()` says it, lower case: `x86_64`, `aarch64`.
        model: Part of the device-tree model of a board, such as `Raspberry Pi 5`.
        file: A path that only exists there, such as a driver's.
        program: Programs of which one is on the PATH there: for targets that are software.
    """

    machine: str | None = None
    model: str | None = None
    file: str | None = None
    program: tuple[str, ...] = ()


class Target(Schema):
    """A device that models are deployed on. A resource of runs: its digest enters the keys of its readers.

    Attributes:
        name: What `--target` takes.
        aliases: Other names that `--target` takes.
        description: One line for the list of targets.
        kind: Where inference runs; `web` is WebAssembly on whatever processor there is.
        presence: How to tell that this machine is the target.
        measured_here: Whether this machine is the target, so that latencies can be measured; never written in a card.
        runtimes: In order of preference.
        channel_multiple: Channel counts are kept at multiples of this.
        memory_mib: Memory that a process can use, in MiB; shared with the GPU on Jetson modules.
        threads: CPU thread counts worth measuring.
        features: Instruction sets that decide about INT8, such as `avx512_vnni`; empty when unknown.
        peak: The input of the latency model.
        sources: Where the other numbers come from.
        notes: What a user must know.
        calibrated: What `peak` was measured with, where the user calibrated the device; never written in a card.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    aliases: tuple[str, ...] = ()
    description: str
    kind: Literal["cpu", "gpu", "web"]
    presence: Presence = Presence()
    measured_here: bool = False
    runtimes: tuple[RuntimeSupport, ...] = Field(min_length=1)
    channel_multiple: int = Field(default=8, ge=1)
    memory_mib: int = Field(gt=0)
    threads: tuple[int, ...] = Field(default=(1,), min_length=1)
    features: tuple[str, ...] = ()
    peak: Peak
    sources: tuple[str, ...] = ()
    notes: str = ""
    calibrated: str | None = None

    @property
    def digest(self) -> Digest:
        return digest("target", self.plain())

    def support(self, runtime: str) -> RuntimeSupport | None:
        """What the card says about a runtime, None when it does not run there."""
        return next((entry for entry in self.runtimes if entry.runtime == runtime), None)

    def scheme_for(self, runtime: str) -> QuantScheme | None:
        """The INT8 form to build for a runtime, None when it has no INT8 or does not run there."""
        found = self.support(runtime)
        return None if found is None else found.scheme

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """What any of its runtimes can run, widest first."""
        offered = {precision for entry in self.runtimes for precision in entry.precisions}
        order: tuple[Precision, ...] = ("fp32", "fp16", "int8")
        return tuple(precision for precision in order if precision in offered)

    @property
    def predictable(self) -> tuple[Precision, ...]:
        """Those of its precisions that `peak` has a rate for."""
        return tuple(precision for precision in self.precisions if precision in self.peak.gmacs_per_s)
