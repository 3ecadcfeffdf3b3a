from __future__ import annotations

import pytest

from edgekd.core.recipe import Edit, ModelRecipe
from edgekd.search.space import Arch
from edgekd.search.words import words_of
from tests.search.test_space import space_of


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("residual", "stem stride 1, depths 1-1, widths 8-8-8"),
        ("inverted", "stem stride 1, stem 8, channels 8-16-32, depth 1-1-1, expansion 2-2-2, kernel 3-3-3"),
    ],
)
def test_a_student_is_described_by_the_arguments_of_its_builder(name: str, said: str) -> None:
    space = space_of(name)
    assert words_of(space, space.cheapest).startswith(said)
    assert "channels 3" not in words_of(space, space.cheapest)


def test_an_edited_network_is_described_by_its_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    space = space_of("residual")

    def edited(arch: Arch) -> ModelRecipe:
        preprocessing = space.task.preprocessing
        return ModelRecipe(builder="timm:resnet18", edits=(Edit(kind="prune"),), preprocessing=preprocessing)

    monkeypatch.setattr(space, "recipe", edited)
    assert words_of(space, space.cheapest) == "stem_stride 1, width 8, depth0 1, depth1 1, growth1 2"
