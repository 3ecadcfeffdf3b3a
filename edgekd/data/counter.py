"""Random numbers as a pure function of counters, so that any sample of any view or epoch can be replayed alone.

A generator with state cannot give the numbers of sample 812 in epoch 7 without those before it, and its streams may
change with a NumPy release; a hash of (seed, stream, sample) can and does not. The hash is the SplitMix64 finaliser
(Steele, Lea and Flood 2014), which is more than good enough for crops, flips and orders, and is not for secrets.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

UInt64Array = npt.NDArray[np.uint64]
_WORD = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def hashed(samples: npt.NDArray[np.int64], *counters: int) -> UInt64Array:
    """One 64-bit word per sample, a pure function of the sample's number and the counters.

    Args:
        samples: (N,) sample numbers, at least 0.
        counters: Seed, view, stream and the like; their order matters.
    """
    state = 0
    for counter in counters:
        state = _mixed_int((state + _GOLDEN + (counter & _WORD)) & _WORD)
    return _mixed(_mixed(samples.astype(np.uint64) + np.uint64(_GOLDEN)) ^ np.uint64(state))


def uniform(samples: npt.NDArray[np.int64], *counters: int) -> npt.NDArray[np.float64]:
    """(N,) float64, uniform on [0, 1), a pure function of the arguments of `hashed`."""
    return (hashed(samples, *counters) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def integers(samples: npt.NDArray[np.int64], high: int, *counters: int) -> npt.NDArray[np.int64]:
    """(N,) int64, uniform on 0 ... high - 1, a pure function of the arguments of `hashed`."""
    return np.floor(uniform(samples, *counters) * high).astype(np.int64)


def permutation(n: int, *counters: int) -> npt.NDArray[np.int64]:
    """A permutation of 0 ... n - 1, a pure function of `n` and the counters."""
    return np.argsort(hashed(np.arange(n, dtype=np.int64), *counters), kind="stable").astype(np.int64)


def _mixed(words: UInt64Array) -> UInt64Array:
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def _mixed_int(word: int) -> int:
    return int(_mixed(np.array([word], dtype=np.uint64))[0])
