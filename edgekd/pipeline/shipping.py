"""Which engines a run hands over beside the chosen one, and what is told of each.

The chosen engine runs where it was chosen to run. A device may lack that runtime, have another version of it, or refuse
the engine; a package that then has nothing else is of no use. So its twins go along, engines of the same trained
weights, which give the same answers but for precision. Engines of other networks stay behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.deployment import DeployedLatency
from edgekd.core.report import Budget, CandidateLatency, Latency
from edgekd.export.deployment import EngineNote, Shipped, runtimes_for
from edgekd.gate.candidates import Row, limit_missed, rows_from_profile
from edgekd.gate.choose import unfit_int8
from edgekd.gate.stage import candidate_from_bundle, runtime_by_precision
from edgekd.pipeline.compose import FINAL
from edgekd.pipeline.request import BundleEngines
from edgekd.pipeline.results import Results
from edgekd.pipeline.steps import trained_source
from edgekd.runtimes.engines.settings import INT8_FP16
from edgekd.runtimes.formats import model_files
from edgekd.targets.schema import Target

FULL = "fp32"


@dataclass(frozen=True, kw_only=True)
class Shipment:
    """What goes into the package.

    Attributes:
        chosen: The engine that was chosen.
        twins: The others, best first.
        nodes: Names of the nodes that made them, the chosen one's first.
    """

    chosen: Shipped
    twins: tuple[Shipped, ...] = ()

    @property
    def nodes(self) -> tuple[str, ...]:
        return (self.chosen.note.name, *(twin.note.name for twin in self.twins))


def shipment_of(results: Results, target: Target, wanted: BundleEngines) -> Shipment:
    """The engines to hand over.

    The rule for the twins, each of the chosen engine's weights: the FP32 graph always, for it runs everywhere and the
    others are compared with it; for every runtime that was measured, the fastest engine that keeps the limits there,
    if that is not the chosen one; where nothing was measured, one engine of each other precision; and for each native
    engine the graph that it was built from. An engine that must not be deployed (too inaccurate, or INT8 that is slower
    than its twin) is left out.

    Args:
        results: Of a finished run.
        target: The device.
        wanted: `twins`, or `chosen` alone where every MiB counts.
    """
    family = _Family(results, target)
    chosen = Shipped(bundle=results.chosen_bundle, note=family.note(results.choice.candidate, results.choice.reason))
    if wanted == "chosen":
        return Shipment(chosen=chosen)
    reasons = family.twins()
    reasons |= {
        source: f"the graph that {name} was built from"
        for name in (chosen.note.name, *reasons)
        if (source := family.source(name)) is not None and source not in reasons
    }
    seen = {_content(chosen.bundle)}
    twins = []
    for name, reason in reasons.items():
        bundle = results.run.bundle(name)
        if name != chosen.note.name and _content(bundle) not in seen:
            seen.add(_content(bundle))
            twins.append(Shipped(bundle=bundle, note=family.note(name, reason)))
    return Shipment(chosen=chosen, twins=tuple(twins))


class _Family:
    """The engines of the chosen one's weights, and which of them may be deployed in which runtime.

    Args:
        results: Of the run.
        target: The device.
    """

    def __init__(self, results: Results, target: Target) -> None:
        self.results, self.target = results, target
        self.graph = {node.name: node for node in results.graph.nodes}
        model = trained_source(self.graph[results.choice.candidate], self.graph)
        listed = self.graph[FINAL].inputs["candidates"]
        self.names = [name for name in listed if trained_source(self.graph[name], self.graph) == model]
        self.fit = self._fit()

    def twins(self) -> dict[str, str]:
        """The reason why each twin goes along, best first."""
        reasons: dict[str, str] = {}
        chosen = self.results.choice
        runtimes = dict.fromkeys(row.runtime for row in self.fit)
        for runtime in runtimes if self.results.profile.measured else ():
            best = next(row for row in self.fit if row.runtime == runtime)
            if runtime != chosen.runtime and best.candidate.name != chosen.candidate:
                reasons.setdefault(best.candidate.name, f"the fastest engine that keeps the limits in {runtime}")
        full = next((name for name in self.names if self._precision(name) == FULL), None)
        if full is not None:
            reasons.setdefault(full, "the FP32 engine of the same weights, which the others are compared with")
        for name in () if self.results.profile.measured else self.names:
            if self._form(name) not in map(self._form, (*reasons, chosen.candidate)):
                reasons[name] = "not measured on the target, so not known to be faster there"
        return reasons

    def source(self, name: str) -> str | None:
        """The graph that a native engine was built from; None for a graph, and for what was converted from a module."""
        if self.results.run.bundle(name).kind is not BundleKind.ENGINE:
            return None
        made_of = self.graph[name].inputs["model"][0]
        graph = made_of in self.graph and self.results.run.bundle(made_of).kind is BundleKind.ONNX
        return made_of if graph else None

    def note(self, name: str, reason: str) -> EngineNote:
        """What `deploy.json` tells of an engine."""
        results, chosen = self.results, name == self.results.choice.candidate
        runtimes = self._runtimes(name, results.choice.runtime if chosen else None)
        evaluation = results.accuracy(name, "select", runtimes[0]) or results.accuracy(name, "select")
        judged = evaluation is not None and evaluation.metric == "top1" and not evaluation.synthetic
        built_from = self.source(name)
        return EngineNote(
            name=name,
            runtimes=runtimes,
            threads=results.profile.threads[0],
            reason=reason.removesuffix("."),
            latency=self._latency(name, runtimes[0]),
            accuracy=evaluation.value if evaluation is not None and judged else None,
            source=built_from,
        )

    def _fit(self) -> list[Row]:
        """Rows that may be deployed and keep every limit but latency, the fastest first."""
        results = self.results
        select = self.graph[FINAL].config
        budget = Budget.parse(select.get("budget", {}), f"{FINAL}: budget")
        named = [(name, results.run.bundle(name)) for name in self.names]
        candidates = [replace(candidate_from_bundle(name, bundle), family="chosen") for name, bundle in named]
        evaluations = [found for found in results.evaluations if found.split == "select"]
        by_precision = runtime_by_precision(self.target)
        profile, reference = results.profile, results.reference
        rows = rows_from_profile(candidates, profile, evaluations, budget, reference, by_precision)
        limits = {row.name: limit_missed(row, budget, evaluated=bool(evaluations)) for row in rows}
        # A twin steps in where the other runtimes are missing, so INT8 has to be better than its twins in its own one.
        rivals = {row.name: [other for other in rows if other.runtime == row.runtime] for row in rows}
        fit = [row for row in rows if limits[row.name] is None]
        fit = [row for row in fit if unfit_int8(row, rivals[row.name], limits, budget) is None]
        return sorted(fit, key=lambda row: (row.latency.median_ms if row.latency else float("inf"), row.name))

    def _runtimes(self, name: str, first: str | None) -> tuple[str, ...]:
        """Where an engine should run, the best first; full precision runs anywhere besides."""
        bundle = self.results.run.bundle(name)
        anywhere = runtimes_for(bundle, self.target, first)
        if bundle.kind is BundleKind.ENGINE or not self.results.profile.measured:
            return anywhere
        measured = [row.runtime for row in self.fit if row.candidate.name == name]
        ordered = [*([first] if first is not None else []), *measured]
        more = anywhere if self._precision(name) == FULL or not ordered else ()
        return tuple(dict.fromkeys([*ordered, *more]))

    def _latency(self, name: str, runtime: str) -> DeployedLatency | None:
        profile = self.results.profile
        known = _first(profile.entries, name, runtime if profile.measured else None, profile.threads[0])
        if known is None:
            return None
        device = known.device if known.origin == "predicted" else profile.board or profile.device
        p99_ms = known.p99_ms if known.origin == "measured" else None
        return DeployedLatency(median_ms=known.median_ms, p99_ms=p99_ms, origin=known.origin, device=device)

    def _form(self, name: str) -> tuple[str, bool]:
        """Of what one goes along where nothing is measured: a precision, and INT8 for TensorRT 10 beside that for 8."""
        return self._precision(name), self.results.run.bundle(name).tags.get("scheme") == INT8_FP16

    def _precision(self, name: str) -> str:
        return str(self.results.run.bundle(name).tags.get("precision", FULL))


def _first(entries: Sequence[CandidateLatency], name: str, runtime: str | None, threads: int) -> Latency | None:
    """The latency of an engine at a thread count, in one runtime or in the first one."""
    fitting = (entry for entry in entries if entry.candidate == name and runtime in (None, entry.runtime))
    return next((entry.known for entry in fitting if entry.known and entry.known.threads == threads), None)


def _content(bundle: ModelBundle) -> frozenset[str]:
    """Equal for engines whose model files are the same bytes."""
    return frozenset(bundle.file(name) for name in model_files(bundle))
