"""What the objectives on features share: directions, relations between samples, and maps of one size.

All of it computes in at least float32 whatever the autocast around it says: differences of nearly equal numbers do not
survive half precision.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

import torch
import torch.nn.functional as F
from torch import Tensor

from edgekd.train.objective import full_precision


def precise(distance: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """The same function of student and teacher, outside of autocast and on tensors of at least float32."""

    @wraps(distance)
    def computed(student: Tensor, teacher: Tensor) -> Tensor:
        with torch.autocast(device_type=student.device.type, enabled=False):
            return distance(full_precision(student), full_precision(teacher))

    return computed


def directions(x: Tensor) -> Tensor:
    """Vectors along the last dimension at length 1; a zero vector stays zero and passes its gradient on unscaled.

    Dividing by `max(length, epsilon)` instead would multiply the gradient of equal samples by 1 / epsilon.
    """
    length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / torch.where(length > 0, length, torch.ones_like(length))


def gram(rows: Tensor) -> Tensor:
    """(R, R) inner products of the rows of (R, D)."""
    return rows @ rows.T


def at_one_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Two batches of maps (N, C, H, W) at the smaller of both heights and widths, by adaptive average pooling."""
    size = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
    return F.adaptive_avg_pool2d(student, size), F.adaptive_avg_pool2d(teacher, size)
