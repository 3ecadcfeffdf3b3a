"""Fits the efficiencies of the target cards to published latencies, and says how far the fitted model is off.

    python benchmarks/calibrate_targets.py latency_published.csv > benchmarks/calibrate_targets.json

The CSV has the columns device, model, precision, batch, runtime, latency_ms. Nothing is measured here: the latencies
are those that the sources named in the cards published, mostly with unstated power modes and thread counts, and with
small classification heads. Fitted per device: the share of the peak rate that convolutions reach, the share that
depthwise convolutions reach, and the overhead per operation (bounded below, because no network in the set is small
enough to show it). Minimised is the mean squared log ratio, each family of networks with one vote. The reported error
is the median over networks of the relative error of a fit without the network's family.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import timm
from scipy.optimize import minimize

from edgekd.core.cost import OpCost
from edgekd.nn.count import layer_costs
from edgekd.targets.latency import LatencyModel, latency_model_from_target
from edgekd.targets.load import target_from_yaml
from edgekd.targets.schema import Precision, Target

NETWORKS = {  # published name: (timm name, family)
    "ResNet18": ("resnet18", "resnet18"),
    "ResNet50": ("resnet50", "resnet50"),
    "MobileNetV3-large": ("mobilenetv3_large_100", "mobilenetv3"),
    "MixNet-s": ("mixnet_s", "mixnet"),
    "MixNet-m": ("mixnet_m", "mixnet"),
    "MixNet-l": ("mixnet_l", "mixnet"),
}


class Series(NamedTuple):
    """Published rows that speak about a card, and the precision in which that runtime computes."""

    card: str
    device: str
    runtime: str
    published_as: str
    computes_in: Precision
    least_overhead_us: float


SERIES = (
    Series("jetson-orin-nano", "Jetson Orin Nano", "TensorRT JetPack 6.0", "fp16", "fp16", 5.0),
    Series("jetson-agx-orin", "Jetson AGX Orin", "TensorRT JetPack 5.0.1", "fp16", "fp16", 3.0),
    Series("jetson-xavier-nx", "Jetson Xavier NX", "TensorRT JetPack 4.6", "fp16", "fp16", 5.0),
    Series("raspberry-pi-5", "Raspberry Pi 5", "TFLite", "fp16", "fp32", 5.0),
    Series("raspberry-pi-4", "Raspberry Pi 4B", "TFLite", "fp16", "fp32", 10.0),
)


class Point(NamedTuple):
    network: str
    family: str
    costs: tuple[OpCost, ...]
    latency_ms: float


def fitted(target: Target, points: list[Point], precision: Precision, least_overhead_us: float) -> LatencyModel:
    """The card's model with the conv and depthwise efficiencies and the overhead that suit the points best."""
    base = latency_model_from_target(target)
    votes = np.array([1 / sum(other.family == point.family for other in points) for point in points])

    def model(x: np.ndarray) -> LatencyModel:
        conv, depthwise, overhead = (float(value) for value in np.exp(x))
        shares = {"conv": conv, "linear": conv, "other": conv, "depthwise": depthwise}
        return base.model_copy(update={"efficiency": shares, "overhead_us_per_op": overhead})

    def loss(x: np.ndarray) -> float:
        ratios = [np.log(model(x).predict_ms(p.costs, precision) / p.latency_ms) for p in points]
        return float(np.average(np.square(ratios), weights=votes))

    bounds = [(np.log(1e-3), 0.0), (np.log(1e-4), 0.0), (np.log(least_overhead_us), np.log(500.0))]
    starts = [np.log([conv, dw, 2 * least_overhead_us]) for conv in (0.1, 0.4) for dw in (0.005, 0.05)]
    found = [minimize(loss, start, method="Nelder-Mead", bounds=bounds, options={"maxiter": 400}) for start in starts]
    return model(min(found, key=lambda result: result.fun).x)


def report(series: Series, points: list[Point], folder: Path) -> dict[str, object]:
    target = target_from_yaml(folder / f"{series.card}.yaml")
    card = latency_model_from_target(target)
    model = fitted(target, points, series.computes_in, series.least_overhead_us)
    errors = {}
    for point in points:
        others = [other for other in points if other.family != point.family]
        blind = fitted(target, others, series.computes_in, series.least_overhead_us)
        errors[point.network] = blind.predict_ms(point.costs, series.computes_in) / point.latency_ms - 1
    return {
        "series": series._asdict(),
        "efficiency": {kind: round(share, 4) for kind, share in model.efficiency.items()},
        "op_overhead_us": round(model.overhead_us_per_op, 1),
        "median_relative_error_family_left_out": round(float(np.median(np.abs(list(errors.values())))), 3),
        "networks": {
            point.network: {
                "published_ms": point.latency_ms,
                "fitted_ms": round(model.predict_ms(point.costs, series.computes_in), 3),
                "card_ms": round(card.predict_ms(point.costs, series.computes_in), 3),
                "relative_error_family_left_out": round(errors[point.network], 3),
            }
            for point in points
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", type=Path)
    parser.add_argument("--targets", type=Path, default=Path(__file__).parent.parent / "targets")
    args = parser.parse_args()
    with args.csv.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    costs = {name: layer_costs(timm.create_model(name), (3, 224, 224)) for name, _ in NETWORKS.values()}
    results = {}
    for series in SERIES:
        wanted = (series.device, series.runtime, series.published_as)
        points = [
            Point(row["model"], NETWORKS[row["model"]][1], costs[NETWORKS[row["model"]][0]], float(row["latency_ms"]))
            for row in rows
            if (row["device"], row["runtime"], row["precision"]) == wanted and row["model"] in NETWORKS
        ]
        results[series.card] = report(series, points, args.targets)
    print(json.dumps({"schema_version": 1, "timm": timm.__version__, "cards": results}, indent=2))


if __name__ == "__main__":
    main()
