from __future__ import annotations

import torch
from torch import nn

from edgekd.nn.shapes import example_images


class Holding(nn.Module):
    """A module without parameters, as a teacher that is only a graph."""

    def __init__(self, *buffers: torch.Tensor) -> None:
        super().__init__()
        for number, value in enumerate(buffers):
            self.register_buffer(f"b{number}", value)


def test_images_are_on_the_device_and_in_the_type_of_weights_or_else_of_buffers() -> None:
    meta = torch.device("meta")
    assert example_images(nn.Linear(2, 2, dtype=torch.float16), (3, 4, 4), batch=2).dtype == torch.float16
    identity = torch.zeros(3, dtype=torch.uint8, device=meta)
    found = example_images(Holding(identity), (3, 4, 4))
    assert (found.device, found.dtype, tuple(found.shape)) == (meta, torch.float32, (1, 3, 4, 4))
    assert example_images(Holding(identity, torch.zeros(3, dtype=torch.float64, device=meta)), (3, 4, 4)).dtype == (
        torch.float64
    )
    assert example_images(nn.ReLU(), (3, 4, 4)).device.type == "cpu"
