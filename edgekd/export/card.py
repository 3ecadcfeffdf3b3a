"""`MODEL_CARD.md`: what a model is, what it was made from and how, what is known of it, and what is not.

Every sentence comes from the run: a section without facts is a sentence that says so. It follows the questions of model
cards (Mitchell et al., 2019, arXiv 1810.03993) as far as a compression can answer them; intended use and ethics are the
owner's to write.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgekd.core.bundle import ModelBundle
from edgekd.core.deployment import DeployedEngine
from edgekd.core.report import METRIC_NAMES, Evaluation, Verdict
from edgekd.core.text import mib, ms, percent
from edgekd.export.sbom import MODEL_LICENSE, MODEL_NAME
from edgekd.targets.schema import Target

CARD_FILE = "MODEL_CARD.md"
_DIGITS = 16


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What a card tells.

    Attributes:
        bundle: The chosen one.
        target: None for weights, which are for no device yet.
        engines: As in `deploy.json`.
        facts: Of the package: `model`, `seed`, `data`, `calibration`, `model_license`.
        data: The data in words; None without any.
        accuracy: Of the chosen engine on the split that nothing was decided on.
        reference: Of the network that it was made from, in the same way.
        verdict: None where nothing was judged.
        decisions: What the stages that made it decided, in their order.
    """

    bundle: ModelBundle
    target: Target | None
    engines: tuple[DeployedEngine, ...] = ()
    facts: Mapping[str, str]
    data: str | None = None
    accuracy: Evaluation | None = None
    reference: Evaluation | None = None
    verdict: Verdict | None = None
    decisions: tuple[str, ...] = ()


def model_card(card: CardFacts) -> str:
    """The text, in Markdown."""
    precision = str(card.bundle.tags.get("precision", "fp32")).upper()
    licence = card.facts.get(MODEL_LICENSE, "Not known: it was not given")
    place = "PyTorch" if card.target is None else card.target.name
    parts = [
        f"# {precision} image classifier for {place}",
        "## What it is\n\n" + _what(card),
        "## Accuracy\n\n" + _accuracy(card),
        "## Latency and size\n\n" + _latency(card),
        "## What it was made from\n\n" + _origin(card),
        "## How it was made\n\n" + _bullets(card.decisions, "Nothing was recorded."),
        "## Limits\n\n" + _bullets(_limits(card), ""),
        f"## Licence\n\n{licence.rstrip('.')}. See NOTICE.txt.",
    ]
    return "\n\n".join(parts) + "\n"


def _what(card: CardFacts) -> str:
    images, logits, recipe = card.bundle.inputs[0], card.bundle.outputs[0], card.bundle.model
    shape = " x ".join(str(size) for size in images.shape)
    edits = f", changed {len(recipe.edits)} times (pruned, fused or quantized)" if recipe.edits else ""
    lines = [
        f"- Task: image {recipe.task}, {logits.shape[-1]} classes",
        f"- Architecture: {recipe.builder}{edits}",
        f"- Input: `{images.name}`, {images.dtype}, {shape}; preprocessing.json says how images become it",
        f"- Output: `{logits.name}`, {logits.dtype}, unnormalised",
    ]
    if recipe.labels:
        more = f" ... {recipe.labels[-1]}" if len(recipe.labels) > 3 else ""
        lines.append(f"- Classes: {', '.join(recipe.labels[:3])}{more} (labels.txt has all {len(recipe.labels)})")
    return "\n".join(lines)


def _accuracy(card: CardFacts) -> str:
    rows = [("this model", card.accuracy), ("the network it was made from", card.reference)]
    told = [(name, found) for name, found in rows if found is not None]
    if not told:
        return "Not judged: there were no images that it could be judged on."
    lines = ["| of | figure | value | 95 % interval | images | computed in |", "|---|---|---|---|---|---|"]
    for name, found in told:
        interval = f"{percent(found.low)} to {percent(found.high)}"
        made = ", generated images" if found.synthetic else ""
        lines.append(
            f"| {name} | {METRIC_NAMES[found.metric]}{made} | {percent(found.value)} | {interval} | {found.n:,} "
            f"| {found.runtime} |"
        )
    return "\n".join(lines)


def _latency(card: CardFacts) -> str:
    if not card.engines:
        return "Not known: nothing in this package runs on a device yet."
    lines = [
        "| engine | precision | runtime | CPU threads | median | p99 | size |",
        "|---|---|---|---|---|---|---|",
    ]
    for engine in card.engines:
        latency = engine.latency
        median = "not known" if latency is None else ms(latency.median_ms)
        if latency is not None and latency.origin == "predicted":
            median = f"{median} predicted"
        p99 = "" if latency is None or latency.p99_ms is None else ms(latency.p99_ms)
        name = f"{engine.name} (chosen)" if engine.chosen else engine.name
        lines.append(
            f"| {name} | {engine.precision} | {engine.runtimes[0]} | {engine.threads} | {median} | {p99} "
            f"| {mib(engine.size_mib)} |"
        )
    chosen = next(engine for engine in card.engines if engine.chosen)
    lines += ["", f"One image a call. Chosen: {chosen.reason}."]
    if chosen.latency is not None:
        word = "Measured on" if chosen.latency.origin == "measured" else "Predicted for"
        lines.append(f"{word} {chosen.latency.device}.")
    return "\n".join(lines)


def _origin(card: CardFacts) -> str:
    facts = card.facts
    lines = [f"- Model: {facts.get(MODEL_NAME, 'not recorded')}"]
    lines.append(f"- Data: {card.data or 'none'}" + _digest(facts, "data"))
    if "calibration" in facts:
        lines.append("- Calibration: samples drawn from the training images" + _digest(facts, "calibration"))
    lines.append(f"- Seed: {facts.get('seed', 'not recorded')}")
    lines.append("- Versions of everything that made it: manifest.json; as a bill of materials: sbom.json")
    return "\n".join(lines)


def _digest(facts: Mapping[str, str], name: str) -> str:
    return f" (digest {facts[name][:_DIGITS]}...)" if name in facts else ""


def _limits(card: CardFacts) -> list[str]:
    """What the figures above do not say."""
    found = []
    if card.accuracy is None:
        found.append("Its accuracy is not known: judge it on images of its use before it is deployed.")
    elif card.accuracy.metric == "agreement":
        found.append("Agreement says how often it answers as the network it was made from, not how often it is right.")
    else:
        found.append(f"The accuracy holds for images like the {card.accuracy.n:,} that it was counted on.")
    chosen = next((engine for engine in card.engines if engine.chosen), None)
    if chosen is not None and (chosen.latency is None or chosen.latency.origin == "predicted"):
        found.append("Nothing was measured on the device; a prediction steers a choice and proves nothing.")
    elif chosen is not None:
        found.append(
            f"The latency holds for the device above with {chosen.threads} CPU thread"
            f"{'' if chosen.threads == 1 else 's'}, and for the versions of the runtime that it names."
        )
    if card.verdict is not None and card.verdict.status != "PASS":
        found.append(f"It was judged {card.verdict.status}: {card.verdict.reason}")
    elif card.verdict is not None:
        found.append(f"Judged by the limits of its run: PASS. {card.verdict.reason}")
    return found


def _bullets(sentences: tuple[str, ...] | list[str], otherwise: str) -> str:
    return "\n".join(f"- {' '.join(sentence.split())}" for sentence in sentences) or otherwise
