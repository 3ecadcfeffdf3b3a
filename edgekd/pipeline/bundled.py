"""Writes the package of a finished run: the engines to hand over, their figures, and where all of it came from.

What was measured goes in as it was measured. So two runs of one request give two packages that differ in their figures
(and may differ in the choice), while the same results, delivered again anywhere, give the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import JsonValue

from edgekd.core.blobs import Blobs
from edgekd.core.report import CandidateLatency
from edgekd.core.text import ms
from edgekd.data.dataset import Dataset
from edgekd.export.card import CARD_FILE, CardFacts, model_card
from edgekd.export.deployment import deployment_of
from edgekd.export.manifest import Manifest
from edgekd.export.package import write_package
from edgekd.export.sbom import MODEL_LICENSE, MODEL_NAME
from edgekd.gate.artifacts import METRICS_FILE, RunMetrics
from edgekd.gate.candidates import INT8
from edgekd.pipeline.compose import FINAL
from edgekd.pipeline.engines import SAMPLES
from edgekd.pipeline.recipes import Recipe
from edgekd.pipeline.request import SYNTHETIC
from edgekd.pipeline.results import Results, metrics_of
from edgekd.pipeline.shipping import Shipment, shipment_of
from edgekd.pipeline.situation import Situation
from edgekd.pipeline.steps import ancestors_of
from edgekd.runtimes.samples import SAMPLES_FILE

_TAKES_TIME = ("_s", "_per_s", "seconds")
"""Ends of names of figures that say how long making something took."""


def write_bundle(
    results: Results,
    recipe: Recipe,
    situation: Situation,
    blobs: Blobs,
    folder: Path,
    versions: Mapping[str, str],
) -> Manifest:
    """Writes the package and returns what is in it; equal results give equal bytes, whenever and wherever.

    Args:
        results: Of the finished run.
        recipe: What was asked.
        situation: The target, the data and the teacher.
        blobs: Finds the engines' files.
        folder: Where to.
        versions: Of the tools, by name.

    Raises:
        UserError: The place is not free, or cannot be written.
    """
    shipment = shipment_of(results, situation.target, recipe.options.bundle_engines)
    facts = _facts(results, recipe, situation)
    behind = [node for node in results.run.nodes if node.name in _behind(results, shipment)]
    own = ancestors_of(results.choice.candidate, results.graph)
    card = CardFacts(
        bundle=results.chosen_bundle,
        target=situation.target,
        engines=deployment_of(shipment.chosen, shipment.twins, blobs).engines,
        facts=facts,
        data=data_in_words(recipe.request.data, situation.dataset),
        accuracy=results.accuracy(FINAL, "test"),
        reference=results.accuracy(results.reference, "test"),
        verdict=results.verdict,
        decisions=tuple(sentence for node in behind if node.name in own for sentence in node.decisions),
    )
    metrics = compact(metrics_of(results, recipe), {node.name: node.metrics for node in behind})
    return write_package(
        results.chosen_bundle,
        blobs,
        folder,
        target=situation.target,
        versions=versions,
        extra=facts,
        texts={CARD_FILE: model_card(card), METRICS_FILE: metrics.to_json() + "\n"},
        chosen=shipment.chosen,
        twins=shipment.twins,
    )


def compact(metrics: RunMetrics, stages: Mapping[str, Mapping[str, JsonValue]]) -> RunMetrics:
    """The figures that stay with a package: without single samples, and without how long it took to make it.

    Args:
        metrics: Of the whole run.
        stages: Of the nodes that the package came from.
    """
    profile = metrics.profile.model_copy(update={"entries": tuple(map(_without_samples, metrics.profile.entries))})
    return metrics.model_copy(update={"stages": lasting(stages), "profile": profile})


def lasting(stages: Mapping[str, Mapping[str, JsonValue]]) -> dict[str, dict[str, JsonValue]]:
    """The figures of nodes by name, without how long the work took: that differs from run to run."""
    return {
        name: {key: value for key, value in found.items() if not key.endswith(_TAKES_TIME)}
        for name, found in stages.items()
    }


def data_in_words(named: str | None, dataset: Dataset | None) -> str | None:
    """The data as a model card tells it; None without any.

    Args:
        named: As it was asked for.
        dataset: As it was loaded; None for generated images, and without data.
    """
    if dataset is None:
        return "images generated from the network's own statistics" if named == SYNTHETIC else None
    kind = f"{len(dataset.classes)} classes" if dataset.labelled else "no labels"
    return (
        f"{dataset.name}, {kind}; {len(dataset.train):,} images to train and calibrate on, {len(dataset.select):,} to "
        f"choose with, {len(dataset.test):,} for the verdict"
    )


def _without_samples(entry: CandidateLatency) -> CandidateLatency:
    if entry.latency is None:
        return entry
    latency = entry.latency.model_copy(update={"samples_ms": (), "rounds_packed": ""})
    return entry.model_copy(update={"latency": latency})


def _behind(results: Results, shipment: Shipment) -> set[str]:
    """The nodes that the package came from."""
    return {name for engine in shipment.nodes for name in ancestors_of(engine, results.graph)}


def _facts(results: Results, recipe: Recipe, situation: Situation) -> dict[str, str]:
    """What the package says of the run that made it."""
    choice = results.choice
    facts = {
        "candidate": choice.candidate,
        "runtime": choice.runtime,
        MODEL_NAME: Path(recipe.request.model.path).name,
        "seed": str(recipe.request.seed),
        "threads": str(results.profile.threads[0]),
    }
    if situation.license is not None:
        facts[MODEL_LICENSE] = situation.license
    if situation.dataset is not None:
        facts["data"] = situation.dataset.digest
    calibration = _calibration(results)
    if calibration is not None:
        facts["calibration"] = calibration
    latency = results.latency(choice.candidate)
    if latency is not None:
        facts["latency"] = ms(latency.median_ms)
        if latency.origin == "measured":
            facts["measured_on"] = results.profile.device
    return facts


def _calibration(results: Results) -> str | None:
    """Digest of the samples that the chosen engine was calibrated on; None where it was on none."""
    if results.choice.precision != INT8 or SAMPLES not in ancestors_of(results.choice.candidate, results.graph):
        return None
    return results.run.bundle(SAMPLES).files.get(SAMPLES_FILE)
