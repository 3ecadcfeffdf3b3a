"""A finished run whose bundles have files, in a store of its own: what delivering it takes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.plan import NodeReport
from edgekd.core.store import MemoryStore
from edgekd.export.manifest import Manifest
from edgekd.pipeline.bundled import write_bundle
from edgekd.pipeline.recipes import Recipe
from edgekd.pipeline.request import BundleEngines, ModelSource, Options, Request
from edgekd.pipeline.results import Results
from edgekd.pipeline.situation import Situation
from edgekd.runtimes.formats import model_files
from edgekd.targets.load import load_target
from edgekd.targets.schema import Target
from edgekd.testing.toy_graphs import toy_onnx_bundle

MADE_ENGINES = ("export", "quantize", "select", "fp16", "build", "convert")


def with_files(results: Results, store: MemoryStore, scratch: Path) -> Results:
    """The results, each engine's graph in the store: one seed per node, and the chosen one's again for `chosen`."""
    scratch.mkdir(parents=True, exist_ok=True)
    seeds = {node.name: number for number, node in enumerate(results.run.nodes)}
    (scratch / "choice.json").write_text(json.dumps(results.choice.plain()))
    choice = store.blobs.add(scratch / "choice.json")

    def filled(node: NodeReport) -> NodeReport:
        if node.stage not in MADE_ENGINES:
            return node
        made_by = results.choice.candidate if node.stage == "select" else node.name
        files = toy_onnx_bundle(store.blobs, scratch, seed=seeds[made_by]).files
        files = {**files, "choice.json": choice} if node.stage == "select" else files
        if node.bundle.kind is BundleKind.ENGINE:
            files = dict.fromkeys(model_files(node.bundle), files["model.onnx"])
        return node.model_copy(update={"bundle": ModelBundle.model_copy(node.bundle, update={"files": files})})

    run = results.run.model_copy(update={"nodes": tuple(filled(node) for node in results.run.nodes)})
    return replace(results, run=run)


def situation(results: Results, target: Target, license_text: str | None = None) -> Situation:
    """A situation without data."""
    return Situation(
        teacher=results.run.nodes[0].bundle, teacher_macs=1, trainable=True, dataset=None, target=target,
        runtimes=target.runtimes, license=license_text,
    )  # fmt: skip


def delivered(
    results: Results,
    place: Path,
    *,
    target: str = "x86-cpu",
    engines: BundleEngines = "twins",
    license_text: str | None = None,
) -> Manifest:
    """Writes the package of `results` to `place/bundle`, from a store in `place`."""
    store = MemoryStore(place / "store")
    filled = with_files(results, store, place / "scratch")
    recipe = Recipe(
        request=Request(model=ModelSource(path=str(place / "teacher.pt")), target=target),
        options=Options(bundle_engines=engines),
        graph=results.graph,
    )
    found = situation(filled, load_target(target), license_text)
    return write_bundle(filled, recipe, found, store.blobs, place / "bundle", {"edgekd": "0.1.0"})
