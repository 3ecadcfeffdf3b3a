"""Results as plain data: latencies, evaluations, choices, verdicts. Every number says whether it was measured."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, JsonValue, model_validator

from edgekd.core.layers import LayerReport
from edgekd.core.packing import unpacked
from edgekd.core.schema import Schema

REPORT_SCHEMA_VERSION = 2

Origin = Literal["measured", "predicted"]
Metric = Literal["top1", "agreement", "outputs"]
Status = Literal["PASS", "FAIL", "INCONCLUSIVE"]

METRIC_NAMES: dict[Metric, str] = {
    "top1": "top-1 accuracy",
    "agreement": "agreement with the teacher",
    "outputs": "images whose outputs stay near the reference's",
}
"""Metrics as people call them; agreement must never be read as accuracy."""


class MlPerf(Schema):
    """The measurement in the words of MLPerf Inference (Reddi et al., 2020, arXiv 1911.02549; LoadGen).

    Only the definitions of the scenarios are theirs: their rules on run length (60 s and more), number of queries and
    data sets are not kept, so these are no MLPerf results.

    Attributes:
        single_stream_p90_ms: SingleStream: 90th percentile of the latency of queries of one sample, one at a time.
        offline_per_s: Offline: samples per second when all of them are there at once; None when it was not measured.
        offline_samples: Samples of the one query of the Offline scenario.
        offline_batch: Samples in a call of the engine.
    """

    single_stream_p90_ms: float | None = None
    offline_per_s: float | None = None
    offline_samples: int | None = None
    offline_batch: int | None = None


class Energy(Schema):
    """What a meter of the device said while the engine ran without pause.

    Attributes:
        source: The meter and what it covers: the whole package or board, its idle share included.
        per_call_mj: Millijoules for each call.
        mean_w: Power while calling.
        idle_w: Power just before, with the engine loaded and waiting.
    """

    source: str
    per_call_mj: float
    mean_w: float
    idle_w: float
    calls: int
    took_s: float


class DeviceTime(Schema):
    """How long the same engine takes on the device alone, by the device's own clock: what transfers come on top of.

    Attributes:
        region: What was timed, in words.
        n: Timed inferences, made after those of the latency.
        median_low_ms: Lower end of the 95 % interval of the median.
        median_high_ms: Upper end of the 95 % interval of the median.
    """

    region: str
    n: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    median_low_ms: float
    median_high_ms: float


class LatencyReport(Schema):
    """The distribution of one engine's latency, measured on one device.

    Attributes:
        origin: Always `measured`; a prediction is a `PredictedLatency`.
        runtime: Registry name, such as `onnxruntime`.
        provider: Execution provider or device really used.
        precision: Of the weights and activations that dominate.
        region: What was timed, in words.
        n: Timed inferences.
        median_low_ms: Lower end of the 95 % interval of the median.
        median_high_ms: Upper end of the 95 % interval of the median.
        samples_ms: The timed values in order, thinned evenly to at most 2,000.
        environment: Clocks, governor, load, versions, affinity, before and after.
        rounds_packed: Every timed value in nanoseconds by round, as `edgekd.core.packing` writes them.
        turns: Names the engines that took turns with this one; empty in reports of earlier versions.
        inconclusive: Why the numbers answer less than was asked (an interval too wide, a clock that moved), a sentence;
            None when they do.
        load_ms: From the model's file to a session that is ready, the library already imported; taken once.
        memory_peak_mib: Highest resident memory of the engine's own process from loading to the last call, less what
            was resident just before loading: the library's code and the inputs are not in it.
        energy: Where the device has a meter that may be read; None elsewhere, never an estimate.
        mlperf: The same measurement under the names of MLPerf Inference.
        compute_only: Without transfers, where the device has a clock of its own; no limit is judged by it.
    """

    origin: Literal["measured"] = "measured"
    runtime: str
    provider: str
    precision: str
    threads: int
    batch: int = 1
    region: str
    n: int
    warmup_n: int
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    min_ms: float
    max_ms: float
    std_ms: float
    median_low_ms: float
    median_high_ms: float
    throughput_per_s: float
    samples_ms: tuple[float, ...] = ()
    environment: dict[str, JsonValue] = Field(default_factory=dict)
    rounds_packed: str = ""
    turns: str = ""
    inconclusive: str | None = None
    load_ms: float | None = None
    memory_peak_mib: float | None = None
    energy: Energy | None = None
    mlperf: MlPerf | None = None
    compute_only: DeviceTime | None = None

    @property
    def rounds_ns(self) -> list[list[int]]:
        """Every timed value in nanoseconds, by round; engines of one run share their rounds. Empty in old reports."""
        return unpacked(self.rounds_packed)

    def took_turns_with(self, other: LatencyReport) -> bool:
        """Whether rounds of the two are the same rounds, so that a ratio may be taken in each."""
        return self.turns == other.turns and len(self.rounds_ns) == len(other.rounds_ns) > 0

    @property
    def median_width(self) -> float:
        """Width of the median's interval as a fraction of the median."""
        return (self.median_high_ms - self.median_low_ms) / self.p50_ms if self.p50_ms else 0.0

    @property
    def median_ms(self) -> float:
        """`p50_ms` under the name that a prediction has for it."""
        return self.p50_ms

    @property
    def median_interval(self) -> tuple[float | None, float | None]:
        """Ends of the median's 95 % interval, under the name that a prediction has for what its error allows."""
        return self.median_low_ms, self.median_high_ms

    def percentile_ms(self, percentile: int) -> float:
        """One of the stored percentiles: 50, 90, 95 or 99."""
        return {50: self.p50_ms, 90: self.p90_ms, 95: self.p95_ms, 99: self.p99_ms}[percentile]


