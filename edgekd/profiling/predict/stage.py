"""The `latency-model` node: how fast operations are on the target, for search and pruning to steer by."""

from __future__ import annotations

from contextlib import ExitStack
from typing import ClassVar

import numpy as np
import onnx
from pydantic import Field

from edgekd.core.bundle import BundleKind
from edgekd.core.report import LatencyReport
from edgekd.core.report_io import bundle_from_report
from edgekd.core.stage import Context, Inputs, Stage, StageConfig, StageResult
from edgekd.errors import EdgekdError
from edgekd.profiling.measure import MeasurePlan, Profiler, Subject
from edgekd.profiling.predict.nets import Net, probe_nets
from edgekd.profiling.predict.roofline import Timing, fitted_model
from edgekd.runtimes.session import RUNTIMES
from edgekd.targets.latency import LatencyModel, latency_model_from_target
from edgekd.targets.schema import Target


class LatencyModelConfig(StageConfig):
    """How to fit.

    Attributes:
        threads: CPU threads; use those that the profile is judged at.
        duration_s: Measuring time per network.
    """

    threads: int = Field(default=1, ge=1)
    duration_s: float = Field(default=0.4, gt=0)


class LatencyModelStage(Stage[LatencyModelConfig]):
    """Reports a `LatencyModel`: fitted to timings where the target is this machine, from its card elsewhere.

    Cached, because a model that steers a search must not change between two runs of it.
    """

    name = "latency-model"
    Config = LatencyModelConfig
    ports: ClassVar = {}
    produces = BundleKind.REPORT
    reads = frozenset({"target"})

    def run(self, inputs: Inputs, ctx: Context) -> StageResult:
        target = ctx.resource("target", Target)
        prior = latency_model_from_target(target)
        runtime = _main_runtime(target) if target.measured_here and "fp32" in prior.gmacs_per_s else None
        if runtime is None:
            known = "is not known" if prior.relative_error is None else f"is {prior.relative_error:.0%} (median)"
            text = f"Latencies are predicted from the card of {target.name}; the error of that {known}."
            return StageResult(bundle=bundle_from_report(prior, ctx), decisions=(text,))
        support = target.support(runtime)
        nets = [*probe_nets("fp32")]
        if support is not None and "int8" in support.precisions:
            nets += probe_nets("int8")
        timings, failures = self._timings(nets, runtime, ctx)
        model = fitted_model(timings, prior)
        text = (
            f"Latencies are predicted by a roofline fitted to {len(timings)} small networks timed in {runtime} with "
            f"{self.config.threads} threads; median error {model.relative_error:.0%} on networks left out of the fit."
        )
        return StageResult(bundle=bundle_from_report(model, ctx), metrics=_metrics(model), decisions=(text, *failures))

    def _timings(self, nets: list[Net], runtime: str, ctx: Context) -> tuple[list[Timing], list[str]]:
        """A timing for each network that ran, and a sentence on each that did not."""
        plan = MeasurePlan(warmup_s=0.05, burst_s=0.005, duration_s=self.config.duration_s, precision=0.02)
        with ExitStack() as stack:
            subjects = {}
            for net in nets:
                path = ctx.scratch / f"{net.name}.onnx"
                onnx.save(net.model, path)
                session = stack.enter_context(RUNTIMES.get(runtime).open(path, threads=self.config.threads, batch=1))
                subjects[net.name] = Subject(
                    session=session,
                    feeds={"images": np.random.default_rng(0).random(_shape(net), dtype=np.float32)},
                    runtime=runtime,
                    precision=net.precision,
                    threads=self.config.threads,
                )
            found = Profiler().measure_interleaved(
                subjects,
                plan,
                seed=ctx.seed,
                on_round=lambda done: ctx.reporter.progress("time small networks, percent", round(100 * done), 100),
            )
        ctx.reporter.progress("time small networks, percent", 100, 100)
        timed = [(net, latency) for net in nets if isinstance(latency := found[net.name], LatencyReport)]
        failed = [f"{name} was not timed: {err.message}" for name, err in found.items() if isinstance(err, EdgekdError)]
        return [Timing(costs=n.costs, precision=n.precision, p50_ms=latency.p50_ms) for n, latency in timed], failed


def _main_runtime(target: Target) -> str | None:
    """The first runtime of the card that is installed here and opens ONNX files."""
    for support in target.runtimes:
        runtime = RUNTIMES.get(support.runtime)
        if runtime.availability().ok and BundleKind.ONNX in runtime.accepts:
            return support.runtime
    return None


def _shape(net: Net) -> tuple[int, ...]:
    return tuple(dim.dim_value for dim in net.model.graph.input[0].type.tensor_type.shape.dim)


def _metrics(model: LatencyModel) -> dict[str, float]:
    found = {f"gmacs_per_s_{name}": rate for name, rate in model.gmacs_per_s.items()}
    found |= {"overhead_us_per_op": model.overhead_us_per_op, "bandwidth_gb_s": model.bandwidth_gb_s}
    return found if model.relative_error is None else {**found, "relative_error": model.relative_error}
