"""What a rule is, where it looks, and the registry of rules.

A rule judges one thing on one graph, names each node it minds, and may know a repair. Rules read a `LintGraph`; those
that ask a runtime say so in what they find.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import onnx

from edgekd.core.registry import Registry
from edgekd.lint.finding import Finding, Severity
from edgekd.lint.view import LintGraph
from edgekd.targets.schema import Precision, Target


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a graph is judged for.

    Attributes:
        target: Name, for the report.
        runtimes: That the graph may run in.
        versions: Version range of each in words, as the card has it; empty where nothing is said.
        precisions: That the device offers.
        features: Instruction sets; empty when unknown.
        cpu: Inference runs on the processor.
        channel_multiple: Channel counts should be multiples of this.
        ranges: Largest magnitude by value name, seen on samples; None without samples.
        measures: Runtimes that are installed here may be asked what they make of the graph.
    """

    target: str
    runtimes: tuple[str, ...]
    versions: Mapping[str, str] = field(default_factory=dict)
    precisions: tuple[Precision, ...] = ("fp32", "fp16", "int8")
    features: tuple[str, ...] = ()
    cpu: bool = False
    channel_multiple: int = 1
    ranges: Mapping[str, float] | None = None
    measures: bool = True


def surroundings_of(
    target: Target, *, runtimes: tuple[str, ...] = (), ranges: Mapping[str, float] | None = None
) -> Surroundings:
    """Those of a card.

    Args:
        target: The card.
        runtimes: Of its runtimes, the ones to ask about; empty for all.
        ranges: Largest magnitude by value name, where samples were run.
    """
    chosen = [support for support in target.runtimes if not runtimes or support.runtime in runtimes]
    return Surroundings(
        target=target.name,
        runtimes=tuple(support.runtime for support in chosen),
        versions={support.runtime: support.versions for support in chosen},
        precisions=tuple(dict.fromkeys(p for support in chosen for p in support.precisions)),
        features=target.features,
        cpu=target.kind == "cpu",
        channel_multiple=target.channel_multiple,
        ranges=ranges,
    )


class Rule(ABC):
    """One thing that can be wrong with a graph. Stateless.

    Attributes:
        name: Registry key.
        severity: Of its findings, where they do not say otherwise.
        runtimes: It concerns; empty for any.
        summary: What it looks for, a clause for the table of `docs/lints.md`.
        why: What it costs, a sentence.
        fix: What to do, a sentence.
        repairs: It has a repair: `repair_` changes the graph so that at least some findings vanish.
        measures: It asks a runtime, which must be installed here.
    """

    name: ClassVar[str]
    severity: ClassVar[Severity]
    runtimes: ClassVar[frozenset[str]] = frozenset()
    summary: ClassVar[str]
    why: ClassVar[str]
    fix: ClassVar[str]
    repairs: ClassVar[bool] = False
    measures: ClassVar[bool] = False

    @abstractmethod
    def findings(self, graph: LintGraph, where: Surroundings) -> Iterator[Finding]:
        """What it minds; called only where `concerned` is not empty."""

    def repair_(self, model: onnx.ModelProto) -> list[str]:
        """Changes a graph in place so that it computes the same; a sentence for each change.

        Args:
            model: With distinct node names and without Constant nodes, as `normalised` gives it.
        """
        return []

    def concerned(self, where: Surroundings) -> tuple[str, ...]:
        """The runtimes of the surroundings that the rule is about."""
        return tuple(name for name in where.runtimes if not self.runtimes or name in self.runtimes)

    def finding(
        self,
        where: Surroundings,
        node: onnx.NodeProto | None,
        found: str,
        *,
        severity: Severity | None = None,
        why: str | None = None,
        fix: str | None = None,
        fixable: bool = False,
        macs_share: float | None = None,
        runtimes: tuple[str, ...] | None = None,
        measured: str = "",
    ) -> Finding:
        """A finding of this rule; what is not given is the rule's own."""
        return Finding(
            rule=self.name,
            severity=severity or self.severity,
            runtimes=self.concerned(where) if runtimes is None else runtimes,
            node="" if node is None else node.name,
            op="" if node is None else node.op_type,
            found=found,
            why=why or self.why,
            fix=fix or self.fix,
            fixable=fixable,
            macs_share=None if macs_share is None else min(macs_share, 1.0),
            measured=measured,
        )


LINTS: Registry[type[Rule]] = Registry(
    "lint",
    {
        "zero-point": "edgekd.lint.grids:ZeroPoint",
        "scale": "edgekd.lint.grids:Scale",
        "weight-axis": "edgekd.lint.grids:WeightAxis",
        "activation-per-channel": "edgekd.lint.grids:ActivationPerChannel",
        "integer-bias": "edgekd.lint.grids:IntegerBias",
        "saturating-weights": "edgekd.lint.grids:SaturatingWeights",
        "float-layer": "edgekd.lint.placement:FloatLayer",
        "requantized-weight": "edgekd.lint.requantized:RequantizedWeight",
        "residual-add": "edgekd.lint.residual:ResidualAdd",
        "concat-scales": "edgekd.lint.residual:ConcatScales",
        "cut-fusion": "edgekd.lint.placement:CutFusion",
        "missing-output-quantizer": "edgekd.lint.placement:MissingOutputQuantizer",
        "signed-after-relu": "edgekd.lint.placement:SignedAfterRelu",
        "sensitive-quantized": "edgekd.lint.sensitive:SensitiveQuantized",
        "output-quantized": "edgekd.lint.sensitive:OutputQuantized",
        "pool-in-float": "edgekd.lint.placement:PoolInFloat",
        "view-behind-dequantize": "edgekd.lint.views:ViewBehindDequantize",
        "quantized-twice": "edgekd.lint.views:QuantizedTwice",
        "batch-norm": "edgekd.lint.batch_norm:BatchNorm",
        "no-op": "edgekd.lint.structure:NoOp",
        "int64": "edgekd.lint.int64:Int64",
        "dynamic-axes": "edgekd.lint.structure:DynamicAxes",
        "channel-multiple": "edgekd.lint.structure:ChannelMultiple",
        "opset": "edgekd.lint.support:Opset",
        "unsupported-op": "edgekd.lint.support:UnsupportedOp",
        "float16-range": "edgekd.lint.support:Float16Range",
        "refused": "edgekd.lint.measured:Refused",
        "onnxruntime-float": "edgekd.lint.measured:OnnxRuntimeFloat",
        "openvino-float": "edgekd.lint.measured:OpenVinoFloat",
    },
)
