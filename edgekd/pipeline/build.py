"""`edgekd build`: the graphs of a package become TensorRT engines on the device, and go back into the package.

Nothing of the package changes unless every engine that was asked for was built and passed parity. Where all are asked
for, those that the TensorRT that is there cannot build by its version are left out, and said. The engines are added
under names of their own; which one was chosen stays what it was until it is measured.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from edgekd.core.blobs import disk_errors
from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.deployment import FINGERPRINT_FILE, TIMING_CACHE_FILE, DeployedEngine, Deployment
from edgekd.core.digest import Digest
from edgekd.core.events import Reporter
from edgekd.core.recipe import ModelRecipe
from edgekd.core.schema import Schema
from edgekd.core.stage import BoardAccess
from edgekd.data.sources import load_dataset
from edgekd.data.transform import preprocess
from edgekd.errors import DeviceUnavailable, UserError
from edgekd.export.amend import AddedEngine, with_engines
from edgekd.export.archive import SUFFIX as PACKED
from edgekd.export.archive import is_packed, open_package, pack
from edgekd.export.deployment import place_of
from edgekd.export.package import TARGET_FILE, Package, package_folder, require_replaceable, verified_package
from edgekd.export.tensorrt import ENGINE_FILE, BuildConfig, commands_for, newest_command, outside_of_card
from edgekd.export.tensorrt_build import (
    BuildTask,
    MadeEngine,
    TimingCache,
    VersionCannot,
    build_error,
    built_here,
    made_engine,
    probe_images,
)
from edgekd.pipeline.build_cache import cache_after, cache_for, write_cache
from edgekd.profiling.remote.board import board_from_access
from edgekd.profiling.remote.build import BoardRefused, built_on_board
from edgekd.profiling.remote.identity import require_target
from edgekd.runtimes.engines.settings import SCHEMES, version_from_text
from edgekd.runtimes.fingerprint import fingerprint_text
from edgekd.runtimes.onnx_file import MODEL_FILE
from edgekd.runtimes.session import FloatArray
from edgekd.targets.schema import Target

SUFFIX = "-trt"
LAYERS_FILE = "layers.json"


class BuildRequest(Schema):
    """What is asked for.

    Attributes:
        source: A package: a folder, the folder of a run, or an .edgekd file.
        out: Where to write it; None writes it back.
        engines: Names of the graphs to build; empty takes all that TensorRT reads.
        config: How.
        data: Images that parity is judged on; None takes noise.
        timing_cache: File to read timings from and to write them to; None takes those in the package.
        seed: Of the noise.
    """

    source: str
    out: str | None = None
    engines: tuple[str, ...] = ()
    config: BuildConfig = BuildConfig()
    data: str | None = None
    timing_cache: str | None = None
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class PlannedBuild:
    """One graph that will be built.

    Attributes:
        entry: The graph in the package.
        name: Of the engine that it becomes.
        commands: `trtexec` lines by release, that do the same by hand.
    """

    entry: DeployedEngine
    name: str
    commands: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class BuildPlan:
    """What would be built, and what would not.

    Attributes:
        builds: In the order of the package.
        skipped: Why other engines are not built, in sentences.
        target: The package's card.
    """

    builds: tuple[PlannedBuild, ...]
    skipped: tuple[str, ...]
    target: Target


@dataclass(frozen=True, kw_only=True)
class BuildOutcome:
    """What was built.

    Attributes:
        made: By name.
        out: The package that holds them.
        digest: Of it.
    """

    made: Mapping[str, MadeEngine]
    out: Path
    digest: Digest


def plan_build(request: BuildRequest) -> BuildPlan:
    """What would be built, without a device.

    Raises:
        UserError: Not a package with engines, a graph that is not in it, or nothing that TensorRT reads.
    """
    with open_package(Path(request.source)) as package:
        return _plan(request, package)


def build_package(request: BuildRequest, board: BoardAccess | None, reporter: Reporter) -> BuildOutcome:
    """Builds the engines of a package, here or on a board, and writes them into it.

    Args:
        request: What is asked for.
        board: Where to; None builds here.
        reporter: Told of progress and decisions.

    Raises:
        UserError: See `plan_build`.
        VersionCannot: The TensorRT that is there builds nothing of it, or not what was asked for by name.
        DeviceUnavailable: No GPU, no builder, or a board that cannot be reached or is another device.
        BuildFailed: TensorRT refused, crashed, hung or ran out of memory, or no engine passes parity.
    """
    source = Path(request.source)
    out = _place(source, request.out)
    own = None if request.timing_cache is None else Path(request.timing_cache)
    _require_places(out, own)
    with open_package(source) as package, tempfile.TemporaryDirectory(prefix="edgekd-build-") as scratch:
        plan = _plan(request, package)
        for sentence in plan.skipped:
            reporter.message(f"• {sentence}")
        made: dict[str, MadeEngine] = {}
        added: list[AddedEngine] = []
        told: TimingCache | None = None
        for number, planned in enumerate(plan.builds):
            reporter.node(planned.name, "start", f"{number + 1} of {len(plan.builds)}")
            folder = Path(scratch) / str(number)
            folder.mkdir()
            cache = told or cache_for(package, planned.entry.name, own)
            try:
                engine = _built(_task(request, package, plan, planned, cache), planned, board, folder, reporter)
            except VersionCannot as err:
                if request.engines or (number + 1 == len(plan.builds) and not made):
                    raise
                reporter.node(planned.name, "failed", err.message)
                continue
            told = cache_after(engine, cache)
            for sentence in engine.decisions:
                reporter.message(f"• {planned.name}: {sentence}")
            made[planned.name] = engine
            added.append(_added(planned, engine, folder))
            reporter.node(planned.name, "done", f"{engine.build_s:.0f} s")
        digest = _written(package, out, added)
        if own is not None and told is not None:
            write_cache(own, told)
    return BuildOutcome(made=made, out=out, digest=digest)


def _plan(request: BuildRequest, package: Package) -> BuildPlan:
    deployment = _deployment(package)
    target = _card(package)
    known = [entry.name for entry in deployment.engines if entry.format == "onnx"]
    for name in request.engines:
        if name not in known:
            raise UserError(
                f"{request.source} has no graph {name!r}.", hint=f"it has: {', '.join(known) or 'no graph at all'}"
            )
    support = target.support("tensorrt")
    if support is None:
        runs = ", ".join(entry.runtime for entry in target.runtimes)
        raise UserError(f"The package is for {target.name}, which does not run TensorRT; it runs {runs}.")
    builds, skipped = [], []
    for entry in deployment.engines:
        if entry.format != "onnx" or (request.engines and entry.name not in request.engines):
            continue
        if entry.scheme not in SCHEMES:
            skipped.append(f"{entry.name} is not built: TensorRT does not take the scheme {entry.scheme!r}.")
        elif entry.precision not in support.precisions:
            skipped.append(f"{entry.name} is not built: the card {target.name} runs no {entry.precision} in TensorRT.")
        else:
            commands = commands_for(target, _model(package, entry), request.config)
            builds.append(PlannedBuild(entry=entry, name=_name(entry), commands=commands))
    if not builds:
        why = " ".join(skipped) or f"{request.source} holds no ONNX graph."
        raise UserError(f"There is nothing to build. {why}", hint="edgekd compress --target ... writes graphs for it")
    return BuildPlan(builds=tuple(builds), skipped=tuple(skipped), target=target)


def _task(
    request: BuildRequest, package: Package, plan: BuildPlan, planned: PlannedBuild, cache: TimingCache | None
) -> BuildTask:
    model = _model(package, planned.entry)
    return BuildTask(
        model=model,
        graph=package.folder / planned.entry.files[MODEL_FILE],
        config=request.config,
        images=_images(request, model),
        target=plan.target,
        cache=cache,
    )


def _built(
    task: BuildTask, planned: PlannedBuild, board: BoardAccess | None, folder: Path, reporter: Reporter
) -> MadeEngine:
    """One engine, built where it is wanted."""
    try:
        made = built_here(task, folder, reporter) if board is None else _on_board(task, board, folder, reporter)
    except DeviceUnavailable as err:
        by_hand = f"by hand, on the device, in the folder of {planned.entry.files[MODEL_FILE]}: "
        hint = f"{err.hint}; {by_hand}" if err.hint else by_hand
        raise DeviceUnavailable(err.message, hint=hint + newest_command(planned.commands)) from err
    warning = outside_of_card(task.target, version_from_text(made.device.tensorrt)) if task.target else ""
    return replace(made, decisions=(*made.decisions, warning)) if warning else made


def _on_board(task: BuildTask, access: BoardAccess, folder: Path, reporter: Reporter) -> MadeEngine:
    """One engine, built on a board that is the package's target."""
    board = board_from_access(access)
    if task.target is not None:
        require_target(board.name, board.hello()["machine"], task.target)
    try:
        found = built_on_board(board, task.order(folder), folder, reporter=reporter)
    except BoardRefused as err:
        raise build_error(err.code, str(err), task) from err
    try:
        return made_engine(task, found.result, found.file)
    finally:
        found.forget()


