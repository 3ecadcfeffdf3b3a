"""What teacher-student proxies compare: the last features of a random network and the weights that read them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgekd.errors import UserError
from edgekd.nn.taps import EMBEDDING, FEATURE_MAP, Taps
from edgekd.search.proxies.network import batch_statistics, check_alive
from edgekd.search.sharing import shared


@dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """One forward pass over a batch, without gradient; BatchNorm normalises by the batch.

    Attributes:
        features: (N, C, H, W), the last feature map; the classifier's input as a map of one pixel where there is none.
        read: (N, D, H', W'): what the classifier's weights are applied to. The same map, unless another layer stands
            between the two: then the classifier's own input.
        weight: (K, D), of the classifier.
    """

    features: Tensor
    read: Tensor
    weight: Tensor


@shared
def view(module: nn.Module, images: Tensor) -> View:
    """The view of a network, which is left as it was.

    Args:
        module: Images (N, C, H, W) to logits (N, K).
        images: (N, C, H, W).

    Raises:
        UserError: It has no classifier layer.
        Unscorable: Its logits say nothing.
    """
    channels, height, width = images.shape[1:]
    taps = Taps(module, {EMBEDDING}, (channels, height, width))
    assert taps.points is not None
    if taps.points.feature_map is not None:
        taps.want |= {FEATURE_MAP}
    with batch_statistics(module), torch.inference_mode():
        seen = taps(images)
    check_alive(seen.logits)
    assert seen.embedding is not None
    embedding = seen.embedding[:, :, None, None]
    features = embedding if seen.feature_map is None else seen.feature_map
    weight = module.get_parameter(f"{taps.points.classifier}.weight").detach().flatten(1)
    read = features if features.shape[1] == weight.shape[1] else embedding
    return View(features=features, read=read, weight=weight)


def check_classes(student: Tensor, teacher: Tensor) -> None:
    """Makes sure that two tensors (K, ...) speak of the same number of classes.

    Raises:
        UserError: They do not.
    """
    if len(student) != len(teacher):
        raise UserError(
            f"Student and teacher must know the same classes, but the student has {len(student)} and the teacher "
            f"{len(teacher)}.",
            hint="build the students with the teacher's number of classes",
        )
