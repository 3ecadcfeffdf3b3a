"""TGeo-KD: how far teacher and label count for an image is learned from how they and the student differ on it."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from edgekd.distill.objectives.probability import divergences, log_probabilities
from edgekd.train.objective import LossWeights, Signal, Signals, SignalSpec, Survey, full_precision, present
from edgekd.train.survey import class_means
from edgekd.train.weighing import Weighing, WeighingConfig


class TGeoConfig(WeighingConfig):
    """Arguments of `tgeo`.

    Attributes:
        temperature: T, of the teacher's term.
        hidden: Width of the controller, which has 9 * K inputs, one hidden layer and one output.
    """

    temperature: float = Field(default=1.5, gt=0)
    hidden: int = Field(default=128, ge=1)


class TGeo(Weighing[TGeoConfig]):
    """`mean_i(alpha_i * T^2 * KL(p_t || p_s) + (1 - alpha_i) * CE(y_i, p_s))`, alpha = sigmoid(controller(state)).

    The state of an image: what student, teacher and label say of it, what the teacher says of its class on average
    (probabilities at T = 1), and the squared differences between them, 9 * K numbers. The controller learns on a part
    of the training images that is held out: alpha is to make the student's next step good for them
    (`edgekd.train.outer`). As the cross-entropy is one of the two terms, the one beside it has weight 0.

    Deviations: in the authors' public code the controller gets no gradient, and the cross-entropy is taken of softmax
    outputs; here it gets that of the bilevel problem they state, and the cross-entropy is that of the logits. They take
    the class means over the batch, or over the test images; here they are those of the images that are trained on. The
    state is that of their code for tables of features; that for CIFAR-100 has absolute differences and products
    instead. Every alpha begins at 1/2. Their controller's learning rate (0.1, whole data set) and weight decay (0.05)
    were never in effect: `rate` is ours, and there is no decay.

    What to expect: the label's term is the very loss that the held-out images are judged by, so alpha falls where the
    teacher adds nothing to the label, and falls further where the teacher is wrong. Labels that are wrong at random are
    as wrong among the images held out, and are not found out.
    """

    name = "tgeo"
    Config = TGeoConfig
    needs: ClassVar = frozenset({Signal.LOGITS, Signal.LABELS})
    needs_of_teacher: ClassVar = frozenset({Signal.LOGITS})
    t_squared = True
    default_weights = LossWeights(supervised=0.0, distill=1.0)
    formula = "mean_i(a_i * T^2 * KL(p_t || p_s) + (1 - a_i) * CE(y_i, p_s)), a_i = sigmoid(MLP(p_s, p_t, y_i, ...))"
    source = "Hu, Wu, Li, Ma, Chen, Yan, Wang and Liu 2023, arXiv 2312.15112"
    term_names: ClassVar = ("teacher", "label")

    means: Tensor

    def bind(self, student: SignalSpec, teacher: SignalSpec) -> None:
        last = nn.Linear(self.config.hidden, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.take_controller(nn.Sequential(nn.Linear(9 * teacher.classes, self.config.hidden), nn.ReLU(), last))
        self.register_buffer("means", torch.zeros(teacher.classes, teacher.classes))

    def prepare(self, survey: Survey) -> None:
        self.means.copy_(class_means(survey, len(self.means), lambda said: log_probabilities(said.logits).exp()))

    def state(self, student: Signals, teacher: Signals, labels: Tensor | None) -> Tensor:
        y = present(labels, Signal.LABELS)
        s, t = (log_probabilities(said.logits.detach()).exp() for said in (student, teacher))
        return trilateral_state(s, t, F.one_hot(y, s.shape[1]).to(s.dtype), self.means[y].to(s.dtype))

    def weights(self, state: Tensor) -> Tensor:
        alpha = full_precision(self.controller(state)).sigmoid()
        return torch.cat([alpha, 1 - alpha], dim=1)

    def terms(self, student: Signals, teacher: Signals, labels: Tensor | None) -> Tensor:
        y, temperature = present(labels, Signal.LABELS), self.config.temperature
        log_t, log_s = (log_probabilities(said.logits, temperature) for said in (teacher, student))
        by_label = F.nll_loss(log_probabilities(student.logits), y, reduction="none")
        return torch.stack([temperature**2 * divergences(log_t, log_s), by_label], dim=1)


def trilateral_state(student: Tensor, teacher: Tensor, truth: Tensor, of_class: Tensor) -> Tensor:
    """(N, 9 K): four distributions, and the squared differences of five pairs of them.

    Args:
        student: (N, K) probabilities.
        teacher: (N, K) probabilities.
        truth: (N, K), the label as a distribution.
        of_class: (N, K), the teacher's mean over the images of that label.
    """
    pairs = ((of_class, student), (truth, student), (teacher, student), (teacher, truth), (of_class, truth))
    return torch.cat([student, teacher, truth, of_class, *((a - b).square() for a, b in pairs)], dim=1)
