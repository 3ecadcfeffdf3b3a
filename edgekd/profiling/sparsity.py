"""What N:M sparsity came to in the engines that were measured: zeros pay only where a runtime has kernels for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from edgekd.core.report import CandidateLatency

DENSE_ON_CPUS = frozenset({"onnxruntime", "openvino"})
"""Runtimes whose CPU kernels compute zeros like other values."""


def patterns_in_words(entries: Sequence[CandidateLatency], patterns: Mapping[str, str]) -> Iterator[str]:
    """A sentence on each sparse candidate in each runtime: how many of its kernels are sparse by their names.

    Args:
        entries: Of the profile.
        patterns: `2:4`, by name of each candidate whose weights have it.
    """
    seen = set()
    for entry in entries:
        pattern = patterns.get(entry.candidate)
        if pattern is None or entry.failure is not None or (entry.candidate, entry.runtime) in seen:
            continue
        seen.add((entry.candidate, entry.runtime))
        where = f"{entry.candidate} has {pattern} sparsity: in {entry.runtime}"
        layers = entry.layers
        if entry.runtime in DENSE_ON_CPUS and not (layers and layers.sparse_kernels):
            yield f"{where} no CPU kernel makes use of it; zeros are computed like other values"
        elif layers is None or not layers.named_kernels:
            yield f"{where} it is not known which kernels make use of it: their names were not recorded"
        else:
            yield (
                f"{where} the kernels of {layers.sparse_kernels} of {layers.named_kernels} convolutions and matrix "
                "products are sparse by their names"
            )
