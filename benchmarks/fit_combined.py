"""Fits the weights of the combined ranking (`edgekd.search.combined`) on cells of NAS-Bench-201.

    python benchmarks/fit_combined.py --data ../shared/data --work out/rank_correlation

Draws 400 cells by the seed that `rank_correlation.py` leaves out, and minimises the logistic loss over all pairs of
networks and three data sets. Prints the weights, relative to that of capacity, and Kendall's tau of networks left out
of the fit (five folds). The caps are given, not fitted.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from rank_correlation import FITTED_CELLS, FITTED_SEED, FloatArray, cells, values_of
from scipy.stats import kendalltau

from edgekd.search.combined import Combined

STEPS = 200
TEMPERATURE = 0.3
"""Of the pairwise loss, in standard deviations of the score."""


def main() -> None:
    arguments = _arguments()
    task = cells(arguments.data, FITTED_CELLS, FITTED_SEED)
    values, skipped = values_of(task, arguments)
    kept = [place for place, key in enumerate(task.keys) if key not in skipped]
    table = np.array([[values[task.keys[place]][name] for name in Combined.proxies] for place in kept])
    table = np.clip(table, Combined.floors, Combined.caps)
    accuracies = [accuracy[kept] for accuracy in task.accuracies.values()]
    left_out = np.zeros(len(kept))
    for fold in np.array_split(np.random.default_rng(1).permutation(len(kept)), 5):
        fitting = np.setdiff1d(np.arange(len(kept)), fold)
        weights = _fitted(table[fitting], [accuracy[fitting] for accuracy in accuracies])
        left_out[fold] = table[fold] @ weights
    weights = _fitted(table, accuracies)
    result = {
        "benchmark": "fit_combined",
        "networks": len(kept),
        "draws_of_weights": arguments.draws,
        "proxies": list(Combined.proxies),
        "caps": [None if np.isinf(cap) else cap for cap in Combined.caps],
        "weights": [float(weight) for weight in weights],
        "shipped_weights": list(Combined.weights),
        "kendall_left_out": {
            name: float(kendalltau(left_out, accuracy).statistic)
            for name, accuracy in zip(task.accuracies, accuracies, strict=True)
        },
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def _fitted(table: FloatArray, accuracies: list[FloatArray]) -> FloatArray:
    """The weights, relative to the first."""
    scale = table.std(0)
    columns = torch.tensor((table - table.mean(0)) / scale)
    weights = torch.zeros(columns.shape[1], dtype=torch.float64)
    weights[0] = 1
    weights.requires_grad_()
    signs = [torch.sign(torch.tensor(a)[:, None] - torch.tensor(a)[None]) for a in accuracies]
    optimizer = torch.optim.Adam([weights], lr=0.05)
    for _ in range(STEPS):
        scores = columns @ weights
        margins = (scores[:, None] - scores[None]) / (TEMPERATURE * scores.std())
        loss = sum(((sign != 0) * torch.nn.functional.softplus(-sign * margins)).mean() for sign in signs)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found: FloatArray = weights.detach().numpy() / scale
    return found / found[0]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with nasbench/ and cifar10/")
    parser.add_argument("--work", type=Path, default=Path("out/rank_correlation"), help="values, kept between runs")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/fit_combined.json"))
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.set_defaults(batch=8, proxies=Combined.proxies)
    return parser.parse_args()


if __name__ == "__main__":
    main()
