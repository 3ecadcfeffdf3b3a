"""A graph together with everything a run needs beside it, checked once, and the bundles it has so far.

The runner walks it. What a node's key is made of, and what its stage gets to see, is decided here and nowhere else, so
that the two agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgekd.core.blobs import Blobs
from edgekd.core.bundle import ModelBundle
from edgekd.core.digest import Digest
from edgekd.core.events import Reporter, SilentReporter
from edgekd.core.graph import ALL, Graph, StageRegistry, Step, validate_graph
from edgekd.core.record import InputRef, RunKey
from edgekd.core.schema import suggest
from edgekd.core.stage import Context, Execution, Inputs, Resource
from edgekd.errors import UserError


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What a run has beside its graph and the bundles it starts from.

    Attributes:
        seed: The only source of randomness.
        resources: What stages may name in `reads`.
        execution: Device and threads; not part of any key.
        reporter: Where progress goes.
        rebuild: Names of nodes to run although their result is known, from the start and not from a checkpoint;
            `all` stands for every node.
    """

    seed: int = 0
    resources: Mapping[str, Resource] = field(default_factory=dict)
    execution: Execution = field(default_factory=Execution)
    reporter: Reporter = field(default_factory=SilentReporter)
    rebuild: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Walk:
    """What stays the same on the way through a graph, and the bundles that are known so far.

    Attributes:
        steps: In the order they run.
        digests: Of the resources that some stage reads.
        known: Bundles by source: `@teacher`, or the name of a finished node.
    """

    steps: tuple[Step, ...]
    settings: RunSettings
    digests: Mapping[str, Digest]
    known: dict[str, ModelBundle]

    @classmethod
    def begin(
        cls, graph: Graph, stages: StageRegistry, inputs: Mapping[str, ModelBundle], settings: RunSettings
    ) -> Walk:
        """A walk that knows the graph's inputs.

        Raises:
            UserError: The graph is not valid, or its inputs, the resources or the nodes to rebuild do not fit it.
        """
        steps = validate_graph(graph, stages)
        _check_inputs(graph, inputs)
        _check_settings(steps, settings)
        read = {name for step in steps for name in step.stage.resources_read()}
        return cls(
            steps=steps,
            settings=settings,
            digests={name: settings.resources[name].digest for name in sorted(read)},
            known={f"@{name}": bundle for name, bundle in inputs.items()},
        )

    def scout(self) -> Walk:
        """A copy that may learn what this one must not know yet."""
        return replace(self, known=dict(self.known))

    def waits_for(self, step: Step) -> list[str]:
        """The step's sources that are not known yet."""
        return [source for source in step.node.sources if source not in self.known]

    def rebuilds(self, step: Step) -> bool:
        """Whether the step must run although its result is known."""
        return bool(self.settings.rebuild & {step.name, ALL})

    def key(self, step: Step) -> RunKey:
        """The step's key; ports with a source that is not known yet are left out."""
        refs = {
            port: tuple(
                InputRef(source=s, content=self.known[s].content, name=_visible_name(step, port, s)) for s in sources
            )
            for port, sources in step.node.inputs.items()
            if sources and all(source in self.known for source in sources)
        }
        return RunKey(
            stage=step.stage.name,
            version=step.stage.version,
            config=step.stage.config.plain(),
            inputs=refs,
            resources={name: self.digests[name] for name in sorted(step.stage.resources_read())},
            seed=self.settings.seed,
        )

    def inputs(self, step: Step) -> Inputs:
        """The bundles that the stage gets."""
        return Inputs(
            {
                port: tuple((_visible_name(step, port, source) or port, self.known[source]) for source in sources)
                for port, sources in step.node.inputs.items()
            }
        )

    def context(self, step: Step, *, scratch: Path, blobs: Blobs) -> Context:
        """What else the stage gets: only the resources that it declares."""
        return Context(
            scratch=scratch,
            seed=self.settings.seed,
            reporter=self.settings.reporter,
            blobs=blobs,
            resources={name: self.settings.resources[name] for name in step.stage.resources_read()},
            execution=self.settings.execution,
        )


def _visible_name(step: Step, port: str, source: str) -> str | None:
    return source.removeprefix("@") if step.stage.ports[port].shows_names else None


def _check_inputs(graph: Graph, inputs: Mapping[str, ModelBundle]) -> None:
    for name in inputs:
        if name not in graph.inputs:
            raise UserError(f"The graph has no input {name!r}.{suggest(name, graph.inputs)}")
    for name, kind in graph.inputs.items():
        if name not in inputs:
            raise UserError(f"The graph's input {name!r} ({kind}) was not given.")
        if inputs[name].kind is not kind:
            raise UserError(f"The graph's input {name!r} takes {kind}, got a {inputs[name].kind} bundle.")


def _check_settings(steps: tuple[Step, ...], settings: RunSettings) -> None:
    names = [step.name for step in steps]
    for name in sorted(settings.rebuild - {ALL}):
        if name not in names:
            raise UserError(
                f"Cannot rebuild {name!r}: no such node.{suggest(name, names)}", hint=f"nodes: {', '.join(names)}"
            )
    for step in steps:
        for name in sorted(step.stage.resources_read() - settings.resources.keys()):
            have = ", ".join(sorted(settings.resources)) or "none"
            raise UserError(
                f"Node {step.name!r} (stage {step.node.stage!r}) reads the resource {name!r}, which this run does not "
                f"have (it has: {have})."
            )
