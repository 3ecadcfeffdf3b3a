"""Networks for which channels-last computes wrong gradients are recognised and trained in the other format."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgekd.core.recipe import ModelRecipe
from edgekd.nn.build import module_from_recipe
from edgekd.testing.toys import toy_cnn
from edgekd.train.memory_format import placed, trains_in_channels_last
from tests.train.conftest import PREPROCESSING, Train

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("layer", "trusted"),
    [
        (nn.Conv2d(4, 8, 1, 2), False),
        (nn.Conv2d(7, 8, 1, (1, 2)), False),
        (nn.Conv2d(64, 64, 1, 2, groups=16), False),
        (nn.Conv2d(16, 8, 1, 2), True),
        (nn.Conv2d(4, 8, 1, 1), True),
        (nn.Conv2d(4, 8, 3, 2), True),
        (nn.Linear(4, 8), True),
    ],
    ids=str,
)
def test_only_strided_pointwise_convolutions_of_few_channels_are_mistrusted(layer: nn.Module, trusted: bool) -> None:
    assert trains_in_channels_last(nn.Sequential(layer), CPU) == trusted
    assert trains_in_channels_last(nn.Sequential(layer), torch.device("cuda"))


@pytest.mark.parametrize(("capability", "trusted"), [("AVX2", True), ("AVX512", False)])
def test_wider_kernels_need_more_channels(capability: str, trusted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert trains_in_channels_last(nn.Conv2d(8, 8, 1, 2), CPU) == trusted


def test_a_mistrusted_student_is_trained_in_the_contiguous_format_and_that_is_said(train: Train) -> None:
    narrow = ModelRecipe(
        builder="edgekd:residual",
        kwargs={"depths": [1, 1], "widths": [4, 4, 8], "classes": 4},
        preprocessing=PREPROCESSING,
    )
    states = []
    for wanted in (True, False):
        student = module_from_recipe(narrow, seed=1)
        _, report, _ = train(student=student, folder=str(wanted), channels_last=wanted)
        assert any("contiguous memory format" in said for said in report.decisions) == wanted
        states.append(student.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_module_is_contiguous_again_after_an_error() -> None:
    network = toy_cnn()
    weight = network.get_submodule("stages.0.0.conv1").weight
    inside: list[bool] = []

    def fails() -> None:
        with placed(network, CPU, channels_last=True):
            inside.append(weight.is_contiguous())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert inside == [False]
    assert weight.is_contiguous()
