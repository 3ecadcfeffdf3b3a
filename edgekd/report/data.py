"""Everything the report shows, as plain data: the pipeline fills it in, the report only draws it.

No number is made here that is not in these fields or a difference or ratio of two of them.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, JsonValue

from edgekd.core.report import (
    REPORT_SCHEMA_VERSION,
    Budget,
    Choice,
    Evaluation,
    Latency,
    Origin,
    ProfileReport,
    Verdict,
)
from edgekd.core.schema import Schema


class Asked(Schema):
    """The question.

    Attributes:
        model: The file, and what it turned out to be: `digits.pt (edgekd:residual, 0.27 M parameters)`.
        target: Name and description of the device.
        data: What it was judged on; None without data.
        command: The command line that repeats the run.
        seed: Of the whole run.
    """

    model: str
    target: str
    data: str | None = None
    budget: Budget = Field(default_factory=Budget)
    command: str = ""
    seed: int = 0


class Step(Schema):
    """One model on the way from the teacher to the engine: what a stage made, and what that is worth.

    Attributes:
        name: For people: `Teacher`, `Distilled student`, `Pruned`, `INT8`.
        detail: One line under the name, such as `edgekd:residual 1-1-1, 16 wide` or the node's name.
        branch: Steps with one branch are drawn together.
        parent: `detail` of the step that this one is compared with: a twin's FP32 engine, or the FP32 engine of the
            model that this one was made from; empty for the teacher's FP32.
        model: Of which trained network this is an engine; the engines of one network are its precisions.
        accuracy: None when not evaluated. All steps of a report should use one split.
        size_mib: Of the model file.
        latency_ms: Median, at the thread count that was judged.
        latency_origin: Whether it was measured.
        runtime: Where the latency holds.
        seconds: What the stage took.
        reused: Taken from the store.
        chosen: This is what is deployed.
    """

    name: str
    detail: str = ""
    branch: str = ""
    parent: str = ""
    model: str = ""
    accuracy: Evaluation | None = None
    params_m: float | None = None
    macs_m: float | None = None
    size_mib: float | None = None
    latency_ms: float | None = None
    latency_origin: Origin = "measured"
    runtime: str = ""
    seconds: float | None = None
    reused: bool = False
    chosen: bool = False


class ParityRow(Schema):
    """How close an exported graph comes to the model that it was made from.

    Attributes:
        node: That made the graph.
        against: What it was compared with.
        samples: Images compared.
        origin: Whether they were real.
        max_abs: Largest absolute difference of logits.
        mean_abs: Mean absolute difference.
        cosine: Similarity of the logits.
        top1_agreement: Share of images with the same answer.
        sqnr_db: Signal to quantization noise of the logits; for quantized graphs.
    """

    node: str
    against: str
    samples: int
    origin: Literal["real", "synthetic", "random"] = "real"
    max_abs: float | None = None
    mean_abs: float | None = None
    cosine: float | None = None
    top1_agreement: float | None = None
    sqnr_db: float | None = None


class GraphNode(Schema):
    """One node of the compression graph, for the picture.

    Attributes:
        inputs: Names of the nodes and graph inputs (`@teacher`) it takes from.
        action: What happened to it.
        reasons: Why it ran or was reused.
        decisions: What it chose or substituted.
    """

    name: str
    stage: str
    inputs: tuple[str, ...] = ()
    action: Literal["run", "reuse", "maybe"] = "run"
    reasons: tuple[str, ...] = ()
    decisions: tuple[str, ...] = ()
    seconds: float | None = None


class DeliveredFile(Schema):
    """One file of the bundle."""

    path: str
    size_bytes: int = Field(ge=0)
    sha256: str


class StudentPoint(Schema):
    """One student that a search scored.

    Attributes:
        text: What it is.
        score: By the ranking of the search; higher is better.
        spread: Standard deviation that other seeds would give it.
        cost: In the unit of the search.
        front: No other student is better in score, cost and parameters alike.
        pick: 1 for the best one that went on; 0 for those that did not.
        reason: Why it was picked.
    """

    text: str
    score: float
    spread: float
    cost: float
    params_m: float
    macs_m: float
    front: bool = False
    pick: int = 0
    reason: str = ""


class FoundStudents(Schema):
    """What a search found, for its picture and table.

    Attributes:
        space: Name of the search space.
        ranking: What students were ranked by.
        predicted: Whether costs are predicted milliseconds; otherwise they are millions of multiply-accumulates.
        limit: Where the limit comes from.
        students: All scored ones.
        skipped: How many could not be scored.
        rejected: Proposals that were over the limit.
    """

    space: str
    ranking: str
    predicted: bool
    limit: str
    students: tuple[StudentPoint, ...]
    skipped: int
    rejected: int

    @property
    def picks(self) -> tuple[StudentPoint, ...]:
        """Best first."""
        return tuple(sorted((student for student in self.students if student.pick), key=lambda student: student.pick))


class CurveEngine(Schema):
    """The fastest engine of one precision of a network on a pruning curve.

    Attributes:
        low_ms: 95 % interval of the median; the median itself where nothing more is known.
        accuracy: On the split that the steps use, where the engine runs; None when not evaluated.
        chosen: It is what is deployed.
    """

    name: str
    precision: str
    runtime: str
    median_ms: float
    low_ms: float
    high_ms: float
    accuracy: Evaluation | None = None
    chosen: bool = False


class CurvePoint(Schema):
    """One network of a pruning curve.

    Attributes:
        kept: Share of the multiply-accumulates of the first network, in (0, 1].
        cut: 0 for the network before the first cut.
        engines: One per precision.
    """

    kept: float = Field(gt=0)
    cut: int = Field(ge=0)
    engines: tuple[CurveEngine, ...]


class PruningCurve(Schema):
    """A network and what was left of it after each cut, recovered, exported and timed.

    Attributes:
        name: Of what was cut: `Teacher`, `Student 2`.
        origin: Of the latencies.
        points: From the whole network to the smallest.
        missing: Numbers of the cuts that have no engine with a latency.
    """

    name: str
    origin: Origin = "measured"
    points: tuple[CurvePoint, ...] = Field(min_length=2)
    missing: tuple[int, ...] = ()


class ReportData(Schema):
    """A finished run.

    Attributes:
        title: `CIFAR-10 ResNet-56 for host`.
        created: ISO 8601 with time zone.
        version: Of edgekd.
        asked: The question.
        verdict: The answer.
        choice: What is deployed, and why not each other engine; None when nothing was chosen.
        steps: From the teacher (the first one, which the others are compared with) to what is deployed.
        search: The students that were scored; None without a search.
        curves: Of each network that was cut.
        profile: Latencies of all candidates; None when nothing was profiled.
        evaluations: Of all candidates, on both splits.
        reference: Candidate that stands for the teacher in `profile` and `evaluations`.
        chosen: Candidate name that the chosen engine was evaluated under on the `test` split; empty for its own name.
        parity: One row per exported graph.
        graph: All nodes in the order in which they ran.
        decisions: What the composition of the graph decided, before any node ran.
        environment: Machine, versions, anything that says where the numbers come from; nested mappings are fine.
        files: What `bundle/` holds.
        next_steps: What the reader may want to do now: commands, data to give, how to build on the device.
    """

    schema_version: int = REPORT_SCHEMA_VERSION
    title: str
    created: str
    version: str
    asked: Asked
    verdict: Verdict
    choice: Choice | None = None
    steps: tuple[Step, ...] = ()
    search: FoundStudents | None = None
    curves: tuple[PruningCurve, ...] = ()
    profile: ProfileReport | None = None
    evaluations: tuple[Evaluation, ...] = ()
    reference: str = ""
    chosen: str = ""
    parity: tuple[ParityRow, ...] = ()
    graph: tuple[GraphNode, ...] = ()
    decisions: tuple[str, ...] = ()
    environment: dict[str, JsonValue] = Field(default_factory=dict)
    files: tuple[DeliveredFile, ...] = ()
    next_steps: tuple[str, ...] = ()

    def evaluation(self, candidate: str, split: str, runtime: str | None = None) -> Evaluation | None:
        """The evaluation of a candidate on a split, in a runtime or in the first one that there is."""
        found = (e for e in self.evaluations if e.candidate == candidate and e.split == split)
        return next((e for e in found if runtime is None or e.runtime == runtime), None)

    def latency(self, candidate: str, runtime: str | None = None) -> Latency | None:
        """Of a candidate at the judged thread count, measured or predicted; without a runtime, its fastest."""
        if self.profile is None:
            return None
        found = [
            known
            for entry in self.profile.entries
            if (known := entry.known) is not None
            and entry.candidate == candidate
            and known.threads == self.profile.threads[0]
            and runtime in (None, entry.runtime)
        ]
        return min(found, key=lambda latency: latency.median_ms, default=None)