class PredictedLatency(Schema):
    """What a model says about an engine's latency on a device where it was not measured.

    It has no percentiles, no samples and no environment: whoever wants those has to measure.

    Attributes:
        origin: Always `predicted`.
        runtime: The runtime it speaks about.
        precision: Of weights and activations.
        threads: CPU threads it speaks about.
        batch: Images per inference.
        device: Name of the target.
        model: By what it was predicted, in words.
        median_ms: The typical latency.
        low_ms: Lower end of what the model's error allows; None where that is not known.
        high_ms: Upper end.
        level: Share of measurements between `low_ms` and `high_ms`.
        relative_error: Median relative error on networks that the model was not fitted to; None when unknown.
    """

    origin: Literal["predicted"] = "predicted"
    runtime: str
    precision: str
    threads: int
    batch: int = 1
    device: str
    model: str
    median_ms: float = Field(gt=0)
    low_ms: float | None = Field(default=None, ge=0)
    high_ms: float | None = None
    level: float | None = Field(default=None, gt=0, lt=1)
    relative_error: float | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _whole_interval(self) -> Self:
        if len({self.low_ms is None, self.high_ms is None, self.level is None}) > 1:
            raise ValueError("low_ms, high_ms and level belong together")
        if self.low_ms is not None and self.high_ms is not None and not self.low_ms <= self.median_ms <= self.high_ms:
            raise ValueError("the median must lie between low_ms and high_ms")
        return self

    @property
    def median_interval(self) -> tuple[float | None, float | None]:
        """`low_ms` and `high_ms` under the name that a measurement has for its own."""
        return self.low_ms, self.high_ms


Latency = LatencyReport | PredictedLatency
"""What is known of a latency; `origin` says which, `median_ms` orders them."""


