"""DHO: its loss in float64, what it leaves in the student, and few labels among many images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgekd.core.digest import digest
from edgekd.data.dataset import Dataset
from edgekd.distill.objectives import dho as dho_module
from edgekd.distill.objectives.dho import DHO
from edgekd.errors import UserError
from edgekd.testing.harness import make_context
from edgekd.testing.toy_data import toy_dataset
from edgekd.testing.toys import toy_cnn, toy_recipe
from edgekd.train.config import TrainConfig
from edgekd.train.evaluate_torch import module_accuracy
from edgekd.train.fit import distil_
from edgekd.train.objective import (
    Classifier,
    Conclusion,
    Review,
    ReviewBatch,
    Signals,
    SignalSpec,
    build_objective,
)

P = toy_recipe().preprocessing
N, D, K = 60, 6, 3


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def bound(weight: Tensor, bias: Tensor) -> DHO:
    """With a given second head."""
    objective = build_objective("dho", {})
    assert isinstance(objective, DHO)
    objective.bind(SignalSpec(classes=K, width=D), SignalSpec(classes=K))
    with torch.no_grad():
        objective.head.weight.copy_(weight)
        objective.head.bias.copy_(bias)
    return objective.eval()


def test_its_loss_is_the_softened_divergence_of_the_second_head() -> None:
    objective = bound(random(K, D, seed=0), random(K, seed=1))
    f, t = random(5, D, seed=2), 3 * random(5, K, seed=3)
    value = objective(Signals(logits=random(5, K, seed=4), embedding=f), Signals(logits=t), None)
    w, b = (x.detach().numpy().astype(np.float64) for x in (objective.head.weight, objective.head.bias))
    z = f.numpy().astype(np.float64) @ w.T + b
    p, q = (np.exp(x / 2) / np.exp(x / 2).sum(1, keepdims=True) for x in (t.numpy().astype(np.float64), z))
    assert value.item() == pytest.approx(float(4 * (p * np.log(p / q)).sum(1).mean()), rel=1e-5)


def test_a_student_without_an_embedding_is_an_error() -> None:
    with pytest.raises(UserError, match="'dho' needs the student's embedding"):
        build_objective("dho", {}).bind(SignalSpec(classes=3), SignalSpec(classes=3))


def concluded(own: Classifier, second: Classifier, labels: Tensor, f: Tensor) -> tuple[Classifier, Conclusion]:
    """The classifier afterwards, and what was said; select and training images are the same."""
    written = Classifier(own.weight.clone(), None if own.bias is None else own.bias.clone())
    bias = torch.zeros(K) if own.bias is None else own.bias
    batches = [
        ReviewBatch(Signals(logits=f[rows] @ own.weight.T + bias, embedding=f[rows]), labels[rows])
        for rows in torch.arange(len(f)).split(25)
    ]
    assert second.bias is not None
    review = Review(classifier=written, training=lambda most: iter(batches[:most]), select=lambda: iter(batches))
    return written, bound(second.weight, second.bias).conclude(review)


def heads(*, bias: bool = True) -> tuple[Classifier, Classifier, Tensor, Tensor]:
    """Two heads that err differently: each reads one half of the embedding, which tells the class with noise."""
    labels = torch.arange(N) % K
    f = torch.cat([torch.eye(K)[labels] + 0.7 * random(N, K, seed=seed) for seed in (1, 2)], dim=1)
    first, second = torch.zeros(K, D), torch.zeros(K, D)
    first[:, :K], second[:, K:] = 2 * torch.eye(K), 2 * torch.eye(K)
    return Classifier(first, torch.zeros(K) if bias else None), Classifier(second, torch.zeros(K)), labels, f


@pytest.mark.parametrize("bias", [True, False])
def test_two_heads_that_err_differently_are_folded_into_one_that_errs_less_than_both(bias: bool) -> None:
    own, second, labels, f = heads(bias=bias)
    written, conclusion = concluded(own, second, labels, f)
    alone = [int(((f @ head.weight.T).argmax(1) == labels).sum()) for head in (own, second)]
    now = int(((f @ written.weight.T + (0 if written.bias is None else written.bias)).argmax(1) == labels).sum())
    assert now > max(alone)
    found = conclusion.metrics
    assert found["kept"] == "folded"
    assert found["accuracy_select_folded"] == pytest.approx(now / N)
    assert found["accuracy_select_label_head"] == pytest.approx(alone[0] / N)
    assert found["accuracy_select_teacher_head"] == pytest.approx(alone[1] / N)
    assert 0 < float(str(found["alpha"])) < 1
    assert float(str(found["fold_agreement_select"])) > 0.9
    assert 0 < float(str(found["fold_divergence_nats"])) < 0.05
    assert found["fold_images"] == N
    assert "was chosen on these images, which flatters it" in conclusion.decisions[0]
    assert conclusion.decisions[1].endswith("that layer is the student's classifier.")


@pytest.mark.parametrize("better", ["label_head", "teacher_head"])
def test_a_fold_that_is_worse_than_one_head_gives_way_to_it(better: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own, second, labels, f = heads()
    if better == "teacher_head":
        second = Classifier(torch.cat([torch.eye(K), torch.eye(K)], dim=1), torch.zeros(K))
    else:
        second = Classifier(-second.weight, torch.zeros(K))
    whole = dho_module.folded

    def bad(mixture: dho_module.Mixture, *others: object) -> Classifier:
        if mixture.alpha == 0 and mixture.beta == 1:
            return whole(mixture, *others)  # type: ignore[arg-type]
        return Classifier(torch.zeros(K, D).double(), torch.tensor([1.0, 0.0, 0.0]).double())

    monkeypatch.setattr(dho_module, "folded", bad)
    written, conclusion = concluded(own, second, labels, f)
    expected = own if better == "label_head" else second
    torch.testing.assert_close(written.weight, expected.weight)
    assert conclusion.metrics["kept"] == better
    assert "worse than one of the two alone" in conclusion.decisions[1]


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Dataset]:
    """A teacher that knows the task, and 40 images of it beside a pool of 128."""
    teacher, pool = toy_cnn(seed=7), toy_dataset(n=160, seed=5)
    options = TrainConfig(epochs=10, batch_size=16, lr=0.05)
    distil_(teacher, None, pool, P, options, make_context(tmp_path_factory.mktemp("teacher")))
    return teacher, toy_dataset(n=40).with_pool(pool.train.labelled(None), digest("pool"), "a pool")


def trained(
    taught: tuple[nn.Module, Dataset], folder: Path, data: Dataset, **options: object
) -> tuple[float, dict[str, object]]:
    """Accuracy on images that nobody has seen, and what was concluded."""
    student = toy_cnn(seed=2)
    before = {name: value.shape for name, value in student.state_dict().items()}
    config = TrainConfig.parse(
        {"epochs": 8, "batch_size": 16, "lr": 0.05, "objective": "dho", "teacher_views": 2, **options}, "test"
    )
    report = distil_(student, taught[0], data, P, config, make_context(folder))
    assert {name: value.shape for name, value in student.state_dict().items()} == before, "the architecture stays"
    return module_accuracy(student, toy_dataset(n=160, seed=9).train, P), dict(report.concluded["dho"])


def test_epochs_with_images_without_a_label_teach_more_than_epochs_without_them(
    taught: tuple[nn.Module, Dataset], tmp_path: Path
) -> None:
    _, data = taught
    assert data.pool is not None
    joined = data.trained_on_pool(np.arange(len(data.pool)), None)
    alone, few = trained(taught, tmp_path / "alone", data, epochs=3)
    helped, all_of_them = trained(taught, tmp_path / "helped", joined, epochs=3, ema_decay=0.8)
    assert helped > alone + 0.1
    assert (few["fold_images"], all_of_them["fold_images"]) == (32, 32 + 128)


def test_data_without_labels_is_refused(taught: tuple[nn.Module, Dataset], tmp_path: Path) -> None:
    bare = replace(toy_dataset(n=40, labelled=False))
    with pytest.raises(UserError, match="'dho' decides on labelled images what it leaves in the student"):
        trained(taught, tmp_path, bare)
