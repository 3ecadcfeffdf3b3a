"""The folder that is handed over: the model, what it needs to be fed, where it came from, and proof that it is whole.

A package is plain files: it can be read without edgekd, and nothing in it is a pickle. `manifest.json` holds the
SHA-256 of every other file, so that a changed or missing one is found before it is deployed. `deploy.json` tells a
runtime what there is to run; `engines/` holds what stands in for the chosen engine where that one cannot run.

Equal inputs give equal bytes: no file holds a time, a path of this machine or a random number. What was measured is an
input like any other, and a second measurement gives other figures.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from edgekd.core.blobs import Blobs, disk_errors
from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.deployment import DEPLOY_FILE, Deployment
from edgekd.core.digest import Digest, file_digest
from edgekd.errors import EdgekdError, UserError
from edgekd.export.deployment import Shipped, deployment_of, note_from_bundle, place_of, read_deployment
from edgekd.export.manifest import (
    AGAIN,
    BUNDLE_FILE,
    MANIFEST_FILE,
    MOST_MANIFEST_BYTES,
    Manifest,
    check_expected,
    check_paths,
    is_package,
    manifest_from_bytes,
    verify_files,
)
from edgekd.export.notice import NOTICE_FILE, notice_text
from edgekd.export.readme import package_readme
from edgekd.export.sbom import SBOM_FILE, bill_of_materials, involved
from edgekd.targets.schema import Target

TARGET_FILE = "target.yaml"
RUN_FOLDER = "bundle"
"""Where the folder of a run holds its package."""


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


@dataclass(frozen=True, kw_only=True)
class Package:
    """A verified package.

    Attributes:
        folder: Where its files lie.
        digest: SHA-256 of `manifest.json`, which stands for every byte of the package.
        bundle: The chosen one.
        deployment: None where there is nothing to run: weights, or schema 1.
    """

    folder: Path
    digest: Digest
    manifest: Manifest
    bundle: ModelBundle
    deployment: Deployment | None

    @property
    def files(self) -> PackagedFiles:
        """Its files as blobs."""
        return PackagedFiles(self.folder, self.manifest.files)


def write_package(
    bundle: ModelBundle,
    blobs: Blobs,
    folder: Path,
    *,
    target: Target | None,
    versions: Mapping[str, str],
    extra: Mapping[str, str],
    texts: Mapping[str, str] | None = None,
    chosen: Shipped | None = None,
    twins: Sequence[Shipped] = (),
) -> Manifest:
    """Writes a deployable folder and returns what is in it; the folder appears whole or not at all.

    Args:
        bundle: ONNX, ENGINE or TORCH.
        blobs: Finds its files.
        folder: Where to; an earlier package there is replaced.
        target: The device it is for; None for a model on its way, a TORCH bundle.
        versions: Of the tools at hand, by name; those that had no part in it are left out.
        extra: Facts for the manifest: which run, which node. README.txt tells of those that `package_readme` knows.
        texts: More text files, by name.
        chosen: The bundle with what is known of it as an engine; None takes what its tags say.
        twins: Engines that stand in for it, best first.

    Raises:
        UserError: Not a model, or the folder holds something that is not a package.
    """
    if bundle.kind in (BundleKind.DATA, BundleKind.REPORT):
        raise UserError(f"A package holds a model, but this is a {bundle.kind} bundle.")
    if bundle.kind is not BundleKind.TORCH and chosen is None:
        if target is None:
            raise EdgekdError("A deployable package needs the target that it is for.")
        chosen = Shipped(bundle=bundle, note=note_from_bundle(bundle, target))
    require_replaceable(folder)
    deployment = None if chosen is None else deployment_of(chosen, twins, blobs)
    versions = involved(versions, deployment)
    written = {NOTICE_FILE: notice_text(versions, extra), **(texts or {})}
    if deployment is not None:
        written[DEPLOY_FILE] = text_of(deployment.plain())
    with new_folder(folder) as made:
        for path, found in _model_files(bundle, twins).items():
            place = made / path
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(blobs.path(found), place)
        _write_texts(made, _texts(bundle, target, extra) | written)
        return seal(made, versions, extra, deployment)


def require_replaceable(folder: Path) -> None:
    """Refuses a place that holds anything but an earlier package; changes nothing.

    Raises:
        UserError: A file, or a folder that is neither empty nor a package.
    """
    if folder.is_file():
        raise UserError(f"{folder} is a file, and a package is a folder.", hint="choose another folder with -o")
    with disk_errors(folder):
        if folder.exists() and any(folder.iterdir()) and not is_package(folder):
            raise UserError(
                f"{folder} is not empty and not a package; it is left as it is.", hint="choose another folder with -o"
            )


def package_folder(path: Path) -> Path:
    """The package itself, where the folder of a run was named."""
    return path / RUN_FOLDER if (path / RUN_FOLDER).is_dir() else path


def read_package(folder: Path) -> tuple[ModelBundle, PackagedFiles]:
    """The bundle of a package and its files, all verified.

    Raises:
        UserError: Not a package, or a file that is missing or was changed.
    """
    found = verified_package(folder)
    return found.bundle, found.files


def verified_package(folder: Path, expected: str | None = None) -> Package:
    """A package whose every file was read and found to be what the manifest says.

    Args:
        folder: Of the package itself.
        expected: Digest that its receiver was told; None expects nothing.

    Raises:
        UserError: Not a package, another one than expected, or one of whose files is missing or was changed.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise no_package(folder)
    with disk_errors(path):
        data = path.read_bytes() if path.stat().st_size <= MOST_MANIFEST_BYTES else b""
    manifest = manifest_from_bytes(data, str(folder))
    digest = Digest(hashlib.sha256(data).hexdigest())
    check_expected(digest, expected, str(folder))
    verify_files(folder, manifest)
    bundle = ModelBundle.from_json((folder / BUNDLE_FILE).read_text(encoding="utf-8"), str(folder / BUNDLE_FILE))
    for name, wanted in bundle.files.items():
        if manifest.files.get(name) != wanted:
            raise UserError(f"{folder}: {BUNDLE_FILE} and {MANIFEST_FILE} disagree about {name}.", hint=AGAIN)
    deployment = read_deployment(folder, manifest)
    return Package(folder=folder, digest=digest, manifest=manifest, bundle=bundle, deployment=deployment)