def _added(planned: PlannedBuild, made: MadeEngine, folder: Path) -> AddedEngine:
    """The engine as the package takes it."""
    entry, place = planned.entry, place_of(planned.name, chosen=False)
    sidecar = folder / FINGERPRINT_FILE
    sidecar.write_text(fingerprint_text(made.fingerprint), encoding="utf-8")
    files = {place + ENGINE_FILE: made.files["engine"], place + FINGERPRINT_FILE: sidecar}
    if "timing_cache" in made.files:
        files[place + TIMING_CACHE_FILE] = made.files["timing_cache"]
    if "layers" in made.files:
        files[place + LAYERS_FILE] = made.files["layers"]
    time_ms = "" if made.median_ms is None else f", GPU compute time {made.median_ms:.3f} ms"
    built = DeployedEngine(
        name=planned.name,
        format="tensorrt",
        files={ENGINE_FILE: place + ENGINE_FILE},
        runtimes=("tensorrt",),
        precision=entry.precision,
        scheme=entry.scheme,
        threads=entry.threads,
        reason=f"built from {entry.name} by TensorRT {made.device.tensorrt} on {made.device.gpu}{time_ms}",
        size_mib=made.size_mib,
        fingerprint=place + FINGERPRINT_FILE,
        source=entry.name,
        timing_cache=place + TIMING_CACHE_FILE if "timing_cache" in made.files else None,
    )
    return AddedEngine(entry=built, files=files)


