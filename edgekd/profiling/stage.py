"""The `profile` node: every candidate in every runtime, measured against each other on the target, or predicted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import Field

from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.layers import LayerReport
from edgekd.core.report import CandidateLatency, LatencyReport, PredictedLatency, ProfileReport
from edgekd.core.report_io import bundle_from_report
from edgekd.core.stage import BoardAccess, Context, Inputs, Stage, StageConfig, StageResult, port
from edgekd.core.text import counted
from edgekd.errors import DeviceUnavailable, EdgekdError, UserError
from edgekd.profiling.environment import fingerprint, machine
from edgekd.profiling.isolated import Engine, Extras, measure_isolated
from edgekd.profiling.measure import MeasurePlan
from edgekd.profiling.predict.candidates import predicted_latency
from edgekd.profiling.process import LIMIT_S
from edgekd.profiling.remote.for_target import profile_for_target
from edgekd.profiling.remote.request import FORMATS, BoardPlan, candidate_from_bundle
from edgekd.profiling.sparsity import patterns_in_words
from edgekd.runtimes.formats import model_size_mib
from edgekd.runtimes.session import RUNTIMES
from edgekd.targets.schema import Target

MOSTLY = 0.5
"""Share of the time in float above which an int8 engine is worth a sentence."""
SHOWN = 3


class ProfileConfig(StageConfig):
    """How to measure.

    Attributes:
        runtimes: Registry names; each candidate is measured in all of them that take its kind and are installed. Empty
            means all that the target's card lists, and those that the candidates' own formats are for.
        pairs: The runtimes of each candidate by its name, where it is not to be measured in all that take it.
        threads: CPU thread counts; decisions are taken at the first one.
        warmup_s: Untimed running of each engine.
        duration_s: Timed running of each engine, at most; a steady machine needs less.
        precision: Stop when the 95 % interval of each median is narrower than this fraction of it; an engine that never
            gets there is reported as inconclusive.
        layers: Record the times of layers, in a session of their own after the timing. `summary` keeps the shares of
            int8 and float, the providers and what fell back; `all` keeps every layer; `none` records nothing.
        offline_samples: Samples of MLPerf's Offline scenario; 0 leaves it out.
        offline_batch: Samples in a call of it.
        limit_s: Time after which a process that does not answer counts as hung.
    """

    runtimes: tuple[str, ...] = ()
    pairs: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    threads: tuple[int, ...] = Field(default=(1,), min_length=1)
    warmup_s: float = Field(default=0.3, ge=0)
    duration_s: float = Field(default=3.0, gt=0)
    precision: float = Field(default=0.01, gt=0)
    layers: Literal["none", "summary", "all"] = "summary"
    offline_samples: int = Field(default=0, ge=0)
    offline_batch: int = Field(default=1, ge=1)
    limit_s: float = Field(default=LIMIT_S, gt=0)


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

    def entry(
        self, found: LatencyReport | PredictedLatency | EdgekdError, layers: LayerReport | None = None
    ) -> CandidateLatency:
        """The entry for a latency, a prediction, or the error that stands in its place."""
        return CandidateLatency(
            candidate=self.candidate,
            runtime=self.runtime,
            precision=self.precision,
            size_mib=self.size_mib,
            latency=found if isinstance(found, LatencyReport) else None,
            prediction=found if isinstance(found, PredictedLatency) else None,
            failure=found.message if isinstance(found, EdgekdError) else None,
            failure_code=found.exit_code if isinstance(found, EdgekdError) else None,
            layers=layers,
        )


class ProfileStage(Stage[ProfileConfig]):
    """Reports the latency of every candidate in every runtime that takes it.

    Each engine runs in a process of its own: one that fails, crashes or hangs is an entry with a reason and stops
    nothing. Where the target is not this machine, it is measured on the board that the run names; without one, nothing
    is measured and entries hold what the target's card predicts.
    Never cached: a measurement is made anew each time.
    """

    name = "profile"
    version = 4
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
        if ctx.execution.board is not None:
            return self._on_board(ctx.execution.board, target, inputs, ctx)
        candidates = [(name, bundle, model_size_mib(bundle, ctx.blobs)) for name, bundle in inputs.all("candidates")]
        if not target.measured_here:
            return _predicted(candidates, target, self.config.threads, inputs, ctx)
        runtimes, decisions = _installed(self.config.runtimes or _usual(target, [found[1] for found in candidates]))
        if self.config.runtimes and not runtimes:
            raise DeviceUnavailable(" ".join(f"{text}." for text in decisions), hint="edgekd doctor says what is here")
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
                if RUNTIMES.get(runtime).takes(bundle) and runtime in self.config.pairs.get(name, runtimes)
            ]
            found, warnings = self._measured(trials, ctx)
            entries += found
            decisions += [text for text in warnings if text not in decisions]
        if not entries:
            raise UserError(f"No candidate can be measured: installed are {', '.join(runtimes) or 'no runtimes'}.")
        report = ProfileReport(
            device=fingerprint(facts, versions), measured=True, threads=self.config.threads, entries=tuple(entries)
        )
        return _result(report, decisions, inputs, ctx)

    def _on_board(self, access: BoardAccess, target: Target, inputs: Inputs, ctx: Context) -> StageResult:
        """The same on a board, where modules do not run: only graphs and engines go there."""
        config = self.config
        plan = BoardPlan(
            threads=config.threads,
            warmup_s=config.warmup_s,
            duration_s=config.duration_s,
            precision=config.precision,
            seed=ctx.seed,
            stall_s=config.limit_s,
            layers=config.layers != "none",
        )
        candidates = [
            candidate_from_bundle(name, bundle, ctx.blobs)
            for name, bundle in inputs.all("candidates")
            if bundle.format in FORMATS
        ]
        found = profile_for_target(access, target, candidates, plan, ctx.reporter)
        where = f"Latencies were measured on {found.report.board}; accuracies were counted on this machine."
        left_out = [
            f"{name} is not measured: the agent on a board does not run {bundle.format} engines."
            for name, bundle in inputs.all("candidates")
            if bundle.kind is BundleKind.ENGINE and bundle.format not in FORMATS
        ]
        entries = tuple(_with_layers(entry, config.layers) for entry in found.report.entries)
        report = found.report.model_copy(update={"entries": entries})
        return _result(report, [where, *left_out, *found.decisions], inputs, ctx)

    def _measured(self, trials: Sequence[_Trial], ctx: Context) -> tuple[list[CandidateLatency], list[str]]:
        """Entries of one thread count, and what may have disturbed them."""
        config = self.config
        plan = MeasurePlan(warmup_s=config.warmup_s, duration_s=config.duration_s, precision=config.precision)
        extras = Extras(
            layers=config.layers != "none",
            offline_samples=config.offline_samples,
            offline_batch=config.offline_batch,
            limit_s=config.limit_s,
        )
        task = f"profile {len(trials)} engines, percent"
        ctx.reporter.progress(task, 0, 100)
        found = measure_isolated(
            {t.label: Engine(bundle=t.bundle, runtime=t.runtime, threads=t.threads) for t in trials},
            ctx.blobs,
            plan,
            seed=ctx.seed,
            extras=extras,
            on_round=lambda done: ctx.reporter.progress(task, round(99 * done), 100),
        )
        ctx.reporter.progress(task, 100, 100)
        layers = found.layers
        if config.layers == "summary":
            layers = {name: told.model_copy(update={"layers": ()}) for name, told in layers.items()}
        entries = [trial.entry(found.outcomes[trial.label], layers.get(trial.label)) for trial in trials]
        return entries, found.notes


def _with_layers(entry: CandidateLatency, wanted: str) -> CandidateLatency:
    """The entry with all of its layers, or with their shares alone."""
    if entry.layers is None or wanted == "all":
        return entry
    return entry.model_copy(update={"layers": entry.layers.model_copy(update={"layers": ()})})


def _usual(target: Target, bundles: Sequence[ModelBundle]) -> tuple[str, ...]:
    """The card's runtimes, then those of engines in a format that none of them reads."""
    own = [bundle.format for bundle in bundles if bundle.kind is BundleKind.ENGINE]
    return tuple(dict.fromkeys([*(support.runtime for support in target.runtimes), *own]))


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
    candidates: Sequence[tuple[str, ModelBundle, float]],
    target: Target,
    threads: tuple[int, ...],
    inputs: Inputs,
    ctx: Context,
) -> StageResult:
    entries = []
    for name, bundle, size_mib in candidates:
        # An engine runs in its own runtime; a graph in the one that the card prefers.
        runtime = bundle.format if bundle.kind is BundleKind.ENGINE else target.runtimes[0].runtime
        trial = _Trial(candidate=name, bundle=bundle, runtime=runtime, threads=threads[0], size_mib=size_mib)
        found = predicted_latency(bundle, target, ctx.blobs, trial.precision, trial.runtime, trial.threads)
        entries.append(trial.entry(found))
    report = ProfileReport(device=target.name, measured=False, threads=threads, entries=tuple(entries))
    sentence = (
        f"Nothing was measured: this machine is not {target.name}. Predicted latencies come from the target's card or "
        "its calibration and steer only; they do not decide a verdict."
    )
    return _result(report, [sentence], inputs, ctx)


