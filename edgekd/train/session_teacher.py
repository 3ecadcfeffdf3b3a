"""A teacher that is only a graph: an inference session that answers like a module, with logits alone."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from edgekd.runtimes.session import Session


class SessionTeacher(nn.Module):
    """Images (N, C, H, W) to logits (N, K), without gradients, computed in the session on the CPU.

    Args:
        session: With an open batch; whoever opened it closes it.
        output: Name of the logits.
        identity: Digest of the graph: it stands for the weights where a training is told from another.
    """

    identity: Tensor

    def __init__(self, session: Session, output: str, identity: str) -> None:
        super().__init__()
        self._session = session
        self._output = output
        # A buffer, so that whoever digests the state of a teacher digests the graph.
        self.register_buffer("identity", torch.frombuffer(bytearray(identity.encode()), dtype=torch.uint8).clone())

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        feeds = {self._session.input_names[0]: np.ascontiguousarray(images.float().cpu().numpy())}
        return torch.from_numpy(self._session.infer(feeds)[self._output]).to(images.device)