def _written(package: Package, out: Path, added: Sequence[AddedEngine]) -> Digest:
    """Writes the package, as a folder or as one file, and returns its digest."""
    if not _is_file(out):
        with_engines(package, out, added)
        return verified_package(out).digest
    with tempfile.TemporaryDirectory(prefix=".edgekd-", dir=out.resolve().parent) as scratch:
        folder = Path(scratch) / "package"
        with_engines(package, folder, added)
        packed = verified_package(folder)
        pack(packed, out)
        return packed.digest


def _is_file(out: Path) -> bool:
    """Whether a package is written there as one file."""
    return out.suffix == PACKED and not out.is_dir()


def _require_places(out: Path, timing_cache: Path | None) -> None:
    """Refuses places that cannot be written, before minutes go into engines; makes the folders of files.

    Raises:
        UserError: A place that is not free, or cannot be made.
    """
    if not _is_file(out):
        require_replaceable(out)
    for path in (out if _is_file(out) else None, timing_cache):
        if path is not None:
            try:
                with disk_errors(path):
                    path.parent.mkdir(parents=True, exist_ok=True)
            except (FileExistsError, NotADirectoryError) as err:
                raise UserError(f"{path} cannot be written: a file stands where its folder would be.") from err


def _place(source: Path, out: str | None) -> Path:
    if out is not None:
        return Path(out)
    return source if is_packed(source) else package_folder(source)


def _deployment(package: Package) -> Deployment:
    if package.deployment is None:
        raise UserError(
            f"{package.folder} deploys nothing: it holds weights, or was written by an older edgekd.",
            hint="edgekd export, or edgekd run OUT/resolved.yaml, writes graphs that TensorRT builds from",
        )
    return package.deployment


def _card(package: Package) -> Target:
    path = package.folder / TARGET_FILE
    if TARGET_FILE not in package.manifest.files:
        raise UserError(f"{package.folder} has no {TARGET_FILE}: nobody knows which device it is for.")
    return Target.parse(yaml.safe_load(path.read_text(encoding="utf-8")), str(path))


def _model(package: Package, entry: DeployedEngine) -> ModelBundle:
    """A graph of the package as a bundle: its tags are what deploy.json says of it."""
    deployment = _deployment(package)
    tags: dict[str, Any] = {"precision": entry.precision, "scheme": entry.scheme}
    if entry.chosen and package.bundle.kind is BundleKind.ONNX:
        tags = {**package.bundle.tags, **tags}
    recipe: ModelRecipe = package.bundle.model
    return ModelBundle(
        kind=BundleKind.ONNX,
        inputs=(package.bundle.inputs[0],),
        outputs=deployment.outputs,
        files={name: package.manifest.files[path] for name, path in entry.files.items()},
        recipe=recipe,
        tags=tags,
    )


def _images(request: BuildRequest, model: ModelBundle) -> FloatArray:
    """The images that parity is judged on."""
    if request.data is None:
        return probe_images(model, request.config, request.seed)
    split = load_dataset(request.data, seed=request.seed).test
    preprocessing = model.model.preprocessing
    rows = np.linspace(0, len(split) - 1, min(request.config.probes, len(split))).astype(np.int64)
    return preprocess(split.images(rows, preprocessing), preprocessing)


def _name(entry: DeployedEngine) -> str:
    return f"{entry.name[: 100 - len(SUFFIX)]}{SUFFIX}"
