"""MeCo: how little the channels of a random network's feature maps repeat each other."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from edgekd.search.proxies.network import batch_statistics, check_alive, gaussian_like
from edgekd.search.proxy import Batch, Proxy, ScoreStudent, Unscorable

_SEED = 20231210


class MeCo(Proxy):
    """`sum_l lambda_min(P_l)`, P_l the C x C Pearson correlation of the channels behind layer l, for one noise image.

    A layer with more channels than pixels adds nothing: its channels depend on each other. Deviations: two images are
    computed and the first is looked at, because BatchNorm needs something to normalise by; layers are modules without
    children (the authors' code also counts what contains them); a channel without variation correlates with nothing.
    """

    uses_weights: ClassVar[bool] = True
    formula: ClassVar[str] = "sum_l lambda_min(P_l), P_l the correlation of the channels behind layer l"
    source: ClassVar[str] = "Jiang, Wang and Bie 2023, NeurIPS"

    def bind(self, teacher: nn.Module, batch: Batch) -> ScoreStudent:
        noise = gaussian_like(batch.images[:2], seed=_SEED)
        return lambda student: _score(student, noise)


def smallest_eigenvalue(channels: Tensor) -> float:
    """The smallest eigenvalue of the correlation of the rows (C, P); 0 when they depend on each other."""
    if len(channels) >= channels.shape[1]:
        # Centred rows of P values span P - 1 dimensions.
        return 0.0
    rows = channels.double()
    rows = nn.functional.normalize(rows - rows.mean(1, keepdim=True), dim=1)
    return max(0.0, float(torch.linalg.eigvalsh(rows @ rows.T)[0]))


def _score(module: nn.Module, images: Tensor) -> float:
    found: list[float] = []

    def leaving(part: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4:
            found.append(smallest_eigenvalue(output[0].flatten(1)))

    layers = [part for part in module.modules() if next(part.children(), None) is None]
    handles = [layer.register_forward_hook(leaving) for layer in layers]
    try:
        with batch_statistics(module), torch.inference_mode():
            logits = module(images)
    finally:
        for handle in handles:
            handle.remove()
    check_alive(logits)
    if not found:
        raise Unscorable("It has no feature maps (N, C, H, W).")
    return sum(found)
