from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from edgekd.search.proxies.aznas import Progressivity, Trainability
from edgekd.search.proxies.isotropy import Isotropy
from edgekd.search.proxy import PROXIES
from edgekd.search.scoring import Scorer
from edgekd.search.sharing import shared, unchanged
from edgekd.testing.toys import toy_cnn
from tests.search.scoring_toys import student, toy_batch


def counted() -> tuple[list[int], Callable[..., Tensor]]:
    """The calls so far, and a shared function."""
    calls: list[int] = []

    @shared
    def doubled(x: Tensor, *, times: int = 2) -> Tensor:
        calls.append(times)
        return times * x

    return calls, doubled


def test_equal_questions_are_answered_once_while_nothing_changes() -> None:
    calls, doubled = counted()
    x = torch.ones(2)
    with unchanged():
        assert doubled(x) is doubled(x)
        assert torch.equal(doubled(x, times=3), 3 * x)
        doubled(x.clone())
    assert calls == [2, 3, 2]


def test_nothing_is_remembered_outside_and_afterwards() -> None:
    calls, doubled = counted()
    x = torch.ones(2)
    with unchanged():
        doubled(x)
    x += 1
    assert torch.equal(doubled(x), 2 * x)
    with unchanged():
        assert torch.equal(doubled(x), 2 * x)
    assert len(calls) == 3


def test_an_error_is_raised_each_time() -> None:
    @shared
    def failing(x: int) -> int:
        raise ValueError(str(x))

    with unchanged():
        for _ in range(2):
            with pytest.raises(ValueError, match="5"):
                failing(5)


def test_a_proxy_scores_the_same_whatever_is_asked_beside_it() -> None:
    names = tuple(name for name in PROXIES if name != "diswot-code")
    together = Scorer(toy_cnn(), toy_batch(), proxies=names, seeds=(0, 1)).score(student(2))
    alone = [Scorer(toy_cnn(), toy_batch(), proxies=(name,), seeds=(0, 1)).score(student(2)) for name in names]
    assert together.skipped is None
    assert together.values == tuple(score.values[0] for score in alone)


def test_the_block_proxies_share_one_forward_pass() -> None:
    passes: list[int] = []
    network, batch = toy_cnn(), toy_batch()
    network.classifier.register_forward_hook(lambda *_: passes.append(1))
    with unchanged():
        for kind in (Isotropy, Progressivity, Trainability):
            kind().bind(network, batch)(network)
    assert len(passes) == 1
