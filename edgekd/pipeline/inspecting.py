"""What `edgekd inspect` does: opens a graph, looks at it for a device, and mends what can be mended."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from edgekd.core.bundle import BundleKind
from edgekd.core.preprocess import Preprocessing
from edgekd.core.store import MemoryStore
from edgekd.data.calibration import calibration_samples
from edgekd.data.sources import load_dataset
from edgekd.errors import UserError
from edgekd.export.archive import is_packed, open_package
from edgekd.lint.finding import LintReport
from edgekd.lint.float16_ranges import observed_magnitudes
from edgekd.lint.lint import lint
from edgekd.lint.repair import Repair, write_repaired
from edgekd.lint.rule import Surroundings, surroundings_of
from edgekd.pipeline.sources import bundle_from_onnx
from edgekd.runtimes.onnx_file import MODEL_FILE, graph_from_file
from edgekd.runtimes.session import RUNTIMES, FloatArray
from edgekd.targets.load import load_target
from edgekd.targets.schema import Target

RANGE_SAMPLES = 32
"""Images that ranges are looked at on."""
PLACES = ("", MODEL_FILE, f"bundle/{MODEL_FILE}")
"""Where the graph lies in what may be given: a file, a package, the folder of a run."""


@dataclass(frozen=True, kw_only=True)
class Inspected:
    """A graph that was looked at.

    Attributes:
        report: On the graph as it came.
        after: On the mended graph; None when nothing was to be mended.
        repair: What was changed, and the proof; None likewise.
        notes: On data and preprocessing.
    """

    report: LintReport
    after: LintReport | None = None
    repair: Repair | None = None
    notes: tuple[str, ...] = ()


def inspect_graph(
    path: Path,
    target: str,
    *,
    runtimes: tuple[str, ...] = (),
    data: str | None = None,
    out: Path | None = None,
    seed: int = 0,
) -> Inspected:
    """Looks at a graph for a target, and writes the mended graph where `out` is given.

    Args:
        path: An `.onnx` file, or a package with one, in either form.
        target: Name or path of a card.
        runtimes: Of its runtimes, the ones to ask about; empty for all.
        data: Images to look at ranges on, and to prove repairs on; None for none.
        out: Where the mended graph goes; a graph with nothing to mend is copied there.
        seed: Of the draw of images, and of the noise that stands in for them.

    Raises:
        UserError: Not a graph, a runtime that the target does not have, data that do not fit, or `out` is the input.
        BuildFailed: A repair changed what the graph computes; nothing is written then.
    """
    card = load_target(target)
    _check_runtimes(card, runtimes)
    if out is not None and out.resolve() in [path.resolve() / part for part in PLACES]:
        raise UserError(f"{out} is the graph that is inspected.", hint="give another file with -o")
    model, preprocessing = _opened(path)
    images, notes = _images(path, preprocessing, data, seed) if data is not None else (None, ())
    ranges = None
    if images is not None:
        (name,) = (value.name for value in model.graph.input if value.name not in _constants(model))
        ranges = observed_magnitudes(model, name, images[:RANGE_SAMPLES])
    where = surroundings_of(card, runtimes=runtimes, ranges=ranges)
    report = lint(model, where)
    if out is None:
        return Inspected(report=report, notes=notes)
    repair = write_repaired(model, out, where, images=images, seed=seed)
    after = lint(graph_from_file(out), _without_ranges(where)) if repair.changes else report
    return Inspected(report=report, after=after, repair=repair, notes=notes)


def _without_ranges(where: Surroundings) -> Surroundings:
    """Names of values change with the repairs, and ranges are of the graph as it came."""
    return replace(where, ranges=None)


def _opened(path: Path) -> tuple[onnx.ModelProto, Preprocessing | None]:
    """The graph, and the preprocessing that the package names."""
    if path.is_dir() or is_packed(path):
        with open_package(path) as package:
            bundle = package.bundle
            if bundle.kind is not BundleKind.ONNX:
                raise UserError(
                    f"{path} holds a bundle of kind {bundle.kind.upper()}, and inspect reads ONNX graphs.",
                    hint="give the package of edgekd export or edgekd quantize, or an .onnx file",
                )
            return graph_from_file(package.files.path(bundle.file(MODEL_FILE))), bundle.model.preprocessing
    if not path.exists():
        raise UserError(f"No such file or folder: {path}.", hint="give an .onnx file or a package with one")
    return graph_from_file(path), None


def _check_runtimes(card: Target, runtimes: tuple[str, ...]) -> None:
    known = [support.runtime for support in card.runtimes]
    for name in runtimes:
        RUNTIMES.get(name)
        if name not in known:
            raise UserError(
                f"{card.name} does not run {name}.", hint=f"its card has {', '.join(known)}; or choose another --target"
            )


def _constants(model: onnx.ModelProto) -> set[str]:
    return {entry.name for entry in model.graph.initializer}


def _images(
    path: Path, preprocessing: Preprocessing | None, data: str, seed: int
) -> tuple[FloatArray, tuple[str, ...]]:
    notes: tuple[str, ...] = ()
    if preprocessing is None:
        with tempfile.TemporaryDirectory(prefix="edgekd-") as folder:
            preprocessing = bundle_from_onnx(path, MemoryStore(Path(folder)).blobs).model.preprocessing
        notes = (
            f"The file carries no preprocessing; assumed are mean {preprocessing.mean} and std {preprocessing.std}.",
        )
    dataset = load_dataset(data, seed=seed)
    found = calibration_samples(dataset, preprocessing, samples=RANGE_SAMPLES, seed=seed)
    return found.images, (*notes, *dataset.decisions, f"Ranges are of {found.description}.")
