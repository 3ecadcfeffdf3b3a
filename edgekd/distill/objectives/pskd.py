"""PS-KD: the student of the last epoch is the teacher of this one."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from edgekd.core.schema import Schema
from edgekd.distill.objectives.probability import log_probabilities, soft_cross_entropy
from edgekd.errors import UserError
from edgekd.train.gather import gathered
from edgekd.train.objective import LossWeights, Objective, Signal, Signals, TrainingData, present


class PSKDConfig(Schema):
    """Arguments of `pskd`.

    Attributes:
        alpha: Weight of the own prediction in the last epoch.
    """

    alpha: float = Field(default=0.8, ge=0, lt=1)


class PSKD(Objective[PSKDConfig]):
    """`CE((1 - a) * onehot(y) + a * P_last, p_s)`, a = alpha * (epoch + 1) / epochs; P_last from the epoch before.

    No teacher is needed. What it remembers is one row of K probabilities for each training image, of its augmented view
    at the time: N * K * 2 bytes, which enter every checkpoint. They are float16: a probability is then off by at most
    2^-12 of itself, less than the dropout of one unit changes it, and the sum of targets is computed in float32. (The
    authors keep float32 on the GPU; 1.28 million images of 1,000 classes would be 4.8 GiB in each checkpoint.) The
    first epoch has the labels for a memory, so it is plain cross-entropy; the cross-entropy beside it has weight 0 for
    the same reason.
    """

    name = "pskd"
    Config = PSKDConfig
    needs: ClassVar = frozenset({Signal.LOGITS, Signal.LABELS, Signal.IDS})
    needs_teacher = False
    t_squared = False
    default_weights = LossWeights(supervised=0.0, distill=1.0)
    formula = "CE((1 - a) * onehot(y) + a * P_last_epoch, p_s), a = alpha * (epoch + 1) / epochs"
    source = "Kim, Ji, Yoon and Hwang 2021, arXiv 2006.12000"

    memory: Tensor

    def bind_data(self, data: TrainingData) -> None:
        if data.labels is None:
            raise UserError("The objective 'pskd' needs labels, and the data has none.")
        self.register_buffer("memory", F.one_hot(data.labels, data.classes).half())

    def forward(self, student: Signals, teacher: Signals | None, labels: Tensor | None) -> Tensor:
        y, ids = present(labels, Signal.LABELS), present(student.ids, Signal.IDS)
        share = self.config.alpha * (self.progress.epoch + 1) / self.progress.epochs
        hot = F.one_hot(y, self.memory.shape[1]).float()
        targets = (1 - share) * hot + share * self.memory[ids].float()
        if self.training:
            self._remember(ids, student.logits)
        return soft_cross_entropy(student.logits, targets)

    @torch.no_grad()
    def _remember(self, ids: Tensor, logits: Tensor) -> None:
        self.memory[gathered(ids)] = gathered(log_probabilities(logits).exp()).to(self.memory.dtype)
