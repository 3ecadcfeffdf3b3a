"""Runs a verb that does one thing to one model, and writes the result as a package that the next verb takes up."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.plan import NodeReport, Plan
from edgekd.core.runner import Runner, RunSettings
from edgekd.core.stage import Resource
from edgekd.core.store import LocalStore
from edgekd.data.dataset import Dataset
from edgekd.data.sources import load_dataset
from edgekd.export.card import CARD_FILE, CardFacts, model_card
from edgekd.export.deployment import Shipped, engine_entry, note_from_bundle
from edgekd.export.package import require_replaceable, write_package
from edgekd.export.sbom import MODEL_LICENSE, MODEL_NAME
from edgekd.nn.load import LoadedModel
from edgekd.pipeline.bundled import data_in_words, lasting
from edgekd.pipeline.classes import named, with_same_classes
from edgekd.pipeline.deliver import versions_here
from edgekd.pipeline.execute import Workspace, check_writable, rank
from edgekd.pipeline.request import ModelSource
from edgekd.pipeline.sources import arch_flags, describes_itself, model_from_source
from edgekd.pipeline.stages import STAGES
from edgekd.pipeline.verbs import MODEL, TEACHER, VerbRequest, graph_of
from edgekd.targets.load import load_target
from edgekd.train.reconcile import numbered

METRICS_FILE = "metrics.json"
METRICS_SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class VerbOutcome:
    """What a verb left behind.

    Attributes:
        main: Of the node that did what the verb says.
        decisions: Of all nodes, in their order.
        metrics: What the package's metrics.json holds, with the paths of this machine and how long the work took.
        folder: The package.
        next_steps: (what it does, command).
    """

    main: NodeReport
    decisions: tuple[str, ...]
    metrics: Mapping[str, Any]
    folder: Path
    next_steps: tuple[tuple[str, str], ...]


class VerbRun:
    """One request in a workspace, opened and drawn as a graph: look at its plan, then execute it.

    Args:
        workspace: Where; its `out` becomes the package.
        request: What was asked.

    Raises:
        UserError: Models, data or a target that cannot be used or do not fit, or a place that holds other things.
    """

    def __init__(self, workspace: Workspace, request: VerbRequest) -> None:
        self.workspace = workspace
        self.request = request
        require_replaceable(workspace.out)
        check_writable(workspace.out.parent, workspace.store)
        self.store = LocalStore(workspace.store)
        self.target = None if request.target is None else load_target(request.target)
        model = model_from_source(request.model, self.store, workspace.reporter, seed=request.seed)
        self._license = request.model.license or model.license
        self._inputs = {MODEL: model.bundle, **self._teachers(model)}
        self._dataset = self._data()
        self._drawn = graph_of(request, self._inputs, self._dataset, self.target)
        self._say_if_foreign()

    def plan(self) -> Plan:
        """What `execute` would do, and why; changes nothing."""
        return self._runner().plan(self._drawn.graph, self._inputs, self._settings())

    def execute(self) -> VerbOutcome | None:
        """Runs the stages and writes the package; None on the ranks of a distributed run that follow.

        Raises:
            EdgekdError: What a stage raised; everything finished before it is kept.
        """
        run = self._runner().run(self._drawn.graph, self._inputs, self._settings())
        if rank() > 0:
            return None
        decisions = tuple(sentence for node in run.nodes for sentence in node.decisions)
        metrics = {
            "schema_version": METRICS_SCHEMA_VERSION,
            "request": self.request.plain(),
            "stages": {node.name: node.metrics for node in run.nodes},
            "decisions": list(decisions),
        }
        result = run.bundle(self._drawn.result)
        self._write(result, metrics, decisions)
        return VerbOutcome(
            main=run.node(self._drawn.main),
            decisions=decisions,
            metrics=metrics,
            folder=self.workspace.out,
            next_steps=self._next_steps(result),
        )

    def _say_if_foreign(self) -> None:
        """Says it when an engine is asked for that the device's card does not run; it may be meant for another one."""
        target, runtime = self.target, self.request.convert_to
        if runtime and target is not None and not target.measured_here and target.support(runtime) is None:
            runs = ", ".join(support.runtime for support in target.runtimes)
            self.workspace.reporter.message(
                f"The card of {target.name} does not name {runtime}; it runs {runs}.", level="warning"
            )

    def _write(self, result: ModelBundle, metrics: Mapping[str, Any], decisions: tuple[str, ...]) -> None:
        """Writes the package; the same request gives the same bytes, wherever its files lie and whenever it ran."""
        facts = self._facts()
        chosen = None
        if result.kind is not BundleKind.TORCH and self.target is not None:
            chosen = Shipped(bundle=result, note=note_from_bundle(result, self.target))
        card = CardFacts(
            bundle=result,
            target=self.target if chosen else None,
            engines=(engine_entry(chosen, self.store.blobs, chosen=True),) if chosen else (),
            facts=facts,
            data=data_in_words(self.request.data, self._dataset),
            decisions=decisions,
        )
        kept = {**metrics, "request": _without_folders(metrics["request"]), "stages": lasting(metrics["stages"])}
        write_package(
            result,
            self.store.blobs,
            self.workspace.out,
            target=self.target,
            versions=versions_here(),
            extra=facts,
            texts={METRICS_FILE: json.dumps(kept, indent=1) + "\n", CARD_FILE: model_card(card)},
            chosen=chosen,
        )

    def _teachers(self, model: LoadedModel) -> dict[str, ModelBundle]:
        first = () if self.request.teacher is None else (self.request.teacher,)
        names = (TEACHER, *(f"{TEACHER}-{number}" for number in range(2, len(self.request.also) + 2)))
        return {
            name: self._teacher(source, model)
            for name, source in zip(names, (*first, *self.request.also), strict=False)
        }

    def _teacher(self, source: ModelSource, model: LoadedModel) -> ModelBundle:
        if not describes_itself(source) and not (source.arch or "").startswith("timm:"):
            # A bare state dict does not say what images it was trained on; a teacher sees what its student sees.
            source = source.model_copy(update={"preprocessing": model.bundle.model.preprocessing})
        return model_from_source(source, self.store, self.workspace.reporter, seed=self.request.seed).bundle

    def _data(self) -> Dataset | None:
        """The data, its classes in the order of the model; where it has no names, in that of the teacher.

        Who has no names takes them over. Another order of the teacher's is turned where it answers
        (`edgekd.train.reconcile`).
        """
        if self.request.data is None:
            return None
        knows = TEACHER if TEACHER in self._inputs and numbered(self._inputs[MODEL].model.labels) else MODEL
        dataset = load_dataset(self.request.data, seed=self.request.seed, unlabelled=self.request.unlabelled)
        self._inputs[knows], dataset = with_same_classes(self._inputs[knows], dataset)
        labels = self._inputs[knows].model.labels
        self._inputs = {name: named(bundle, labels) for name, bundle in self._inputs.items()}
        return dataset

    def _facts(self) -> dict[str, str]:
        facts = {
            "verb": self.request.verb,
            MODEL_NAME: Path(self.request.model.path).name,
            "seed": str(self.request.seed),
        }
        if self._license is not None:
            facts[MODEL_LICENSE] = self._license
        if self._dataset is not None:
            facts["data"] = self._dataset.own_digest
        return facts

    def _next_steps(self, result: ModelBundle) -> tuple[tuple[str, str], ...]:
        out, data = str(self.workspace.out), self.request.data or "DATA"
        if result.kind is not BundleKind.TORCH:
            measure = ("Measure it", shlex.join(["edgekd", "profile", out]))
            if result.kind is not BundleKind.ONNX:
                return (measure,)  # inspect reads graphs
            look = ["edgekd", "inspect", out, "--target", self.request.target or "host"]
            return ("See what the device makes of it", shlex.join(look)), measure
        steps = []
        if self.request.verb == "prune":
            recover = ["edgekd", "distill", out, "--teacher", self.request.model.path, "--data", data]
            flags = [*arch_flags(result.model), *_teacher_arch_flags(self)]
            steps.append(("Let it recover, taught by the whole network", shlex.join([*recover, *flags])))
        compress = ["edgekd", "quantize", out, "--target", self.request.target or "host", "--data", data]
        named = [*compress, *arch_flags(result.model), "-o", f"{out}-int8"]
        steps.append(("Quantize it for a device", shlex.join(named)))
        return tuple(steps)

    def _runner(self) -> Runner:
        return Runner(STAGES, self.store, role="follower" if rank() > 0 else "leader")

    def _settings(self) -> RunSettings:
        resources: dict[str, Resource] = {}
        if self.target is not None:
            resources["target"] = self.target
        if self._dataset is not None:
            resources["data"] = self._dataset
        return RunSettings(
            seed=self.request.seed,
            resources=resources,
            execution=self.workspace.execution,
            reporter=self.workspace.reporter,
            rebuild=self.workspace.rebuild,
        )


def _without_folders(value: Any) -> Any:
    """Plain data whose absolute paths are only their last part: a package says nothing of the machine it comes from."""
    if isinstance(value, dict):
        return {key: _without_folders(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_folders(inner) for inner in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _teacher_arch_flags(run: VerbRun) -> list[str]:
    """The flags that say of a teacher what was said of the model."""
    source = run.request.model
    flags = [] if source.arch is None else ["--teacher-arch", source.arch]
    for name, value in source.arch_kwargs.items():
        flags += ["--teacher-arch-arg", f"{name}={json.dumps(value)}"]
    return flags
