from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edgekd.nn.models import BUILDERS
from edgekd.nn.skippable import Run, skippable_runs
from edgekd.nn.timm import module_from_timm
from tests.nn.zoo import images, randomised


def runs_of(module: nn.Module, side: int = 16) -> list[tuple[str, ...]]:
    return [run.blocks for run in skippable_runs(randomised(module), images(2, side))]


def test_blocks_that_change_the_shape_stay_and_the_others_form_a_run_per_stage() -> None:
    module = BUILDERS.get("residual")({"depths": [2, 3], "widths": [8, 8, 16], "classes": 4})
    assert runs_of(module) == [("stages.0.0", "stages.0.1"), ("stages.1.1", "stages.1.2")]


def test_one_block_of_a_stage_made_of_nothing_else_has_to_stay() -> None:
    module = BUILDERS.get("residual")({"depths": [2, 3], "widths": [8, 8, 16], "classes": 4})
    first, second = skippable_runs(randomised(module), images(2, 16))
    assert (first.most, second.most) == (1, 2)


def test_branches_that_are_fused_and_gated_blocks_are_found_by_what_they_compute() -> None:
    repvgg = BUILDERS.get("repvgg")({"depths": [2, 2], "widths": [4, 4, 8], "strides": [1, 1, 2], "classes": 5})
    assert runs_of(repvgg) == [("stages.0.0", "stages.0.1"), ("stages.1.1",)]
    stage = {"channels": 8, "depth": 3, "stride": 2, "squeeze_excite": True}
    inverted = BUILDERS.get("inverted")({"stages": [stage], "stem": 8, "classes": 5, "stem_stride": 1})
    assert runs_of(inverted) == [("features.4", "features.5")]


@pytest.mark.parametrize(
    ("name", "kwargs", "expected"),
    [
        (
            "vit_tiny_patch16_224",
            {"img_size": 16, "patch_size": 8, "depth": 2, "embed_dim": 24},
            ["blocks.0", "blocks.1"],
        ),
        ("resnet18", {}, ["layer1.0", "layer1.1", "layer2.1", "layer3.1", "layer4.1"]),
    ],
)
def test_models_of_timm_have_them_too(name: str, kwargs: dict, expected: list[str]) -> None:
    found = runs_of(module_from_timm(name, kwargs), 16 if kwargs else 64)
    assert [path for run in found for path in run] == expected


class Plain(nn.Module):
    """Convolutions that keep the shape and add nothing, and a residual block that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.plain = nn.Sequential(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()))
        self.shared = BUILDERS.get("residual")({"depths": [1], "widths": [4, 4], "classes": 2}).stages[0][0]
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shared(self.shared(self.plain(self.stem(x)).relu()))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def test_blocks_that_add_nothing_or_run_twice_are_kept() -> None:
    assert runs_of(Plain()) == []


def test_the_network_is_left_as_it_was() -> None:
    module = randomised(BUILDERS.get("residual")({"depths": [2], "widths": [8, 8], "classes": 4}))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    skippable_runs(module, images(2, 8))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


def test_measured_the_blocks_that_change_least_go_first_and_otherwise_the_later_ones() -> None:
    run = Run(parent="s", blocks=("s.0", "s.1", "s.2"), changes=(0.5, 0.1, 0.4), alone=True)
    assert run.dropped(2, measured=True) == ("s.1", "s.2")
    assert run.dropped(1, measured=True) == ("s.1",)
    assert run.dropped(1, measured=False) == ("s.2",)
    assert run.dropped(0, measured=False) == ()


def test_a_change_is_relative_to_what_the_block_is_given() -> None:
    module = randomised(BUILDERS.get("residual")({"depths": [2], "widths": [8, 8], "classes": 4}))
    x = images(2, 8)
    run = skippable_runs(module, x)[0]
    with torch.no_grad():
        before = module.stem(x)
        after = module.stages[0][0](before)
    expected = ((after - before).flatten(1).norm(dim=1) / before.flatten(1).norm(dim=1)).mean()
    assert run.changes[0] == pytest.approx(float(expected), rel=1e-5)
