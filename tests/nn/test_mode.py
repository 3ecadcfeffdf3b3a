from __future__ import annotations

import pytest
from torch import nn

from edgekd.nn.mode import evaluating
from edgekd.testing.toys import toy_cnn


def test_each_part_returns_to_its_own_mode_even_after_an_error() -> None:
    module = nn.Sequential(toy_cnn(), nn.Dropout()).train()
    module[0].stem.eval()
    before = [part.training for part in module.modules()]

    def look_and_fail() -> None:
        assert not any(part.training for part in module.modules())
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), evaluating(module):
        look_and_fail()
    assert [part.training for part in module.modules()] == before
