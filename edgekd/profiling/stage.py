"""The `profile` node: every candidate in every runtime, measured against each other on the target, or predicted."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, JsonValue

from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.report import CandidateLatency, LatencyReport, PredictedLatency, ProfileReport
from edgekd.core.report_io import bundle_from_report
from edgekd.core.stage import Context, Inputs, Stage, StageConfig, StageResult, port
from edgekd.errors import EdgekdError, UserError
from edgekd.profiling.environment import fingerprint, machine, state, warnings_from_states
from edgekd.profiling.measure import MeasurePlan, Profiler, Subject
from edgekd.profiling.predict.candidates import predicted_latency
from edgekd.runtimes.session import RUNTIMES, open_bundle
from edgekd.targets.schema import Target

MODEL_FILE = {BundleKind.ONNX: "model.onnx", BundleKind.ENGINE: "model.engine", BundleKind.TORCH: "weights.safetensors"}


class ProfileConfig(StageConfig):
    """How to measure.

    Attributes:
        runtimes: Registry names; each candidate is measured in all of them that take its kind and are installed. Empty
            means all that the target's card lists.
        threads: CPU thread counts; decisions are taken at the first one.
        warmup_s: Untimed running of each engine.
        duration_s: Timed running of each engine, at most; a steady machine needs less.
    """

    runtimes: tuple[str, ...] = ()
    threads: tuple[int, ...] = Field(default=(1,), min_length=1)
    warmup_s: float = Field(default=0.3, ge=0)
    duration_s: float = Field(default=3.0, gt=0)


@dataclass(frozen=True, kw_only=True)
class _Trial:
    """One engine to time: a candidate in a runtime at a thread count."""

    candidate: str
    bundle: ModelBundle
    runtime: str
    threads: int
    size_mib: float

    @property
    def label(self) -> str:
        return f"{self.candidate}@{self.runtime}, {self.threads} threads"

    @property
    def precision(self) -> str:
        return str(self.bundle.tags.get("precision", "fp32"))

    def entry(self, found: LatencyReport | PredictedLatency | EdgekdError) -> CandidateLatency:
        """The entry for a latency, a prediction, or the error that stands in its place."""
        return CandidateLatency(
            candidate=self.candidate,
            runtime=self.runtime,
            precision=self.precision,
            size_mib=self.size_mib,
            latency=found if isinstance(found, LatencyReport) else None,
            prediction=found if isinstance(found, PredictedLatency) else None,
            failure=found.message if isinstance(found, EdgekdError) else None,
        )


class ProfileStage(Stage[ProfileConfig]):
    """Reports the latency of every candidate in every runtime that takes it.

    A candidate that fails is an entry with a reason; it stops nothing. Where the target is not this machine, nothing is
    measured and entries hold what the target's card predicts. Never cached: a measurement is made anew each time.
    """

    name = "profile"
    Config = ProfileConfig
    ports: ClassVar = {"candidates": port(BundleKind.ONNX, BundleKind.ENGINE, BundleKind.TORCH, many=True)}
    produces = BundleKind.REPORT
    reads = frozenset({"target"})
    cacheable = False

    def requires(self, inputs: Inputs, ctx: Context) -> None:
        for runtime in self.config.runtimes:
            RUNTIMES.get(runtime)
        if not inputs.all("candidates"):
            raise UserError("There is nothing to profile: no candidate is connected.")

    def run(self, inputs: Inputs, ctx: Context) -> StageResult:
        target = ctx.resource("target", Target)
        candidates = [(name, bundle, _size_mib(bundle, ctx)) for name, bundle in inputs.all("candidates")]
        if not target.measured_here:
            return _predicted(candidates, target, self.config.threads, ctx)
        runtimes, decisions = _installed(self.config.runtimes or tuple(s.runtime for s in target.runtimes))
        # PyTorch is timed for reference: its version must not make two profiles of engines incomparable.
        deployable = [name for name in runtimes if name != "torch"] or list(runtimes)
        versions = {name: str(RUNTIMES.get(name).availability().version) for name in deployable}
        entries: list[CandidateLatency] = []
        facts = machine()
        for threads in self.config.threads:
            # Thread counts are measured one after the other: idle pools of several threads spin and disturb the rest.
            trials = [
                _Trial(candidate=name, bundle=bundle, runtime=runtime, threads=threads, size_mib=size_mib)
                for name, bundle, size_mib in candidates
                for runtime in runtimes
                if bundle.kind in RUNTIMES.get(runtime).accepts
            ]
            found, warnings = self._measured(trials, facts, ctx)
            entries += found
            decisions += [text for text in warnings if text not in decisions]
        if not entries:
            raise UserError(f"No candidate can be measured: installed are {', '.join(runtimes) or 'no runtimes'}.")
        report = ProfileReport(
            device=fingerprint(facts, versions), measured=True, threads=self.config.threads, entries=tuple(entries)
        )
        return _result(report, decisions, ctx)

    def _measured(
        self, trials: Sequence[_Trial], facts: dict[str, JsonValue], ctx: Context
    ) -> tuple[list[CandidateLatency], list[str]]:
        """Entries of one thread count, and what may have disturbed them."""
        plan = MeasurePlan(warmup_s=self.config.warmup_s, duration_s=self.config.duration_s)
        task = f"profile {len(trials)} engines, percent"
        outcomes: dict[str, LatencyReport | EdgekdError] = {}
        subjects: dict[str, Subject] = {}
        before, began = state(), time.perf_counter()
        with ExitStack() as stack:
            for trial in trials:
                try:
                    session = stack.enter_context(
                        open_bundle(trial.bundle, ctx.blobs, trial.runtime, threads=trial.threads, batch=1)
                    )
                except EdgekdError as err:
                    outcomes[trial.label] = err
                    continue
                subjects[trial.label] = Subject(
                    session=session,
                    feeds={trial.bundle.inputs[0].name: _input(trial.bundle, ctx.seed)},
                    runtime=trial.runtime,
                    precision=trial.precision,
                    threads=trial.threads,
                )
            outcomes |= Profiler().measure_interleaved(
                subjects,
                plan,
                seed=ctx.seed,
                on_round=lambda done: ctx.reporter.progress(task, round(100 * done), 100),
            )
        took_s, after = time.perf_counter() - began, state()
        ctx.reporter.progress(task, 100, 100)
        entries = [trial.entry(outcomes[trial.label]) for trial in trials]
        context: dict[str, JsonValue] = {"machine": facts, "before": before, "after": after}
        return [_with_environment(entry, context) for entry in entries], warnings_from_states(before, after, took_s)


def _installed(runtimes: Sequence[str]) -> tuple[list[str], list[str]]:
    """Those that are available here, and a sentence on each one that is not."""
    usable, missing = [], []
    for name in runtimes:
        found = RUNTIMES.get(name).availability()
        if found.ok:
            usable.append(name)
        else:
            missing.append(f"{name} is not measured: {found.reason} ({found.install})")
    return usable, missing


def _predicted(
    candidates: Sequence[tuple[str, ModelBundle, float]], target: Target, threads: tuple[int, ...], ctx: Context
) -> StageResult:
    entries = []
    for name, bundle, size_mib in candidates:
        trial = _Trial(
            candidate=name, bundle=bundle, runtime=target.runtimes[0].runtime, threads=threads[0], size_mib=size_mib
        )
        found = predicted_latency(bundle, target, ctx.blobs, trial.precision, trial.runtime, trial.threads)
        entries.append(trial.entry(found))
    report = ProfileReport(device=target.name, measured=False, threads=threads, entries=tuple(entries))
    sentence = (
        f"Nothing was measured: this machine is not {target.name}. Predicted latencies come from the target's card or "
        "its calibration and steer only; they do not decide a verdict."
    )
    return _result(report, [sentence], ctx)


def _result(report: ProfileReport, decisions: Sequence[str], ctx: Context) -> StageResult:
    failed = [f"{e.candidate} in {e.runtime} has no latency: {e.failure}" for e in report.entries if e.failure]
    return StageResult(
        bundle=bundle_from_report(report, ctx),
        metrics={"engines": len(report.entries), "failed": len(failed)},
        decisions=(*decisions, *failed),
    )


def _with_environment(entry: CandidateLatency, context: dict[str, JsonValue]) -> CandidateLatency:
    if entry.latency is None:
        return entry
    latency = entry.latency.model_copy(update={"environment": {**entry.latency.environment, **context}})
    return entry.model_copy(update={"latency": latency})


def _input(bundle: ModelBundle, seed: int) -> NDArray[np.float32]:
    """(1, C, H, W) of ordinary numbers: zeros would let a runtime skip work, tiny ones can be slow."""
    shape = (1, *bundle.model.preprocessing.input_shape)
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def _size_mib(bundle: ModelBundle, ctx: Context) -> float:
    """Size of the model's own file."""
    return float(ctx.path(bundle, MODEL_FILE[bundle.kind]).stat().st_size / 2**20)
