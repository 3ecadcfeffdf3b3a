"""DHO: few labels and many images; labels teach the classifier, the teacher a second head, and both end up in one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from edgekd.core.digest import Json
from edgekd.core.schema import Schema
from edgekd.core.text import percent
from edgekd.distill.folding import Mixture, best_mixture, folded, logits_of
from edgekd.distill.objectives.kd import softened_kl
from edgekd.distill.objectives.probability import divergences
from edgekd.errors import UserError
from edgekd.train.objective import (
    Classifier,
    Conclusion,
    LossWeights,
    Objective,
    Review,
    ReviewBatch,
    Signal,
    Signals,
    SignalSpec,
    full_precision,
    present,
)

_MOST_IMAGES = 1 << 15
"""Embeddings that the mixture is folded on: many more than a layer has inputs, and few enough for float64."""
LABEL_HEAD, TEACHER_HEAD, MIXTURE, FOLDED = "label_head", "teacher_head", "mixture", "folded"


class DHOConfig(Schema):
    """Arguments of `dho`.

    Attributes:
        temperature: T of the second head's loss.
    """

    temperature: float = Field(default=2.0, gt=0)


class DHO(Objective[DHOConfig]):
    """`T^2 * KL(softmax(t / T) || softmax(h(f) / T))`, h a second linear layer on the student's embedding f.

    Labels and teacher pull one classifier apart, most of all where labels are few. Here the classifier learns from
    labels alone, on the images that have one, and the second layer from the teacher on all images; the body learns from
    both. The authors answer with `alpha * softmax(z) + (1 - alpha) * softmax(h(f) / beta)`, with alpha and beta chosen
    on validation images.

    Deviations: they deploy both layers. Here the mixture is folded into the one classifier that the student has, after
    the last epoch: alpha and beta are chosen on the `select` split, and the layer whose softmax has the least
    cross-entropy with the mixture on training images takes the classifier's place (`edgekd.distill.folding`), unless
    one of the two alone is right more often there. They draw as many images with as without labels into each batch and
    take a mean over each kind; here every image is seen once per epoch, those with labels spread evenly over the
    batches, and the mean is over all images, with a weight that is theirs where the two kinds are equally many. They
    choose the epoch by its score; here the last one is taken.
    """

    name = "dho"
    Config = DHOConfig
    needs: ClassVar = frozenset({Signal.EMBEDDING})
    needs_of_teacher: ClassVar = frozenset({Signal.LOGITS})
    pool_labels = "none"
    adapts = True
    t_squared = True
    default_weights = LossWeights(supervised=0.5, distill=1.0)
    formula = "T^2 * KL(softmax(t/T) || softmax(h(f_s)/T)), the classifier from labels; then both folded into one"
    source = "Kang, Lee, Jang and Hwang 2025, arXiv 2505.07675"

    def bind(self, student: SignalSpec, teacher: SignalSpec) -> None:
        if student.width is None:
            raise UserError("The objective 'dho' needs the student's embedding, and it has none.")
        self.head = nn.Linear(student.width, teacher.classes)

    def forward(self, student: Signals, teacher: Signals, labels: Tensor | None) -> Tensor:
        second = self.head(full_precision(present(student.embedding, Signal.EMBEDDING)))
        return softened_kl(second, teacher.logits, self.config.temperature)

    def conclude(self, review: Review) -> Conclusion:
        own, second = review.classifier, Classifier(self.head.weight.detach(), self.head.bias.detach())
        seen, labels = _embeddings(review.select())
        z1, z2 = logits_of(own, seen), logits_of(second, seen)
        mixture = best_mixture(z1, z2, labels)
        training, _ = _embeddings(review.training(_MOST_IMAGES))
        layers = {
            FOLDED: folded(mixture, own, second, training),
            LABEL_HEAD: own,
            TEACHER_HEAD: folded(Mixture(alpha=0.0, beta=1.0), own, second, training),
        }
        answers = {name: logits_of(layer, seen) for name, layer in layers.items()}
        hits = {name: int((said.argmax(1) == labels).sum()) for name, said in answers.items()}
        kept = max(hits, key=lambda name: hits[name])  # of equals, the fold
        _write(layers[kept], own)
        mixed = mixture.of(z1, z2)
        scores = {name: count / len(labels) for name, count in hits.items()}
        scores[MIXTURE] = float((mixed.argmax(1) == labels).double().mean())
        agrees = float((answers[FOLDED].argmax(1) == mixed.argmax(1)).double().mean())
        log_mixed = mixed.clamp_min(torch.finfo(mixed.dtype).tiny).log()
        metrics: dict[str, Json] = {
            "alpha": mixture.alpha,
            "beta": mixture.beta,
            "kept": kept,
            "fold_images": len(training),
            "fold_agreement_select": agrees,
            "fold_divergence_nats": float(divergences(log_mixed, answers[FOLDED].log_softmax(1)).mean()),
            **{f"accuracy_select_{name}": score for name, score in scores.items()},
        }
        return Conclusion(metrics=metrics, decisions=_said(mixture, scores, agrees, kept, len(training)))


def _embeddings(batches: Iterator[ReviewBatch]) -> tuple[Tensor, Tensor]:
    """(N, D) and the labels (N,)."""
    found = [(present(batch.student.embedding, Signal.EMBEDDING), batch.labels) for batch in batches]
    return torch.cat([embedding for embedding, _ in found]), torch.cat([labels for _, labels in found])


@torch.no_grad()
def _write(layer: Classifier, into: Classifier) -> None:
    into.weight.copy_(layer.weight)
    if into.bias is not None and layer.bias is not None:
        into.bias.copy_(layer.bias)


def _said(mixture: Mixture, scores: dict[str, float], agrees: float, kept: str, images: int) -> tuple[str, ...]:
    said = (
        f"On the select split the classifier, taught by labels, is right on {percent(scores[LABEL_HEAD])}, the second "
        f"head, taught by the teacher, on {percent(scores[TEACHER_HEAD])}, a mixture on {percent(scores[MIXTURE])}. "
        f"It (alpha {mixture.alpha:g}, beta {mixture.beta:g}) was chosen on these images, which flatters it.",
    )
    fold = (
        f"Folded into one layer on {images} training images it agrees with the mixture on {percent(agrees)} and is "
        f"right on {percent(scores[FOLDED])}"
    )
    if kept == FOLDED:
        return *said, f"{fold}: that layer is the student's classifier."
    alone = "the classifier stays as labels taught it" if kept == LABEL_HEAD else "the second head takes its place"
    return *said, f"{fold}, worse than one of the two alone: {alone}."
