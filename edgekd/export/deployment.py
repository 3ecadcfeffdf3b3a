"""From bundles to `deploy.json`: which file of which engine lies where in a package, and in which runtimes it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from edgekd.core.blobs import Blobs
from edgekd.core.bundle import BundleKind, ModelBundle, TensorSpec
from edgekd.core.deployment import (
    DEPLOY_FILE,
    ENGINES_FOLDER,
    FINGERPRINT_FILE,
    TIMING_CACHE_FILE,
    DeployedEngine,
    DeployedInput,
    DeployedLatency,
    Deployment,
    EngineFormat,
)
from edgekd.core.report_io import schema_from_json
from edgekd.errors import UserError
from edgekd.export.convert import CONVERTERS
from edgekd.export.manifest import AGAIN, Manifest
from edgekd.export.tensorrt import is_read
from edgekd.runtimes.formats import model_files, model_size_mib
from edgekd.runtimes.session import described
from edgekd.targets.schema import Target

FORMATS: tuple[EngineFormat, ...] = get_args(EngineFormat)
ANYWHERE = "onnxruntime"
"""Reads every graph that edgekd writes, on every machine: the last resort where nothing better is there."""
ALONE = "model"
"""Name of the engine of a package that no run chose it for."""


@dataclass(frozen=True, kw_only=True)
class EngineNote:
    """What is known of an engine beyond its bundle; the fields are those of `DeployedEngine`."""

    name: str = ALONE
    runtimes: tuple[str, ...]
    threads: int = 1
    reason: str = ""
    latency: DeployedLatency | None = None
    accuracy: float | None = None
    source: str | None = None


@dataclass(frozen=True, kw_only=True)
class Shipped:
    """An engine that goes into a package.

    Attributes:
        bundle: ONNX or ENGINE.
        note: What is known of it.
    """

    bundle: ModelBundle
    note: EngineNote


def runtimes_for(bundle: ModelBundle, target: Target, first: str | None = None) -> tuple[str, ...]:
    """The runtimes of a target that run a bundle, in the order of the card; what runs it anywhere comes last.

    An engine runs in the one runtime that its format is named after. A graph does not run in the runtimes of a card
    that take converted engines.

    Args:
        bundle: ONNX or ENGINE.
        target: The device.
        first: The one that it was chosen for, which comes first.
    """
    if bundle.kind is BundleKind.ENGINE:
        return (bundle.format,)
    precision = str(bundle.tags.get("precision", "fp32"))
    able = [
        support.runtime
        for support in target.runtimes
        if precision in support.precisions
        and support.runtime not in CONVERTERS
        and (support.runtime != "tensorrt" or is_read(bundle))
    ]
    ordered = [*([first] if first is not None else []), *able, ANYWHERE]
    return tuple(dict.fromkeys(ordered))


def note_from_bundle(bundle: ModelBundle, target: Target) -> EngineNote:
    """The note of an engine of which nothing was measured: what its tags and the target's card say."""
    runtime = bundle.tags.get("runtime")
    return EngineNote(
        runtimes=runtimes_for(bundle, target, runtime if isinstance(runtime, str) else None),
        threads=target.threads[0],
        reason="the one engine of this package",
    )


def place_of(name: str, *, chosen: bool) -> str:
    """The folder of an engine in a package, with its slash; the chosen one's files lie at the top."""
    return "" if chosen else f"{ENGINES_FOLDER}/{name}/"


def deployment_of(chosen: Shipped, twins: Sequence[Shipped], blobs: Blobs) -> Deployment:
    """What `deploy.json` holds.

    Args:
        chosen: Comes first.
        twins: The others, best first; they take the same input and give the same outputs. Where a graph takes any
            number of images and an engine one, the package's input is the graph's.
        blobs: Tells sizes.

    Raises:
        UserError: A twin with another input or other outputs, or two engines of one name.
    """
    engines = (chosen, *twins)
    widest = next((engine for engine in engines if engine.bundle.kind is BundleKind.ONNX), chosen).bundle
    for engine in engines:
        if not _stands_in(engine.bundle, widest):
            raise UserError(
                f"The engine {engine.note.name} has other inputs or outputs than the others: engines of one package "
                "must stand in for each other."
            )
    recipe = chosen.bundle.model
    plain = {
        "task": recipe.task,
        "input": DeployedInput(**widest.inputs[0].model_dump()),
        "outputs": widest.outputs,
        "preprocessing": recipe.preprocessing,
        "labels": recipe.labels or None,
        "engines": (
            engine_entry(chosen, blobs, chosen=True),
            *(engine_entry(twin, blobs, chosen=False) for twin in twins),
        ),
    }
    return Deployment.parse(plain, DEPLOY_FILE)


def engine_entry(shipped: Shipped, blobs: Blobs, *, chosen: bool) -> DeployedEngine:
    """The entry of one engine: what its bundle's files are, and its note."""
    bundle, note = shipped.bundle, shipped.note
    if bundle.format not in FORMATS:
        raise UserError(
            f"{note.name} is {described(bundle)}, and a device runs graphs and engines: {', '.join(FORMATS)}."
        )
    folder = place_of(note.name, chosen=chosen)
    return DeployedEngine(
        name=note.name,
        format=bundle.format,
        files={name: folder + name for name in sorted(model_files(bundle))},
        runtimes=note.runtimes,
        precision=str(bundle.tags.get("precision", "fp32")),
        scheme=str(bundle.tags.get("scheme", "")),
        threads=note.threads,
        chosen=chosen,
        reason=note.reason,
        latency=note.latency,
        accuracy=note.accuracy,
        size_mib=model_size_mib(bundle, blobs),
        fingerprint=folder + FINGERPRINT_FILE if FINGERPRINT_FILE in bundle.files else None,
        source=note.source,
        timing_cache=folder + TIMING_CACHE_FILE if TIMING_CACHE_FILE in bundle.files else None,
    )


def _stands_in(bundle: ModelBundle, widest: ModelBundle) -> bool:
    """Whether a bundle takes and gives what another does, or, converted, the same for one image a call."""
    found, wanted = ((*each.inputs, *each.outputs) for each in (bundle, widest))
    converted = bundle.kind is BundleKind.ENGINE
    return found == wanted or (converted and found == tuple(_of_one(spec) for spec in wanted))


def _of_one(spec: TensorSpec) -> TensorSpec:
    return spec.model_copy(update={"shape": (1, *spec.shape[1:])})


def read_deployment(folder: Path, manifest: Manifest) -> Deployment | None:
    """The `deploy.json` of a verified package; None where it has none: schema 1, or weights that run nowhere yet.

    Raises:
        UserError: It does not parse, or names files that the manifest does not list.
    """
    if DEPLOY_FILE not in manifest.files:
        return None
    found = schema_from_json(folder / DEPLOY_FILE, Deployment, str(folder / DEPLOY_FILE))
    for engine in found.engines:
        for path in engine.paths:
            if path not in manifest.files:
                raise UserError(
                    f"{folder / DEPLOY_FILE}: the engine {engine.name} names {path}, which the manifest does not list.",
                    hint=AGAIN,
                )
    return found
