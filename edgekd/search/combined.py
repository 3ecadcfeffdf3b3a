"""The default ranking: how much a network can store, less what its shape spoils.

Published training-free scores mostly count layers, blocks or units, and order residual networks of one family worse
than the number of parameters does; where shapes differ (cells with and without shortcuts, with pooling in the way)
counting alone is not enough. So counting comes first, and three measures that do not grow with the size of a network
are added in their own units, each only as far as it is worse than in an ordinary residual network. Among networks of
one shape they say next to nothing, and the ranking is that of capacity.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt


class Combined:
    """`capacity + 7.4 min(isotropy, 0.85) + 4.0 min(progressivity, -0.05) + 2.1 min(trainability, -0.2)`.

    The weights were fitted on 400 cells of NAS-Bench-201 (`benchmarks/fit_combined.py`), none of which is in the
    committed evidence (`benchmarks/rank_correlation.py`). The power 2/3 in the capacity, and the caps, were chosen with
    the published accuracies of DisWOT's 64 ResNets in view. Floors keep one odd block from deciding alone (a block that
    only copies its input has a trainability of -1e6). Three draws ordered 240 of those cells about as well as five
    did, in a trial that is not in the committed evidence. No score needs the teacher, images or labels, and scores of
    different calls can be compared.
    """

    summary: ClassVar[str] = "capacity, less what isotropy, progressivity and trainability show to be spoilt; default"
    draws: ClassVar[int] = 3
    proxies: ClassVar[tuple[str, ...]] = ("capacity", "isotropy", "progressivity", "trainability")
    weights: ClassVar[tuple[float, ...]] = (1.0, 7.4, 4.0, 2.1)
    floors: ClassVar[tuple[float, ...]] = (-np.inf, 0.0, -1.0, -3.0)
    caps: ClassVar[tuple[float, ...]] = (np.inf, 0.85, -0.05, -0.2)

    def scores(self, values: Sequence[Sequence[float]]) -> npt.NDArray[np.float64]:
        capped = np.clip(np.asarray(values, dtype=np.float64), self.floors, self.caps)
        # Column by column: a matrix product adds in an order that depends on the number of rows.
        scores: npt.NDArray[np.float64] = np.zeros(len(capped))
        for weight, column in zip(self.weights, capped.T, strict=True):
            scores += weight * column
        return scores
