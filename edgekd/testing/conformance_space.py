"""What every search space must do. Inherit the suite, give the space, and pytest runs it:

class TestMine(SpaceConformance):
    name = "mine"
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from edgekd.core.preprocess import Preprocessing
from edgekd.core.recipe import ModelRecipe
from edgekd.export.stage import ExportConfig, ExportStage
from edgekd.nn.build import module_from_bundle, module_from_recipe
from edgekd.nn.save import bundle_from_module
from edgekd.prune.config import PruneConfig
from edgekd.prune.stage import PruneStage
from edgekd.search.limit import Costs
from edgekd.search.space import SPACES, Arch, GridSpace, Task, Teacher
from edgekd.testing.harness import make_context, make_inputs, run_stage

_CLASSES = 5
_DRAWS, _MOST_DRAWS = 6, 60
_MULTIPLE = 16


class SpaceConformance:
    """The contract of `edgekd.search.space.GridSpace`, as tests.

    Attributes:
        name: Registry key.
        side: Of the square images, pixels.
    """

    name: ClassVar[str]
    side: ClassVar[int] = 16

    def space(self, *, multiple: int = 8, channels: int = 3) -> GridSpace:
        """The space, for a task whose teacher has residual blocks to spare."""
        preprocessing = Preprocessing(size=(self.side, self.side), mean=(0.5,) * channels, std=(0.5,) * channels)
        recipe = ModelRecipe(
            builder="edgekd:residual",
            kwargs={"depths": [3, 2], "widths": [16, 16, 32], "classes": _CLASSES, "in_channels": channels},
            preprocessing=preprocessing,
        )
        task = Task(
            preprocessing=preprocessing,
            labels=(),
            classes=_CLASSES,
            channel_multiple=multiple,
            teacher=Teacher(recipe=recipe, module=module_from_recipe(recipe)),
        )
        return SPACES.get(self.name)(task)

    def images(self, count: int = 4, channels: int = 3) -> Tensor:
        """Noise."""
        return torch.randn(count, channels, self.side, self.side, generator=torch.Generator().manual_seed(0))

    def alive(self, space: GridSpace) -> Arch:
        """Of random architectures the one with the fewest parts, for speed.

        Its output depends on its input: spaces of cells hold architectures that are cut in two.
        """
        rng, parts = random.Random(0), {}
        for _ in range(_MOST_DRAWS):
            arch = space.sample(rng)
            module = module_from_recipe(space.recipe(arch))
            with torch.inference_mode():
                logits = module(self.images())
            if not torch.equal(logits[0], logits[1]):
                parts[arch] = len(list(module.modules()))
            if len(parts) == _DRAWS:
                break
        return min(parts, key=lambda arch: parts[arch])

    def test_it_says_what_it_is_in_one_line(self) -> None:
        summary = SPACES.get(self.name).summary
        assert 0 < len(summary) <= 100
        assert "\n" not in summary

    def test_samples_mutations_and_cheaper_steps_stay_inside(self) -> None:
        space, rng = self.space(), random.Random(0)
        for _ in range(20):
            arch = space.sample(rng)
            below = space.cheaper(arch, rng)
            for found in (arch, space.mutate(arch, rng), arch if below is None else below):
                assert len(found) == len(space.axes)
                assert all(0 <= choice < len(axis) for choice, axis in zip(found, space.axes.values(), strict=True))
            assert (below is None) == (arch == space.cheapest)

    def test_no_step_up_an_axis_gets_cheaper(self) -> None:
        space, rng = self.space(), random.Random(1)
        costs = Costs(space, input_shape=(3, self.side, self.side), model=None, precision="fp32")
        arch = space.sample(rng)
        for place, (name, axis) in enumerate(space.axes.items()):
            if len(axis) == 1:
                continue
            low = rng.randrange(len(axis) - 1)
            less, more = (costs.of((*arch[:place], low + step, *arch[place + 1 :])) for step in (0, 1))
            assert more.macs >= less.macs or more.params >= less.params, name

    def test_recipes_are_plain_data_and_functions_of_the_architecture(self) -> None:
        space, again, rng = self.space(), self.space(), random.Random(2)
        for _ in range(3):
            arch = space.sample(rng)
            recipe = space.recipe(arch)
            assert recipe == again.recipe(arch)
            assert ModelRecipe.parse(recipe.plain(), "recipe") == recipe

    def test_grey_images_are_searched_too(self) -> None:
        space = self.space(channels=1)
        module = module_from_recipe(space.recipe(space.cheapest))
        assert module(self.images(channels=1)).shape == (4, _CLASSES)

    def test_sampled_networks_train_in_every_parameter(self) -> None:
        space = self.space()
        module = module_from_recipe(space.recipe(self.alive(space))).train()
        logits = module(self.images())
        torch.autograd.backward(nn.functional.cross_entropy(logits, torch.arange(4) % _CLASSES))
        assert logits.shape == (4, _CLASSES)
        bad = [name for name, p in module.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
        assert bad == []

    def test_widths_are_multiples_of_what_the_target_prefers(self) -> None:
        space, other, rng = self.space(multiple=_MULTIPLE), self.space(multiple=3 * _MULTIPLE), random.Random(3)
        for _ in range(3):
            arch = space.sample(rng)
            widths = _widths(module_from_recipe(space.recipe(arch)))
            assert widths[-1] == _CLASSES
            if SPACES.get(self.name).follows_target:
                assert all(width % _MULTIPLE == 0 for width in widths[:-1]), widths
            else:  # a benchmark, whose networks stay what they were published as
                assert space.recipe(arch) == other.recipe(arch)

    def test_a_student_is_pruned_exported_and_reloaded_bit_for_bit(self, tmp_path: Path) -> None:
        space, ctx = self.space(), make_context(tmp_path)
        recipe = space.recipe(self.alive(space))
        module = module_from_recipe(recipe, seed=1)
        student = bundle_from_module(module, recipe=recipe, blobs=ctx.blobs, scratch=ctx.scratch)
        assert torch.equal(module_from_bundle(student, ctx.blobs)(self.images()), module(self.images()))
        pruned = run_stage(PruneStage(PruneConfig(macs_keep=0.8, channel_multiple=1)), make_inputs(model=student), ctx)
        exported = run_stage(ExportStage(ExportConfig()), make_inputs(model=pruned.bundle), ctx)
        assert exported.metrics["parity_agreement"] == 1.0
        assert exported.bundle.outputs == student.outputs

    def test_initialising_changes_nothing_but_values(self) -> None:
        space = self.space()
        module = module_from_recipe(space.recipe(self.alive(space)))
        shapes = {name: value.shape for name, value in module.state_dict().items()}
        teacher = module_from_recipe(_teacher(space).recipe)
        said = SPACES.get(self.name).initialise_(module, teacher, space.task.preprocessing.input_shape)
        assert {name: value.shape for name, value in module.state_dict().items()} == shapes
        assert bool(said) == SPACES.get(self.name).needs_teacher


def _teacher(space: GridSpace) -> Teacher:
    assert space.task.teacher is not None
    return space.task.teacher


def _widths(module: nn.Module) -> list[int]:
    """Output widths of convolutions and linear layers, the classifier's last."""
    return [
        part.out_channels if isinstance(part, nn.Conv2d) else part.out_features
        for part in module.modules()
        if isinstance(part, nn.Conv2d | nn.Linear)
    ]
