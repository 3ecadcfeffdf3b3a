"""Writes what a run leaves behind: the bundle, the report, the metrics, the manifest and a folder per stage."""

from __future__ import annotations

import json
import os
import platform
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from edgekd import __version__
from edgekd.core.blobs import disk_errors
from edgekd.core.digest import Digest
from edgekd.core.plan import NodeReport, RunReport
from edgekd.core.report import Budget, Verdict
from edgekd.core.store import Store
from edgekd.core.text import mib, ms
from edgekd.errors import GateFailed, Inconclusive, UserError
from edgekd.export.package import require_replaceable
from edgekd.gate.artifacts import METRICS_FILE
from edgekd.pipeline.bundled import write_bundle
from edgekd.pipeline.page import BUNDLE, page_of
from edgekd.pipeline.recipes import Recipe
from edgekd.pipeline.results import Results, metrics_of, results_of
from edgekd.pipeline.situation import Situation
from edgekd.pipeline.steps import steps_of, table_of
from edgekd.report.html import write_report

REPORT = "report.html"
MANIFEST = "manifest.json"
STAGES_FOLDER = "stages"
STAGES_MARKER = ".edgekd"
"""Lies in the folder of the stages from the start, so that a later run knows that it may replace it."""
_LIBRARIES = ("torch", "timm", "onnx", "nncf", "torch-pruning", "numpy")
_ENGINES = ("onnxruntime", "openvino", "tensorrt", "executorch", "ncnn", "pnnx", "ai-edge-litert")
VERSIONED = (*_LIBRARIES, *_ENGINES)


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """Where the results are, and what to tell about them.

    Attributes:
        table: (title, columns, rows) for the console.
        exit_code: 0 when the verdict is PASS or nothing was asked, 1 for FAIL, 5 for INCONCLUSIVE.
        next_steps: What to do now, the most pressing first.
    """

    bundle: Path
    report: Path
    verdict: Verdict
    chosen_text: str
    table: tuple[str, list[str], list[list[str]]]
    exit_code: int
    next_steps: tuple[str, ...] = ()


def check_output(out: Path) -> None:
    """Refuses an output folder in which a run would have to delete what no run wrote; cheap, changes nothing.

    Raises:
        UserError: `bundle/`, `stages/` or `manifest.json` in `out` is there and not ours.
    """
    require_replaceable(out / BUNDLE)
    for place, ours in ((out / MANIFEST, _is_manifest), (out / STAGES_FOLDER, _is_stages)):
        with disk_errors(place):
            free = not os.path.lexists(place) or ours(place)
        if not free:
            raise UserError(
                f"{place} was not written by edgekd; it is left as it is.", hint="choose another folder with -o"
            )


def deliver(report: RunReport, recipe: Recipe, situation: Situation, store: Store, out: Path) -> Delivery:
    """Writes everything below `out` and returns what to say.

    Raises:
        UserError: The folder cannot be written, holds what is not ours, or the disk is full.
    """
    check_output(out)
    results = results_of(report, recipe, store)
    steps = steps_of(results)
    versions = versions_here()
    with disk_errors(out):
        write_bundle(results, recipe, situation, store.blobs, out / BUNDLE, versions)
        _write_stages(report, store, out / STAGES_FOLDER)
        (out / METRICS_FILE).write_text(metrics_of(results, recipe).to_json() + "\n", encoding="utf-8")
        _write_manifest(report, recipe, versions, out)
        page = page_of(results, steps, recipe, situation, versions, out)
        write_report(page, out / REPORT)
    metric = results.evaluations[0].metric if results.evaluations else None
    return Delivery(
        bundle=out / BUNDLE,
        report=out / REPORT,
        verdict=results.verdict,
        chosen_text=_chosen_text(results),
        table=table_of(steps, metric),
        exit_code=exit_code_of(results.verdict, recipe.request.budget),
        next_steps=page.next_steps,
    )


def exit_code_of(verdict: Verdict, budget: Budget) -> int:
    """The exit code of a verdict; without any limit there is nothing that could fail."""
    asked = budget.max_latency_ms, budget.max_drop, budget.max_size_mib
    if verdict.status == "PASS" or all(limit is None for limit in asked):
        return 0
    return GateFailed.exit_code if verdict.status == "FAIL" else Inconclusive.exit_code


def versions_here() -> dict[str, str]:
    """Versions of edgekd, Python and the libraries that make or run engines."""
    found = {"edgekd": __version__, "python": platform.python_version()}
    for name in VERSIONED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _chosen_text(results: Results) -> str:
    choice = results.choice
    latency = results.latency(choice.candidate)
    size = results.size_mib(choice.candidate)
    parts = [f"{choice.candidate} in {choice.runtime}"]
    if latency is not None:
        word = "" if latency.origin == "measured" else " (predicted)"
        parts.append(f"{ms(latency.median_ms)}{word}")
    if size is not None:
        parts.append(mib(size))
    return f"{', '.join(parts)}: {choice.reason}"


def _write_stages(report: RunReport, store: Store, folder: Path) -> None:
    """`stages/<nn-name>/`: what each node made, with links to the store's files rather than second copies."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir()
    (folder / STAGES_MARKER).touch()
    for number, node in enumerate(report.nodes, start=1):
        place = folder / f"{number:02d}-{node.name}"
        place.mkdir(parents=True)
        (place / "bundle.json").write_text(node.bundle.to_json() + "\n", encoding="utf-8")
        (place / "node.json").write_text(_node_json(node), encoding="utf-8")
        for name, found in node.bundle.files.items():
            _link(store, found, place / name)


def _is_manifest(path: Path) -> bool:
    """Whether the file is a manifest that `_write_manifest` wrote."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and {"schema_version", "seed", "versions", "nodes"} <= found.keys()


def _is_stages(folder: Path) -> bool:
    """Whether the folder is empty, or written by `_write_stages`, be it cut off in the middle."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    return not any(folder.iterdir()) or (folder / STAGES_MARKER).exists() or _is_manifest(folder.parent / MANIFEST)


def _node_json(node: NodeReport) -> str:
    return json.dumps(node.model_dump(mode="json", exclude={"bundle"}), indent=2, sort_keys=True) + "\n"


def _link(store: Store, found: Digest, place: Path) -> None:
    source = store.blobs.path(found)
    try:
        os.link(source, place)
    except OSError:
        # Another file system, or one without links: a copy serves as well.
        shutil.copyfile(source, place)


def _write_manifest(report: RunReport, recipe: Recipe, versions: dict[str, str], out: Path) -> None:
    manifest = {
        "schema_version": 1,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": recipe.request.seed,
        "versions": versions,
        "nodes": {
            node.name: {"key": node.key, "content": node.bundle.content, "files": dict(node.bundle.files)}
            for node in report.nodes
        },
    }
    (out / MANIFEST).write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n", encoding="utf-8")
