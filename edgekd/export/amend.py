"""Puts engines that were built later into a package: the same package, with more to run and a manifest that says so."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekd.core.deployment import DEPLOY_FILE, DeployedEngine, Deployment
from edgekd.errors import UserError
from edgekd.export.manifest import Manifest, check_paths
from edgekd.export.package import Package, new_folder, require_replaceable, seal, text_of


@dataclass(frozen=True, kw_only=True)
class AddedEngine:
    """An engine for a package that exists.

    Attributes:
        entry: Its paths are below `engines/NAME/`, as `place_of` gives them.
        files: What to copy, by path in the package; every path that the entry names, and more where there is more.
    """

    entry: DeployedEngine
    files: Mapping[str, Path]


def with_engines(package: Package, folder: Path, added: Sequence[AddedEngine]) -> Manifest:
    """Writes a package with more engines and returns what is in it; it appears whole or not at all.

    An engine of the same name is replaced. Each stands directly before the graph that it was built from: on the device
    that it fits it is the better one. The choice stays what it was.

    Args:
        package: Verified; it may lie in `folder`, which then is replaced.
        folder: Where to.
        added: The engines.

    Raises:
        UserError: A package that deploys nothing, an engine under the name of the chosen one, one whose files are not
            in its own folder, or a place that is not free.
    """
    if package.deployment is None:
        raise UserError(f"{package.folder} deploys nothing: it has no {DEPLOY_FILE}.", hint="write the package again")
    deployment = _with(package.deployment, [engine.entry for engine in added])
    files = {path: source for engine in added for path, source in engine.files.items()}
    check_paths(files, str(folder))
    for engine in added:
        if strays := [path for path in (*engine.entry.paths, *engine.files) if path not in _own(engine)]:
            raise UserError(f"The engine {engine.entry.name} names {strays[0]}, which was not given for it.")
    replaced = {f"engines/{engine.entry.name}/" for engine in added}
    require_replaceable(folder)
    with new_folder(folder) as made:
        kept = [path for path in package.manifest.files if not any(path.startswith(place) for place in replaced)]
        for path, source in {path: package.folder / path for path in kept}.items() | files.items():
            (made / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, made / path)
        (made / DEPLOY_FILE).write_text(text_of(deployment.plain()), encoding="utf-8")
        return seal(made, package.manifest.versions, package.manifest.facts, deployment)


def _own(engine: AddedEngine) -> set[str]:
    """The paths that were given and lie in the engine's folder."""
    return {path for path in engine.files if path.startswith(f"engines/{engine.entry.name}/")}


def _with(deployment: Deployment, added: Sequence[DeployedEngine]) -> Deployment:
    names = {entry.name for entry in added}
    engines = [engine for engine in deployment.engines if engine.name not in names]
    if not any(engine.chosen for engine in engines):
        raise UserError("An added engine has the name of the chosen one, which stays what it is.")
    for entry in added:
        before = next((i for i, engine in enumerate(engines) if engine.name == entry.source), len(engines))
        engines.insert(before, entry)
    plain = deployment.plain() | {"engines": [engine.plain() for engine in engines]}
    return Deployment.parse(plain, DEPLOY_FILE)
