"""One benchmark in a workspace: opened and drawn as a graph, planned, or carried out and written down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from edgekd import __version__
from edgekd.core.agreement import AnswersReport
from edgekd.core.benchmark import BenchmarkReport
from edgekd.core.bundle import FORMAT_TAG, BundleKind, ModelBundle
from edgekd.core.deployment import FINGERPRINT_FILE
from edgekd.core.graph import Graph, Node
from edgekd.core.plan import NodeReport, Plan
from edgekd.core.report import Budget, ProfileReport
from edgekd.core.report_io import REPORT_FILE, schema_from_json
from edgekd.core.runner import Runner, RunSettings
from edgekd.core.stage import Resource
from edgekd.core.store import LocalStore
from edgekd.data.dataset import Dataset
from edgekd.data.sources import load_dataset
from edgekd.errors import DeviceUnavailable, EdgekdError
from edgekd.export.archive import is_packed, open_package
from edgekd.export.package import Package
from edgekd.pipeline.benchmark.draft import MODEL, PROFILE, Contest, classifies, contest_of
from edgekd.pipeline.benchmark.each import Outcomes, run_each
from edgekd.pipeline.benchmark.files import BENCHMARK_FILE, PAGE_FILE, check_benchmark_output, write_json
from edgekd.pipeline.benchmark.request import BenchmarkRequest
from edgekd.pipeline.benchmark.rows import Findings, choice_of, rows_of
from edgekd.pipeline.classes import named, with_same_classes
from edgekd.pipeline.deliver import versions_here
from edgekd.pipeline.execute import Workspace, check_writable
from edgekd.pipeline.request import SYNTHETIC
from edgekd.pipeline.single import Origin
from edgekd.pipeline.sources import opened
from edgekd.pipeline.stages import STAGES
from edgekd.profiling.environment import fingerprint, machine
from edgekd.report.benchmark import write_benchmark
from edgekd.targets.load import load_target


@dataclass(frozen=True, kw_only=True)
class BenchmarkOutcome:
    """What a benchmark left behind.

    Attributes:
        report: All numbers; the file leaves out single timings that `rounds_packed` repeats.
        file: The JSON.
        page: The HTML.
        engines: Those that could be made, by name, with their files in the store.
    """

    report: BenchmarkReport
    file: Path
    page: Path
    engines: Mapping[str, ModelBundle]


class BenchmarkRun:
    """One request in a workspace, opened and drawn: look at its plan, then execute it.

    Args:
        workspace: Where; its `out` takes the JSON and the page.
        request: What was asked.

    Attributes:
        notes: What was assumed of the model and the data.

    Raises:
        UserError: A model, data, target or runtime that cannot be used, or an output folder that holds other things.
        DeviceUnavailable: The target is not this machine: there is nothing to measure on.
    """

    def __init__(self, workspace: Workspace, request: BenchmarkRequest) -> None:
        self.workspace, self.request = workspace, request
        check_benchmark_output(workspace.out)
        check_writable(workspace.out, workspace.store)
        self.store = LocalStore(workspace.store)
        self.target = load_target(request.target)
        if not self.target.measured_here:
            raise DeviceUnavailable(
                f"A benchmark measures, and this machine is not {self.target.name}.",
                hint="run it on the device itself; --target host measures this machine, and `edgekd compress --device "
                "ssh://USER@HOST` measures engines on a board",
            )
        self.notes: list[str] = []
        self._origin = Origin()
        self.given = self._opened()
        self._dataset = self._data()
        self.contest: Contest = contest_of(request, self.given, self._dataset, self.target)

    def plan(self) -> Plan:
        """What `execute` would do, and why; changes nothing. The latencies come last and are always measured anew."""
        graph = self.contest.graph
        candidates = tuple(dict.fromkeys(contestant.node for contestant in self.contest.contestants))
        nodes = graph.nodes
        if candidates:
            nodes = (*nodes, self._profile_node(candidates, self._pairs({})))
        whole = Graph(inputs=graph.inputs, nodes=nodes)
        return self._runner().plan(whole, self.given, self._settings())

    def execute(self) -> BenchmarkOutcome:
        """Makes the engines, lets them answer, measures them, and writes both files.

        An engine that cannot be made, fails or is wrong is a row with the reason; everything that was finished before
        an interruption is reused by the next call.

        Raises:
            UserError: The store is in use, or the files cannot be written.
        """
        with self.store.lock():
            pass  # found out now, and not in every row
        outcomes = run_each(self._runner(), self.contest.graph, self.given, self._settings())
        answers = self._answers(outcomes)
        profile, unmeasured, notes = self._profile(outcomes, answers)
        found = Findings(
            contest=self.contest,
            outcomes=outcomes,
            answers=answers,
            profile=profile,
            unmeasured=unmeasured,
            threads=self.request.threads,
            budget=Budget(max_drop=self.request.max_drop),
        )
        choice, no_choice = choice_of(found)
        report = BenchmarkReport(
            model=self._described(),
            target=f"{self.target.name}: {self.target.description}",
            device=profile.device if profile is not None else fingerprint(machine(), {}),
            data=self._data_described(answers),
            reference=self._reference(),
            threads=self.request.threads,
            max_drop=self.request.max_drop,
            seed=self.request.seed,
            versions=versions_here(),
            rows=rows_of(found, choice),
            choice=choice,
            no_choice=no_choice,
            decisions=(*self.notes, *self.contest.decisions, *_said(outcomes)),
            notes=notes,
            profile=profile,
            answers=tuple(answers.values()),
        )
        file, page = self.workspace.out / BENCHMARK_FILE, self.workspace.out / PAGE_FILE
        write_json(report, file)
        write_benchmark(report, page, created=datetime.now(UTC).isoformat(timespec="seconds"), version=__version__)
        return BenchmarkOutcome(report=report, file=file, page=page, engines=self._engines(outcomes))

    @property
    def model(self) -> ModelBundle:
        """The model, or the first of its finished engines."""
        return next(iter(self.given.values()))

    def _opened(self) -> dict[str, ModelBundle]:
        """The model to make engines of, or the finished engines of a package by name."""
        path = Path(self.request.model.path)
        if path.is_dir() or is_packed(path):
            with open_package(path) as package:
                facts = package.manifest.facts
                self._origin = Origin.parse({k: facts[k] for k in Origin.model_fields if k in facts}, str(path))
                engines = engines_of(package)
                if len(engines) > 1 or any(bundle.kind is BundleKind.ENGINE for bundle in engines.values()):
                    for digest in {digest for bundle in engines.values() for digest in bundle.files.values()}:
                        self.store.blobs.add(package.files.path(digest))
                    return engines
        loaded = opened(self.request.model, self.store, seed=self.request.seed)
        self.notes += loaded.notes
        return {MODEL: loaded.bundle}

    def _data(self) -> Dataset | None:
        if self.request.data in (None, SYNTHETIC):
            return None
        dataset = load_dataset(str(self.request.data), seed=self.request.seed)
        self.notes += dataset.decisions
        if classifies(self.model):
            # Engines of one model have one order of classes.
            known, dataset = with_same_classes(self.model, dataset)
            self.given = {name: named(bundle, known.model.labels) for name, bundle in self.given.items()}
        elif dataset.labelled:
            self.notes.append("The model does not classify, so the labels are not used: outputs are compared.")
        if self._origin.data not in (None, dataset.digest):
            self.notes.append(
                f"These are other data, or another split of them (here seed {self.request.seed}, there "
                f"{self._origin.seed}), than the package was made with: images that it was trained on may be among "
                "those answered, which flatters it."
            )
        return dataset

    def _answers(self, outcomes: Outcomes) -> dict[tuple[str, str], AnswersReport]:
        found = {}
        for contestant in self.contest.contestants:
            for runtime in contestant.runtimes:
                report = outcomes.get(contestant.answers(runtime))
                if isinstance(report, NodeReport):
                    path = self.store.blobs.path(report.bundle.file(REPORT_FILE))
                    found[contestant.name, runtime] = schema_from_json(path, AnswersReport, report.name)
        return found

    def _profile(
        self, outcomes: Outcomes, answers: Mapping[tuple[str, str], AnswersReport]
    ) -> tuple[ProfileReport | None, str, tuple[str, ...]]:
        """The latencies, why there are none, and what disturbed them. An engine that cannot answer is not timed."""
        pairs = self._pairs(answers) if answers else {}
        bundles = {name: bundle for name, bundle in self._engines(outcomes).items() if name in pairs}
        if not bundles:
            return None, "no engine could be made that answers", ()
        node = self._profile_node(tuple(f"@{name}" for name in bundles), pairs)
        graph = Graph(inputs={name: bundle.kind for name, bundle in bundles.items()}, nodes=(node,))
        try:
            report = self._runner().run(graph, bundles, self._settings(rebuild=False)).node(PROFILE)
        except EdgekdError as err:
            return None, f"nothing could be measured: {err.message}", ()
        path = self.store.blobs.path(report.bundle.file(REPORT_FILE))
        return schema_from_json(path, ProfileReport, PROFILE), "", report.decisions

    def _engines(self, outcomes: Outcomes) -> dict[str, ModelBundle]:
        """Those that were made, and the model itself where it takes part as it is."""
        found = {}
        for contestant in self.contest.contestants:
            made = outcomes.get(contestant.node)
            if isinstance(made, NodeReport):
                found[contestant.name] = made.bundle
            elif contestant.node.startswith("@"):
                found[contestant.name] = self.given[contestant.node[1:]]
        return found

    def _pairs(self, answers: Mapping[tuple[str, str], AnswersReport]) -> dict[str, tuple[str, ...]]:
        """The runtimes of each engine; with answers, only those in which it answered."""
        pairs = {
            c.name: tuple(name for name in c.runtimes if not answers or (c.name, name) in answers)
            for c in self.contest.contestants
        }
        return {name: runtimes for name, runtimes in pairs.items() if runtimes}

    def _profile_node(self, sources: tuple[str, ...], pairs: Mapping[str, tuple[str, ...]]) -> Node:
        request = self.request
        runtimes = dict.fromkeys(name for names in pairs.values() for name in names)
        return Node(
            name=PROFILE,
            stage="profile",
            config={
                "runtimes": list(runtimes),
                "pairs": {name: list(names) for name, names in pairs.items()},
                "threads": list(request.threads),
                "warmup_s": request.warmup_s,
                "duration_s": request.duration_s,
                "precision": request.precision,
                "limit_s": request.limit_s,
            },
            inputs={"candidates": sources},
        )

    def _described(self) -> str:
        tags, name = self.model.tags, Path(self.request.model.path).name
        precision = "" if self.model.kind is BundleKind.TORCH else f", {tags.get('precision', 'fp32')}"
        return f"{name} ({self.model.format}{precision})"

    def _data_described(self, answers: Mapping[tuple[str, str], AnswersReport]) -> str:
        counted = next((report.images for report in answers.values()), None)
        if self._dataset is not None:
            kind = f"{len(self._dataset.classes)} classes" if self._dataset.labelled else "no labels"
            held = len(self._dataset.select) + len(self._dataset.test)
            shown = min(self.request.images, held) if counted is None else counted
            return f"{self._dataset.name} ({kind}): {shown} of {held} held-out images are answered by every engine"
        if self.request.data == SYNTHETIC:
            return "images made from the model's BatchNorm statistics: they say nothing of accuracy"
        return "noise: it shows whether engines compute the same function, and says nothing of accuracy"

    def _reference(self) -> str:
        if self.contest.reference is None:
            return ""
        contestant, runtime = self.contest.reference
        return f"{contestant.name}@{runtime}"

    def _runner(self) -> Runner:
        return Runner(STAGES, self.store)

    def _settings(self, *, rebuild: bool = True) -> RunSettings:
        resources: dict[str, Resource] = {"target": self.target}
        if self._dataset is not None:
            resources["data"] = self._dataset
        return RunSettings(
            seed=self.request.seed,
            resources=resources,
            execution=self.workspace.execution,
            reporter=self.workspace.reporter,
            rebuild=self.workspace.rebuild if rebuild else frozenset(),
        )


def engines_of(package: Package) -> dict[str, ModelBundle]:
    """The engines in a package by name, best first; empty where there is nothing to run."""
    found = {}
    for engine in package.deployment.engines if package.deployment is not None else ():
        kind = BundleKind.ONNX if engine.format == "onnx" else BundleKind.ENGINE
        tags = {"precision": engine.precision, "scheme": engine.scheme}
        files = {name: package.manifest.files[path] for name, path in engine.files.items()}
        if engine.fingerprint is not None:
            files[FINGERPRINT_FILE] = package.manifest.files[engine.fingerprint]
        found[engine.name] = package.bundle.model_copy(
            update={
                "kind": kind,
                "files": files,
                "tags": tags if kind is BundleKind.ONNX else tags | {FORMAT_TAG: engine.format},
                "bound_to": package.bundle.bound_to if engine.chosen else None,
            }
        )
    return found


def _said(outcomes: Outcomes) -> tuple[str, ...]:
    """What the nodes decided, each with its name; what failed has a row of its own."""
    return tuple(
        f"{name}: {sentence}"
        for name, report in outcomes.items()
        if isinstance(report, NodeReport)
        for sentence in report.decisions
    )
