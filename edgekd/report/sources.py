"""How each number was obtained, in sentences made from the data: what was timed, counted or predicted, and how."""

from __future__ import annotations

from edgekd.core.report import LatencyReport
from edgekd.report.data import ReportData
from edgekd.report.plots.marks import metric_name


def sources(data: ReportData) -> list[tuple[str, str]]:
    """(what, how) for every kind of number on the page."""
    found = [*_latency(data), *_accuracy(data)]
    if data.profile is not None:
        found.append(("Size", "The bytes of the one file that the runtime loads, in MiB (2^20 bytes)."))
    if any(step.macs_m is not None for step in data.steps):
        found.append(("MACs and parameters", "Counted on the network for one image, in millions; nothing is measured."))
    if data.parity:
        found.append(("Parity", "Logits of the exported graph against its source on the same images."))
    return found


def _latency(data: ReportData) -> list[tuple[str, str]]:
    entries = data.profile.entries if data.profile is not None else ()
    measured = [entry.latency for entry in entries if entry.latency is not None]
    predicted = [entry.prediction for entry in entries if entry.prediction is not None]
    found = []
    if measured and data.profile is not None:
        found.append(("Latency", _measured(measured, data.profile.device, data.profile.threads)))
    if predicted:
        error = predicted[0].relative_error
        sure = "of unknown error" if error is None else f"with a median error of {error:.0%}"
        text = f"Predicted by {predicted[0].model}, {sure}. It was not measured and decides no verdict."
        found.append(("Predicted latency", text))
    return found


def _measured(latencies: list[LatencyReport], device: str, threads: tuple[int, ...]) -> str:
    fewest, most = min(latency.n for latency in latencies), max(latency.n for latency in latencies)
    runs = f"{fewest:,}" if fewest == most else f"{fewest:,} to {most:,}"
    counts = " and ".join(str(count) for count in threads)
    judged = f" (decisions are taken at {threads[0]})" if len(threads) > 1 else ""
    return (
        f"Measured on {device}, with {counts} CPU thread{'s' if threads != (1,) else ''}{judged}, batch "
        f"{latencies[0].batch}. Timed: {latencies[0].region}. All engines took turns in random order after warming up, "
        f"{runs} timed calls each. The interval of a median is the 95 % order-statistic interval of the medians of the "
        "rounds, wider where rounds depend on each other."
    )


def _accuracy(data: ReportData) -> list[tuple[str, str]]:
    if not data.evaluations:
        return []
    counts = {evaluation.split: evaluation.n for evaluation in data.evaluations}
    splits = " and ".join(f"{n:,} {split} images" for split, n in counts.items())
    metric = data.evaluations[0].metric
    what = "whose label has the largest logit" if metric == "top1" else "with the teacher's answer"
    text = (
        f"Share of images {what}, computed in the runtime itself on {splits}; intervals are 95 % Wilson intervals. "
        "Engines are chosen on the select split; the verdict is given on the test split, on which nothing was chosen."
    )
    if any(evaluation.synthetic for evaluation in data.evaluations):
        text += (
            " The images were generated from BatchNorm statistics: these figures say nothing certain of real images."
        )
    return [(metric_name(metric), text)]