def _result(report: ProfileReport, decisions: Sequence[str], inputs: Inputs, ctx: Context) -> StageResult:
    notes = [f"{e.candidate} in {e.runtime} has no latency: {e.failure}" for e in report.entries if e.failure]
    notes += _mostly_float(report.entries)
    if report.measured:
        sparse = ((name, bundle.tags.get("sparsity")) for name, bundle in inputs.all("candidates"))
        notes += patterns_in_words(report.entries, {name: str(pattern) for name, pattern in sparse if pattern})
    unsure = [(e, e.latency) for e in report.entries if e.latency and e.latency.inconclusive]
    if unsure:
        entry, latency = max(unsure, key=lambda pair: pair[1].median_width)
        where = f"{entry.candidate} in {entry.runtime}, {counted(latency.threads, 'thread')}"
        count = f"{len(unsure)} of {len(report.entries)} latencies are inconclusive"
        notes.append(f"{count}. The widest is {where}: {latency.inconclusive}")
    return StageResult(
        bundle=bundle_from_report(report, ctx),
        metrics={
            "engines": len(report.entries),
            "failed": sum(entry.failure is not None for entry in report.entries),
            "inconclusive": len(unsure),
        },
        decisions=(*decisions, *notes),
    )


def _mostly_float(entries: Sequence[CandidateLatency]) -> Iterator[str]:
    """INT8 engines that compute in float for most of the time, each with the layers that did."""
    for e in entries:
        share = e.layers.share_by_arithmetic.get("float", 0.0) if e.layers else 0.0
        if e.precision == "int8" and e.layers and e.layers.fell_back and share > MOSTLY:
            where = f"{e.candidate} in {e.runtime} is an int8 engine"
            yield f"{where} that spends {share:.0%} of its time in float: {_first(e.layers)}"


def _first(layers: LayerReport) -> str:
    """The first layers that fell back, and how many more."""
    shown = "; ".join(layers.fell_back[:SHOWN])
    more = len(layers.fell_back) - SHOWN
    return f"{shown}; and {more} more" if more > 0 else shown
