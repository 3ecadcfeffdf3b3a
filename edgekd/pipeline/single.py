"""One stage on finished bundles, outside any compression graph: what `evaluate` and `profile` do."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import JsonValue

from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.digest import Digest
from edgekd.core.events import Reporter
from edgekd.core.graph import Graph, Node
from edgekd.core.plan import NodeReport
from edgekd.core.report_io import REPORT_FILE, schema_from_json
from edgekd.core.runner import Runner, RunSettings
from edgekd.core.schema import Schema
from edgekd.core.stage import Resource
from edgekd.core.store import MemoryStore
from edgekd.data.dataset import Dataset
from edgekd.data.sources import load_dataset
from edgekd.errors import UserError
from edgekd.export.archive import is_packed, open_package
from edgekd.export.manifest import MANIFEST_FILE
from edgekd.export.package import TARGET_FILE, Package
from edgekd.pipeline.sources import bundle_from_onnx, require_named_code
from edgekd.pipeline.stages import STAGES
from edgekd.targets.schema import Target

S = TypeVar("S", bound=Schema)


class Origin(Schema):
    """What a package says of the run that made it; None where it says nothing, as for a bare `.onnx` file.

    Attributes:
        seed: Of the run, and so of the split of its data.
        data: Digest of the data set, split included.
    """

    seed: int | None = None
    data: str | None = None


@dataclass(frozen=True, kw_only=True)
class Workbench:
    """Finished bundles by name, their files in a temporary store.

    Attributes:
        origins: Of each bundle.
        cards: The device that each bundle was made for, as its package says; None for a bare `.onnx` file.
    """

    store: MemoryStore
    bundles: Mapping[str, ModelBundle]
    origins: Mapping[str, Origin]
    cards: Mapping[str, Target | None]

    def run(
        self,
        names: Sequence[str],
        stage: str,
        config: Mapping[str, JsonValue],
        port: str,
        kind: type[S],
        *,
        resources: Mapping[str, Resource],
        reporter: Reporter,
    ) -> tuple[S, NodeReport]:
        """Runs a reporting stage on some of the bundles and returns its report.

        Args:
            names: The bundles; their names appear in the report.
            port: Where they are connected.
            kind: Schema of the report.
        """
        bundles = {name: self.bundles[name] for name in names}
        node = Node(name=stage, stage=stage, config=dict(config), inputs={port: tuple(f"@{name}" for name in bundles)})
        graph = Graph(inputs={name: bundle.kind for name, bundle in bundles.items()}, nodes=(node,))
        settings = RunSettings(resources=resources, reporter=reporter)
        done = Runner(STAGES, self.store).run(graph, bundles, settings).node(stage)
        return schema_from_json(self.store.blobs.path(done.bundle.file(REPORT_FILE)), kind, stage), done


@contextmanager
def workbench(models: Sequence[tuple[str, Path]], archs: Collection[str] = ()) -> Iterator[Workbench]:
    """The packages (folders or `.edgekd`) and `.onnx` files of (name, path) pairs, opened and verified.

    Args:
        models: Names and paths.
        archs: The user's own code that packages of weights may be built with, `package.module:factory`.

    Raises:
        UserError: A path that is neither, a package that was changed, or one that names other code.
    """
    with tempfile.TemporaryDirectory(prefix="edgekd-") as folder:
        store = MemoryStore(Path(folder))
        opened = {name: _opened(path, store, archs) for name, path in models}
        yield Workbench(
            store=store,
            bundles={name: bundle for name, (bundle, _, _) in opened.items()},
            origins={name: origin for name, (_, origin, _) in opened.items()},
            cards={name: card for name, (_, _, card) in opened.items()},
        )


def data_for(bundle: ModelBundle, origin: Origin, spec: str, seed: int | None) -> tuple[Dataset, str | None]:
    """The labelled data to judge a bundle on, its labels numbered as the bundle's logits.

    Args:
        spec: See `load_dataset`.
        seed: Of the split; None takes the bundle's, so that what it was trained on is not what it is judged on.

    Returns:
        The data, and a warning where it is not the data, or not the split, that the bundle was made with.

    Raises:
        UserError: Data that cannot be read, has no labels, or has other classes than the bundle.
    """
    wanted = origin.seed if seed is None else seed
    dataset = load_dataset(spec, seed=wanted or 0)
    if not dataset.labelled:
        raise UserError(f"{spec} has no labels, and accuracy needs them.", hint="one sub-folder per class")
    if bundle.model.labels:
        dataset = dataset.with_classes(bundle.model.labels)
    classes = bundle.outputs[0].shape[-1]
    if isinstance(classes, int):
        dataset.check_classes(classes)
    if origin.data is None or origin.data == dataset.digest:
        return dataset, None
    what = "other data" if wanted == origin.seed else f"another split (seed {wanted}) or other data"
    return dataset, f"{what} than the bundle was made with: images that it was trained on may be among these."


def _opened(path: Path, store: MemoryStore, archs: Collection[str]) -> tuple[ModelBundle, Origin, Target | None]:
    """The bundle of a package or a bare `.onnx` file, with its files in `store`."""
    if not path.exists():
        raise UserError(f"No such file or folder: {path}.", hint="give a bundle (a folder or .edgekd) or an .onnx file")
    if not path.is_dir() and not is_packed(path):
        return bundle_from_onnx(path, store.blobs), Origin(), None
    with open_package(path) as package:
        if package.bundle.kind is BundleKind.TORCH:
            require_named_code(package.bundle.model, path, archs)
        for digest in package.bundle.files.values():
            store.blobs.add(package.files.path(Digest(digest)))
        facts = package.manifest.facts
        known = {name: facts[name] for name in Origin.model_fields if name in facts}
        return package.bundle, Origin.parse(known, f"{path}: {MANIFEST_FILE}: facts"), _card(package)


def _card(package: Package) -> Target | None:
    """The target's card in a package; None where it has none, as one of weights.

    Raises:
        UserError: It does not parse.
    """
    if TARGET_FILE not in package.manifest.files:
        return None
    card = package.folder / TARGET_FILE
    try:
        data = yaml.load(card.read_text(encoding="utf-8"), _PlainLoader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as err:
        raise UserError(f"{card}: not a readable YAML file ({err}).") from err
    return Target.parse(data, str(card))


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases: a few lines of them stand for gigabytes once anything walks through what they name."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("a card in a package holds no aliases")
        return super().compose_node(parent, index)