class CandidateLatency(Schema):
    """One candidate in one runtime: a measured latency, a predicted one, or the reason why there is none.

    Attributes:
        failure_code: Exit code of the error behind `failure`; 5 says that the machine, not the candidate, was to blame.
        layers: Times of its layers, where they were asked for and the runtime tells them.
    """

    candidate: str
    runtime: str
    precision: str
    size_mib: float
    latency: LatencyReport | None = None
    prediction: PredictedLatency | None = None
    failure: str | None = None
    failure_code: int | None = None
    layers: LayerReport | None = None

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if sum(part is not None for part in (self.latency, self.prediction, self.failure)) != 1:
            raise ValueError("a candidate has either a latency, a prediction or a failure")
        return self

    @property
    def known(self) -> Latency | None:
        """The latency or the prediction; None where it failed."""
        return self.latency or self.prediction


class ProfileReport(Schema):
    """All candidates of a run, measured interleaved on one device.

    Attributes:
        device: Fingerprint of the device: model, cores, runtime versions.
        measured: False when the target is not at hand; then `entries` hold predictions or nothing.
        board: The device, where it was reached over ssh; accuracies were then counted here, on the same graphs.
    """

    schema_version: int = REPORT_SCHEMA_VERSION
    device: str
    measured: bool
    threads: tuple[int, ...]
    entries: tuple[CandidateLatency, ...]
    board: str | None = None


class Evaluation(Schema):
    """Accuracy of one candidate in one runtime on one split, with its 95 % Wilson interval.

    Attributes:
        metric: `top1` against labels; `agreement` with the teacher's top-1 where there are no labels; `outputs` where
            the model is no classifier: see `edgekd.runtimes.compare.NEAR_DB`.
        split: `select` (decisions are taken on it) or `test` (the verdict; nothing was chosen on it).
        value: In [0, 1].
        synthetic: Obtained on images generated from BatchNorm statistics, not on real ones.
    """

    candidate: str
    runtime: str
    split: Literal["select", "test"]
    metric: Metric
    value: float = Field(ge=0, le=1)
    low: float = Field(ge=0, le=1)
    high: float = Field(ge=0, le=1)
    n: int = Field(ge=1)
    synthetic: bool = False


class EvaluationReport(Schema):
    """What an evaluate node found."""

    schema_version: int = REPORT_SCHEMA_VERSION
    evaluations: tuple[Evaluation, ...]


class Budget(Schema):
    """What the user asked for; None means not asked.

    Attributes:
        max_latency_ms: Limit of the chosen percentile at batch 1.
        percentile: Which percentile the limit is for.
        max_drop: Largest loss of the metric against the teacher, in [0, 1].
        drop_type: `absolute` (0.01 is one point) or `relative` (0.01 is one percent of the teacher's value).
        max_size_mib: Limit of the deployed model file.
    """

    max_latency_ms: float | None = Field(default=None, gt=0)
    percentile: Literal[50, 90, 95, 99] = 50
    max_drop: float | None = Field(default=None, ge=0, le=1)
    drop_type: Literal["absolute", "relative"] = "absolute"
    max_size_mib: float | None = Field(default=None, gt=0)


class Choice(Schema):
    """Which candidate is deployed in which runtime, and why not each other one.

    Attributes:
        candidate: Node name of the chosen model.
        reason: One sentence.
        rejected: `candidate@runtime` to the reason.
        within_budget: Whether the choice keeps every limit that could be checked.
    """

    schema_version: int = REPORT_SCHEMA_VERSION
    candidate: str
    runtime: str
    precision: str
    reason: str
    rejected: dict[str, str] = Field(default_factory=dict)
    within_budget: bool


class Check(Schema):
    """One limit against one number.

    Attributes:
        low: Lower end of the interval of `value` that the status was read from; None where there is none.
        high: Upper end.
    """

    name: str
    status: Status
    value: float | None = None
    low: float | None = None
    high: float | None = None
    limit: float | None = None
    unit: str = ""
    origin: Origin = "measured"
    reason: str


class Verdict(Schema):
    """The answer CI acts on."""

    schema_version: int = REPORT_SCHEMA_VERSION
    status: Status
    reason: str
    checks: tuple[Check, ...] = ()