def no_package(path: Path) -> UserError:
    """The error for a place where a package should be and is not, with what is there instead."""
    hint = "give the folder of a run (with bundle/ in it), the package that a verb wrote, or an .edgekd file"
    if not path.exists():
        return UserError(f"No such file or folder: {path}.", hint=hint)
    if path.is_file():
        return UserError(f"{path} is a file, and no .edgekd package.", hint=hint)
    return UserError(f"{path} is not a package: it has no {MANIFEST_FILE}.", hint=hint)


def text_of(plain: object) -> str:
    """JSON as packages hold it: equal data gives equal bytes."""
    return json.dumps(plain, indent=2, sort_keys=True) + "\n"


def _model_files(bundle: ModelBundle, twins: Sequence[Shipped]) -> dict[str, Digest]:
    """Digest by path in the package."""
    found = dict(bundle.files)
    for twin in twins:
        found |= {place_of(twin.note.name, chosen=False) + name: d for name, d in twin.bundle.files.items()}
    check_paths(found, "the new package")
    return {path: Digest(digest) for path, digest in found.items()}


def _texts(bundle: ModelBundle, target: Target | None, facts: Mapping[str, str]) -> dict[str, str]:
    recipe = bundle.model
    texts = {
        BUNDLE_FILE: bundle.to_json() + "\n",
        "preprocessing.json": text_of(recipe.preprocessing.plain()),
        "README.txt": package_readme(bundle, target, facts),
    }
    if target is not None:
        texts[TARGET_FILE] = yaml.safe_dump(target.plain(), sort_keys=False, allow_unicode=True)
    if recipe.labels:
        texts["labels.txt"] = "".join(f"{label}\n" for label in recipe.labels)
    return texts


def _write_texts(made: Path, texts: Mapping[str, str]) -> None:
    for name, text in texts.items():
        # A file name that is no Unicode can come in with the facts; it is told with its bytes spelled out.
        (made / name).write_bytes(text.encode("utf-8", "backslashreplace"))


def seal(made: Path, versions: Mapping[str, str], facts: Mapping[str, str], deployment: Deployment | None) -> Manifest:
    """Writes the bill of materials and the manifest of everything in the folder."""
    paths = sorted(path for path in made.rglob("*") if path.is_file())
    files = {path.relative_to(made).as_posix(): file_digest(path) for path in paths}
    files.pop(SBOM_FILE, None)  # of the package that this one was made from
    (made / SBOM_FILE).write_bytes(text_of(bill_of_materials(files, versions, facts, deployment)).encode())
    files[SBOM_FILE] = file_digest(made / SBOM_FILE)
    manifest = Manifest(files=files, versions=dict(versions), facts=dict(facts))
    (made / MANIFEST_FILE).write_bytes(manifest.to_bytes())
    return manifest


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` that takes its place when the block ends well, and is gone when it does not."""
    with disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=".package-", dir=folder.parent))
        try:
            yield made
            made.chmod(0o755)
            for path in made.rglob("*"):
                path.chmod(0o755 if path.is_dir() else 0o644)
            _swap(made, folder)
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            raise


def _swap(made: Path, folder: Path) -> None:
    """Puts a finished folder in the place of an earlier one, which is deleted only when the new one stands there."""
    if not folder.exists():
        os.replace(made, folder)
        return
    old = made.with_name(f"{made.name}-old")
    os.replace(folder, old)
    try:
        os.replace(made, folder)
    except BaseException:
        os.replace(old, folder)
        raise
    shutil.rmtree(old)
