"""The `latency-model` node: how fast operations are on the target, for search and pruning to steer by."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from edgekd.core.bundle import BundleKind
from edgekd.core.report_io import bundle_from_report
from edgekd.core.stage import Context, Inputs, Stage, StageConfig, StageResult
from edgekd.core.text import counted
from edgekd.profiling.predict.calibrate import local_measure, nets_for, timings_from
from edgekd.profiling.predict.roofline import fitted_model
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
        runtime = main_runtime(target) if target.measured_here and "fp32" in prior.gmacs_per_s else None
        if runtime is None:
            known = "is not known" if prior.relative_error is None else f"is {prior.relative_error:.0%} (median)"
            by = "card" if target.calibrated is None else "calibration"
            text = f"Latencies are predicted from the {by} of {target.name}; the error of that {known}."
            return StageResult(bundle=bundle_from_report(prior, ctx), decisions=(text,))
        task = "time small networks, percent"
        measure = local_measure(
            runtime,
            threads=self.config.threads,
            duration_s=self.config.duration_s,
            seed=ctx.seed,
            on_done=lambda done: ctx.reporter.progress(task, round(100 * done), 100),
        )
        timings, failures = timings_from(nets_for(target, runtime), measure, ctx.scratch)
        ctx.reporter.progress(task, 100, 100)
        model = fitted_model(timings, prior)
        text = (
            f"Latencies are predicted by a roofline fitted to {len(timings)} small networks timed in {runtime} with "
            f"{counted(self.config.threads, 'thread')}; median error {model.relative_error:.0%} on networks "
            "left out of the fit."
        )
        return StageResult(bundle=bundle_from_report(model, ctx), metrics=_metrics(model), decisions=(text, *failures))


def main_runtime(target: Target) -> str | None:
    """The first runtime of the card that is installed here and opens ONNX files."""
    for support in target.runtimes:
        runtime = RUNTIMES.get(support.runtime)
        if runtime.availability().ok and BundleKind.ONNX in runtime.accepts:
            return support.runtime
    return None


def _metrics(model: LatencyModel) -> dict[str, float]:
    found = {f"gmacs_per_s_{name}": rate for name, rate in model.gmacs_per_s.items()}
    found |= {"overhead_us_per_op": model.overhead_us_per_op, "bandwidth_gb_s": model.bandwidth_gb_s}
    return found if model.relative_error is None else {**found, "relative_error": model.relative_error}
