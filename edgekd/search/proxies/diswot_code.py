"""DisWOT, the form of the authors' code (github.com/lliai/DisWOT-CVPR2023), which is not the paper's.

    relation = sum((G_T - G_S)^2) / N^2            G: N x N Gram matrix of the feature maps, each row of norm 1
    semantic = sum((E_T - E_S)^2) / (K * C)        E[k]: g_k g_k^T, each row of norm 1; g = d CE / d classifier weight

The semantic term compares channel i of the student with channel i of the teacher, which have nothing to do with each
other before training, and therefore needs classifiers of equal width. It is here because published results rest on it:
the paper's K x K form (`edgekd.search.proxies.diswot`) is the default. In the sum the semantic term, of the order of 1,
drowns the relation term, of the order of 0.01.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from edgekd.errors import UserError
from edgekd.nn.taps import find_tap_points
from edgekd.search.proxies.network import batch_statistics, check_alive
from edgekd.search.proxies.views import check_classes, view
from edgekd.search.proxy import Batch, Proxy, ScoreStudent
from edgekd.search.sharing import shared

_SOURCE = "Dong, Li and Wei 2023, arXiv 2303.15678, as in the authors' code"


class DisWOTCodeSemantic(Proxy):
    """`-sum((E_T - E_S)^2) / (K * C)`; students must be as wide as the teacher at their classifiers."""

    uses_weights: ClassVar[bool] = True
    uses_teacher: ClassVar[bool] = True
    formula: ClassVar[str] = "-sum((E_T - E_S)^2) / (K * C), E[k] = rownorm(g_k g_k^T), g = dCE/dW of the classifier"
    source: ClassVar[str] = _SOURCE

    def bind(self, teacher: nn.Module, batch: Batch) -> ScoreStudent:
        reference = classifier_gradient(teacher, batch)
        return lambda student: -semantic_distance(classifier_gradient(student, batch), reference)


class DisWOTCodeRelation(Proxy):
    """`-sum((G_T - G_S)^2) / N^2`."""

    uses_weights: ClassVar[bool] = True
    uses_teacher: ClassVar[bool] = True
    formula: ClassVar[str] = "-sum((G_T - G_S)^2) / N^2, G = rownorm(F F^T), F the feature maps (N, CHW)"
    source: ClassVar[str] = _SOURCE

    def bind(self, teacher: nn.Module, batch: Batch) -> ScoreStudent:
        reference = row_normalised_gram(view(teacher, batch.images).features.flatten(1))

        def score(student: nn.Module) -> float:
            gram = row_normalised_gram(view(student, batch.images).features.flatten(1))
            return -float((gram - reference).square().mean())

        return score


class DisWOTCode(Proxy):
    """The sum of `diswot-code-semantic` and `diswot-code-relation`."""

    uses_weights: ClassVar[bool] = True
    uses_teacher: ClassVar[bool] = True
    formula: ClassVar[str] = "-sum((E_T - E_S)^2) / (K * C) - sum((G_T - G_S)^2) / N^2"
    source: ClassVar[str] = _SOURCE

    def bind(self, teacher: nn.Module, batch: Batch) -> ScoreStudent:
        terms = [kind().bind(teacher, batch) for kind in (DisWOTCodeSemantic, DisWOTCodeRelation)]
        return lambda student: sum(term(student) for term in terms)


def row_normalised_gram(rows: Tensor) -> Tensor:
    """(R, R) float64 Gram matrix of the rows (R, D), each of its own rows divided by its L2 norm."""
    return F.normalize(rows.double() @ rows.double().T, dim=1)


def semantic_distance(student: Tensor, teacher: Tensor) -> float:
    """`sum((E_T - E_S)^2) / (K * C)`, from the gradients (K, C) that E is made of.

    Row i of E[k] is sign(g_ki) * g_k / |g_k|, zero where g_ki is zero. So the squared distance of two of them is
    `mean_i(sign^2 + sign^2) - 2 * cos(g_k, g'_k) * mean_i(sign * sign)`, and no K x C x C tensor is made.

    Raises:
        UserError: Other numbers of classes, or classifiers of unequal width.
    """
    check_classes(student, teacher)
    if student.shape != teacher.shape:
        raise UserError(
            "The code form of DisWOT's semantic metric compares channel by channel, but the classifier of the student "
            f"reads {student.shape[1]} channels and that of the teacher {teacher.shape[1]}.",
            hint="the paper's form compares class by class and takes any widths: diswot-semantic, or diswot",
        )
    ours, theirs = student.double(), teacher.double()
    cosine = (F.normalize(ours, dim=1) * F.normalize(theirs, dim=1)).sum(1)
    signs, other_signs = ours.sign(), theirs.sign()
    own = (signs.square() + other_signs.square()).mean(1)
    return float((own - 2 * cosine * (signs * other_signs).mean(1)).mean())


@shared
def classifier_gradient(module: nn.Module, batch: Batch) -> Tensor:
    """(K, C): the gradient of the batch's mean cross-entropy at the classifier's weight. The module is left as it was.

    Raises:
        UserError: It has no classifier layer.
        Unscorable: Its logits say nothing.
    """
    name = f"{find_tap_points(module, batch.input_shape).classifier}.weight"
    # Without gradients of the other weights no graph is kept for the layers in front of the classifier.
    state = {key: parameter.detach() for key, parameter in module.named_parameters()}
    state[name] = state[name].clone().requires_grad_()
    with batch_statistics(module), torch.enable_grad():
        logits = functional_call(module, state, (batch.images,))
        check_alive(logits)
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, batch.labels), state[name])
    return gradient.flatten(1)
