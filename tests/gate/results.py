"""Short ways to write latencies, evaluations and profiles."""

from __future__ import annotations

from edgekd.core.report import CandidateLatency, Evaluation, LatencyReport, Metric, PredictedLatency, ProfileReport
from edgekd.gate.candidates import Candidate


def prediction(median: float, *, error: float | None = None) -> PredictedLatency:
    """A prediction whose model is off by `error` on half of the networks."""
    return PredictedLatency(
        runtime="tensorrt",
        precision="fp32",
        threads=1,
        device="jetson-orin-nano",
        model="a roofline",
        median_ms=median,
        low_ms=None if error is None else median * (1 - error),
        high_ms=None if error is None else median * (1 + error),
        level=None if error is None else 0.5,
        relative_error=error,
    )


def latency(p50: float, *, noise: float = 0.01, threads: int = 1, samples: tuple[float, ...] = ()) -> LatencyReport:
    """A latency whose median is known to `noise` on both sides."""
    return LatencyReport(
        runtime="onnxruntime",
        provider="cpu",
        precision="fp32",
        threads=threads,
        region="one call",
        n=1000,
        warmup_n=10,
        mean_ms=p50,
        p50_ms=p50,
        p90_ms=1.1 * p50,
        p95_ms=1.2 * p50,
        p99_ms=1.3 * p50,
        min_ms=0.9 * p50,
        max_ms=2 * p50,
        std_ms=0.1 * p50,
        median_low_ms=p50 * (1 - noise),
        median_high_ms=p50 * (1 + noise),
        throughput_per_s=1000 / p50,
        samples_ms=samples,
    )


def entry(
    name: str,
    p50: float | None,
    *,
    runtime: str = "onnxruntime",
    size: float = 1.0,
    noise: float = 0.01,
    threads: int = 1,
) -> CandidateLatency:
    """A profile's entry; without a latency it failed."""
    return CandidateLatency(
        candidate=name,
        runtime=runtime,
        precision=name.rpartition("-")[2],
        size_mib=size,
        latency=None if p50 is None else latency(p50, noise=noise, threads=threads),
        failure="it broke" if p50 is None else None,
    )


def profile(*entries: CandidateLatency, measured: bool = True, threads: tuple[int, ...] = (1,)) -> ProfileReport:
    return ProfileReport(device="a desk", measured=measured, threads=threads, entries=entries)


def accuracy(
    name: str,
    value: float,
    *,
    runtime: str = "onnxruntime",
    split: str = "select",
    metric: Metric = "top1",
    n: int = 1000,
) -> Evaluation:
    return Evaluation.model_validate(
        {
            "candidate": name,
            "runtime": runtime,
            "split": split,
            "metric": metric,
            "value": value,
            "low": max(value - 0.02, 0.0),
            "high": min(value + 0.02, 1.0),
            "n": n,
        }
    )


def candidates(*names: str) -> list[Candidate]:
    """`student-int8` is the INT8 twin of `student-fp32`."""
    return [Candidate(name=n, family=n.rpartition("-")[0], precision=n.rpartition("-")[2]) for n in names]
