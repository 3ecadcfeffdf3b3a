"""What a board is asked to measure: from bundles and runtimes to the job that the agent understands.

A job is plain data and its id is the digest of it, of the models and of the agent: the same question asked again finds
the job that is already answering it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from edgekd.core.blobs import Blobs
from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.digest import Digest, digest
from edgekd.core.schema import Schema
from edgekd.errors import DeviceUnavailable, UserError
from edgekd.profiling.agent.engines import ADAPTERS
from edgekd.profiling.measure import MeasurePlan
from edgekd.profiling.remote.archive import agent_archive
from edgekd.runtimes.engines.settings import INT8_FP16
from edgekd.runtimes.engines.settings import SCHEMES as TENSORRT_SCHEMES
from edgekd.runtimes.fingerprint import FINGERPRINT_FILE, FingerprintError, read_fingerprint
from edgekd.runtimes.formats import model_files
from edgekd.runtimes.session import described

TAKES: Mapping[str, tuple[str, ...]] = {
    "onnxruntime": ("onnx",),
    "tensorrt": ("onnx", "tensorrt"),
    "openvino": ("onnx",),
    "executorch": ("executorch",),
    "ncnn": ("ncnn",),
    "litert": ("litert",),
}
"""Formats by runtime of the board."""
FORMATS = frozenset(name for formats in TAKES.values() for name in formats)
"""Formats that go to a board; its agent knows the runtimes of no other."""
RESERVE_MIB = 256
"""Memory of the board that is left free when several engines are open at once."""


class BoardPlan(Schema):
    """How a board measures, and how long anything may take there.

    Attributes:
        runtimes: Names; empty takes every one that the board has.
        threads: CPU thread counts.
        warmup_s: Untimed running of each engine.
        duration_s: Timed running of each engine, at most.
        precision: Stop early when the interval of every median is narrower than this fraction of it.
        seed: Of the order within rounds.
        lock_clocks: Fix the clocks while measuring and restore them.
        layers: Record the times of layers, after the timing.
        open_s: Longest time to load a model or to build an engine.
        stall_s: Longest time for a few inferences; a runtime that takes longer hangs.
        limit_s: Longest time of the whole job; None works it out.
        queue_s: Longest wait for other jobs of the board.
    """

    runtimes: tuple[str, ...] = ()
    threads: tuple[int, ...] = Field(default=(1,), min_length=1)
    warmup_s: float = Field(default=1.0, ge=0)
    duration_s: float = Field(default=5.0, gt=0)
    precision: float = Field(default=0.01, gt=0)
    seed: int = 0
    lock_clocks: bool = False
    layers: bool = False
    open_s: float = Field(default=1800.0, gt=0)
    stall_s: float = Field(default=120.0, gt=0)
    limit_s: float | None = Field(default=None, gt=0)
    queue_s: float = Field(default=14_400.0, gt=0)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One engine that is to be timed: a candidate in a runtime at a thread count."""

    candidate: str
    bundle: ModelBundle
    runtime: str
    threads: int
    size_mib: float
    fingerprint: Mapping[str, Any] | None = None

    @property
    def precision(self) -> str:
        """Of the weights and activations that dominate."""
        return str(self.bundle.tags.get("precision", "fp32"))

    @property
    def files(self) -> tuple[Digest, ...]:
        """Of the model, first the one that the runtime opens."""
        return tuple(self.bundle.file(name) for name in model_files(self.bundle))

    def plain(self) -> dict[str, Any]:
        """As the agent reads it."""
        return {
            "label": f"{self.candidate}@{self.runtime}, {self.threads} threads",
            "runtime": self.runtime,
            "files": list(self.files),
            "kind": "onnx" if self.bundle.kind is BundleKind.ONNX else "engine",
            "inputs": [{"name": spec.name, "shape": list(spec.shape)} for spec in self.bundle.inputs],
            "threads": self.threads,
            "batch": 1,
            "precision": self.precision,
            "float16_scales": _scheme(self.bundle) == INT8_FP16,
            "fold_weights": self.bundle.tags.get("scheme") == "weight-only",
            "fingerprint": None if self.fingerprint is None else dict(self.fingerprint),
        }


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A bundle to measure.

    Attributes:
        files: Of its model, and where they lie.
        fingerprint: Of a TensorRT engine, as plain data; the board loads none without. None for graphs.
    """

    name: str
    bundle: ModelBundle
    files: Mapping[Digest, Path]
    fingerprint: Mapping[str, Any] | None = None

    @property
    def size_mib(self) -> float:
        """Of its files together."""
        return sum(path.stat().st_size for path in self.files.values()) / 2**20


def candidate_from_bundle(name: str, bundle: ModelBundle, blobs: Blobs) -> Candidate:
    """The candidate that a bundle is, its fingerprint read where it is an engine.

    Args:
        name: In reports.
        bundle: Of a format in `FORMATS`.
        blobs: Finds its files.

    Raises:
        UserError: An engine without a fingerprint, or with one that cannot be read.
    """
    fingerprint = None
    if bundle.format == "tensorrt":
        try:
            fingerprint = read_fingerprint(blobs.path(bundle.file(FINGERPRINT_FILE))).plain()
        except FingerprintError as err:
            raise UserError(f"{name}: {err}.", hint="build the engine again with edgekd build") from err
    files = {bundle.file(file): blobs.path(bundle.file(file)) for file in model_files(bundle)}
    return Candidate(name=name, bundle=bundle, files=files, fingerprint=fingerprint)


def require_board_format(name: str, bundle: ModelBundle) -> None:
    """Refuses a bundle that no board takes.

    Raises:
        UserError: A module, or an engine of a format that is not in `FORMATS`.
    """
    if bundle.format not in FORMATS:
        raise UserError(
            f"{name} is {described(bundle)}, and boards run ONNX graphs and engines of "
            f"{', '.join(sorted(FORMATS - {'onnx'}))}.",
            hint="export it first",
        )


def usable_runtimes(board: str, python: str, login: str, plan: BoardPlan, offers: Mapping[str, Any]) -> list[str]:
    """Runtimes to measure with: those asked for, or all that the board has.

    Args:
        board: Its name, for messages.
        python: Its interpreter.
        login: The command that logs in there.
        plan: What was asked for.
        offers: What the agent found: `ok`, `version` and `install` by name.

    Raises:
        UserError: A runtime that the agent does not know.
        DeviceUnavailable: The board has none of them; the hint installs one.
    """
    unknown = [name for name in plan.runtimes if name not in ADAPTERS]
    if unknown:
        raise UserError(
            f"On a board the runtimes are {', '.join(ADAPTERS)}, and not {', '.join(unknown)}.",
            hint="leave --runtime out to measure with all that the board has",
        )
    wanted = plan.runtimes or tuple(ADAPTERS)
    usable = [name for name in wanted if offers.get(name, {}).get("ok")]
    missing = [name for name in plan.runtimes if name not in usable]
    if not usable or missing:
        first = (missing or list(wanted))[0]
        install = str(offers.get(first, {}).get("install", ""))
        raise DeviceUnavailable(
            f"{board}: {' or '.join(missing or wanted)} cannot be used there: not installed for {python}.",
            hint=f"{login} {install}" if install else None,
        )
    return usable


def trials_for(candidates: Sequence[Candidate], runtimes: Sequence[str], plan: BoardPlan) -> list[Trial]:
    """Every candidate in every runtime that takes it, at every thread count.

    Raises:
        UserError: Not one fits.
    """
    trials = [
        Trial(
            candidate=candidate.name,
            bundle=candidate.bundle,
            runtime=runtime,
            threads=threads,
            size_mib=candidate.size_mib,
            fingerprint=candidate.fingerprint,
        )
        for threads in plan.threads
        for candidate in candidates
        for runtime in runtimes
        # A GPU engine has no threads: it is measured once.
        if fits(candidate.bundle, runtime) and (runtime != "tensorrt" or threads == plan.threads[0])
    ]
    if not trials:
        kinds = ", ".join(sorted({candidate.bundle.format for candidate in candidates}))
        raise UserError(
            f"Nothing can be measured: {' and '.join(runtimes)} on the board do not run {kinds} bundles of this form.",
            hint="export to ONNX first; quantized graphs must have the form that the runtime reads",
        )
    return trials


def job_for(trials: Sequence[Trial], plan: BoardPlan) -> tuple[str, dict[str, Any]]:
    """The id of a job and the job."""
    openings = len(trials) * plan.open_s
    timings = len(trials) * (plan.warmup_s + plan.duration_s) * 3 + plan.stall_s
    spec: dict[str, Any] = {
        "engines": [trial.plain() for trial in trials],
        "plan": {"warmup_s": plan.warmup_s, "duration_s": plan.duration_s, "precision": plan.precision},
        "seed": plan.seed,
        "lock_clocks": plan.lock_clocks,
        "layers": plan.layers,
        "reserve_mib": RESERVE_MIB,
        "open_s": plan.open_s,
        "stall_s": plan.stall_s,
        "limit_s": plan.limit_s or openings + timings,
        "queue_s": plan.queue_s,
    }
    return digest("board-job", agent_archive().digest, spec)[:32], spec


def unit_job_for(
    trials: Sequence[Trial], plan: BoardPlan, units: MeasurePlan, *, seconds: float, most: int, batch: int
) -> tuple[str, dict[str, Any]]:
    """The id of a job of units of measurement, for a gate, and the job.

    Args:
        trials: What takes turns.
        plan: Its limits and its seed.
        units: How to measure one unit.
        seconds: Units begin until so many seconds are over.
        most: And no more of them than this.
        batch: Number of the job within the gate; its seed and its id depend on it.
    """
    openings = len(trials) * plan.open_s
    spec: dict[str, Any] = {
        "engines": [trial.plain() for trial in trials],
        "units": {"seconds": seconds, "most": most, "plan": units.model_dump()},
        "seed": plan.seed + 1_000_003 * batch,
        "lock_clocks": plan.lock_clocks,
        "reserve_mib": RESERVE_MIB,
        "open_s": plan.open_s,
        "stall_s": plan.stall_s,
        "limit_s": plan.limit_s or openings + 10 * seconds + plan.stall_s,
        "queue_s": plan.queue_s,
    }
    return digest("board-job", agent_archive().digest, spec)[:32], spec


def fits(bundle: ModelBundle, runtime: str) -> bool:
    """Whether a board's runtime takes the bundle: its kind, and for TensorRT its form of INT8."""
    if bundle.format not in TAKES[runtime]:
        return False
    return runtime != "tensorrt" or bundle.kind is BundleKind.ENGINE or _scheme(bundle) in TENSORRT_SCHEMES


def lacking(bundle: ModelBundle, offers: Mapping[str, Any], login: str, among: Sequence[str]) -> tuple[str, str] | None:
    """The runtime that would take the bundle if the board had it, and the command that installs it.

    Args:
        bundle: That no runtime there takes.
        offers: What the agent found: `ok` and `install` by name.
        login: The command that logs in there.
        among: Runtimes that count, the first that fits first.
    """
    able = (name for name in among if name in TAKES and not offers.get(name, {}).get("ok") and fits(bundle, name))
    return next(((name, f"{login} {offers[name]['install']}") for name in able if name in offers), None)


def _scheme(bundle: ModelBundle) -> str:
    return str(bundle.tags.get("scheme", ""))
