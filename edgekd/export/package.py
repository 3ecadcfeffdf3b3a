"""The folder that is handed over: the model, what it needs to be fed, where it came from, and proof that it is whole.

A package is plain files: it can be read without edgekd, and nothing in it is a pickle. `manifest.json` holds the
SHA-256 of every other file, so that a changed or missing one is found before it is deployed.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import yaml
from pydantic import Field

from edgekd.core.blobs import Blobs, disk_errors
from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.digest import Digest, file_digest
from edgekd.core.report_io import schema_from_json
from edgekd.core.schema import Schema
from edgekd.errors import UserError
from edgekd.export.readme import package_readme
from edgekd.targets.schema import Target

MANIFEST_FILE = "manifest.json"
BUNDLE_FILE = "bundle.json"
PACKAGE_SCHEMA_VERSION = 1


class Manifest(Schema):
    """What is in a package.

    Attributes:
        files: SHA-256 by file name, of every file but the manifest.
        versions: Of the tools that made it.
        facts: Where it came from: the run, the node, the command.
    """

    schema_version: int = PACKAGE_SCHEMA_VERSION
    files: dict[str, Digest]
    versions: dict[str, str] = Field(default_factory=dict)
    facts: dict[str, str] = Field(default_factory=dict)


class PackagedFiles:
    """The files of a verified package as read-only blobs."""

    def __init__(self, folder: Path, files: Mapping[str, Digest]) -> None:
        self.folder = folder
        self._names = {found: name for name, found in files.items()}

    def add(self, path: Path) -> Digest:
        raise UserError(f"The package {self.folder} is read-only; {path} cannot be added to it.")

    def path(self, digest: Digest) -> Path:
        if digest not in self._names:
            raise UserError(f"The package {self.folder} has no file with the digest {digest[:12]}.")
        return self.folder / self._names[digest]


def write_package(
    bundle: ModelBundle,
    blobs: Blobs,
    folder: Path,
    *,
    target: Target | None,
    versions: Mapping[str, str],
    extra: Mapping[str, str],
    texts: Mapping[str, str] | None = None,
) -> Manifest:
    """Writes a deployable folder and returns what is in it; the folder appears whole or not at all.

    Args:
        bundle: ONNX, ENGINE or TORCH.
        blobs: Finds its files.
        folder: Where to; an earlier package there is replaced.
        target: The device it is for; None for a model on its way, a TORCH bundle.
        versions: Of the tools that made it, by name.
        extra: Facts for the manifest: which run, which node. README.txt tells of those that `package_readme` knows.
        texts: More text files, by name.

    Raises:
        UserError: Not a model, or the folder holds something that is not a package.
    """
    if bundle.kind in (BundleKind.DATA, BundleKind.REPORT):
        raise UserError(f"A package holds a model, but this is a {bundle.kind} bundle.")
    require_replaceable(folder)
    with disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=".package-", dir=folder.parent))
        try:
            manifest = _fill(made, bundle, blobs, target, versions, extra, texts or {})
            made.chmod(0o755)
            if folder.exists():
                shutil.rmtree(folder)
            os.replace(made, folder)
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            raise
    return manifest


def require_replaceable(folder: Path) -> None:
    """Refuses a place that holds anything but an earlier package; changes nothing.

    Raises:
        UserError: A file, or a folder that is neither empty nor a package.
    """
    if folder.is_file():
        raise UserError(f"{folder} is a file, and a package is a folder.", hint="choose another folder with -o")
    with disk_errors(folder):
        if folder.exists() and any(folder.iterdir()) and not _is_package(folder):
            raise UserError(
                f"{folder} is not empty and not a package; it is left as it is.", hint="choose another folder with -o"
            )


def _is_package(folder: Path) -> bool:
    """Whether the manifest is one of ours, of any schema: a manifest.json alone may be anybody's."""
    try:
        found = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    listed = found.get("files") if isinstance(found, dict) else None
    return isinstance(listed, dict) and BUNDLE_FILE in listed


def read_package(folder: Path) -> tuple[ModelBundle, PackagedFiles]:
    """The bundle of a package and its files, all verified.

    Raises:
        UserError: Not a package, or a file that is missing or was changed.
    """
    if not (folder / MANIFEST_FILE).is_file():
        raise UserError(f"{folder} is not a package: it has no {MANIFEST_FILE}.")
    manifest = schema_from_json(folder / MANIFEST_FILE, Manifest, MANIFEST_FILE)
    if manifest.schema_version != PACKAGE_SCHEMA_VERSION:
        raise UserError(
            f"{folder}: package schema {manifest.schema_version}, this edgekd reads {PACKAGE_SCHEMA_VERSION}."
        )
    for name, wanted in manifest.files.items():
        _verify(folder, name, wanted)
    if BUNDLE_FILE not in manifest.files:
        raise UserError(f"{folder}: the manifest does not list {BUNDLE_FILE}.")
    bundle = ModelBundle.from_json((folder / BUNDLE_FILE).read_text(encoding="utf-8"), str(folder / BUNDLE_FILE))
    for name, wanted in bundle.files.items():
        if manifest.files.get(name) != wanted:
            raise UserError(f"{folder}: {BUNDLE_FILE} and {MANIFEST_FILE} disagree about {name}.")
    return bundle, PackagedFiles(folder, manifest.files)


def _fill(
    made: Path,
    bundle: ModelBundle,
    blobs: Blobs,
    target: Target | None,
    versions: Mapping[str, str],
    facts: Mapping[str, str],
    more: Mapping[str, str],
) -> Manifest:
    for name, found in bundle.files.items():
        shutil.copyfile(blobs.path(found), made / name)
    recipe = bundle.model
    texts = {
        BUNDLE_FILE: bundle.to_json() + "\n",
        "preprocessing.json": json.dumps(recipe.preprocessing.plain(), indent=2, sort_keys=True) + "\n",
        "README.txt": package_readme(bundle, target, facts),
        **more,
    }
    if target is not None:
        texts["target.yaml"] = yaml.safe_dump(target.plain(), sort_keys=False, allow_unicode=True)
    if recipe.labels:
        texts["labels.txt"] = "".join(f"{label}\n" for label in recipe.labels)
    for name, text in texts.items():
        (made / name).write_text(text, encoding="utf-8")
    files = {path.name: file_digest(path) for path in sorted(made.iterdir())}
    manifest = Manifest(files=files, versions=dict(versions), facts=dict(facts))
    (made / MANIFEST_FILE).write_text(json.dumps(manifest.plain(), indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return manifest


def _verify(folder: Path, name: str, wanted: Digest) -> None:
    if Path(name).name != name or name in ("", ".", ".."):
        raise UserError(f"{folder}: the manifest lists {name!r}, which is not a plain file name.")
    path = folder / name
    if not path.is_file():
        raise UserError(f"{folder}: the file {name} is missing.", hint="write the package again, or copy it again")
    found = file_digest(path)
    if found != wanted:
        raise UserError(
            f"{path} was changed: its SHA-256 is {found[:12]}..., the manifest has {wanted[:12]}....",
            hint="write the package again, or copy it again",
        )
