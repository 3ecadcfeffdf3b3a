"""The engines of one model that converters make: for the runtimes of a target that read no ONNX graph."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import JsonValue

from edgekd.core.bundle import BundleKind
from edgekd.export.convert import CONVERTERS, Converter
from edgekd.pipeline.draft import Draft
from edgekd.pipeline.request import Options
from edgekd.pipeline.situation import Situation
from edgekd.runtimes.session import RUNTIMES, Availability
from edgekd.targets.schema import Precision, RuntimeSupport


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """An engine that may be deployed.

    Attributes:
        node: Node that makes it.
        runtimes: Runtimes it is meant for.
        converted: It is in the format of its one runtime, and no graph that others could stand in for.
    """

    node: str
    runtimes: tuple[str, ...]
    converted: bool = False


def draft_converted(
    draft: Draft,
    options: Options,
    situation: Situation,
    label: str,
    model: str,
    exported: str,
    samples: str | None,
) -> list[Candidate]:
    """A `convert` node for each precision of each runtime that has a converter, where both are installed here.

    Args:
        label: Of the model.
        model: Node of the TORCH bundle.
        exported: Node of its FP32 graph.
        samples: Node of calibration and parity samples; None without data.
    """
    found: list[Candidate] = []
    for support in situation.runtimes:
        if support.runtime not in CONVERTERS:
            continue
        converter = CONVERTERS.get(support.runtime)
        missing = _missing(converter)
        if missing is not None:
            sentence = f"No {support.runtime} engines are made: {missing.reason} ({missing.install})."
            if sentence not in draft.decisions:
                draft.say(sentence)
            continue
        config: dict[str, JsonValue] = {"to": support.runtime, "atol": options.atol, "rtol": options.rtol}
        source = model if converter.takes is BundleKind.TORCH else exported
        for precision in _precisions(converter, support, options, samples):
            node = draft.add(
                f"{label}-{precision}-{support.runtime}",
                "convert",
                config | {"precision": precision},
                {"model": source, "samples": samples},
            )
            found.append(Candidate(node=node, runtimes=(support.runtime,), converted=True))
    return found


def _missing(converter: Converter) -> Availability | None:
    """What is not installed of the two that a conversion needs, or None."""
    halves = (converter.availability(), RUNTIMES.get(converter.name).availability())
    return next((found for found in halves if not found.ok), None)


def _precisions(
    converter: Converter, support: RuntimeSupport, options: Options, samples: str | None
) -> list[Precision]:
    """What is asked for, written and run there; what needs calibration only with samples."""
    return [
        precision
        for precision in converter.precisions
        if precision in support.precisions
        and (precision in options.precisions or precision == "fp32")
        and (samples is not None or precision not in converter.calibrated)
    ]
