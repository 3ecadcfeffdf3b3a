from __future__ import annotations

import pytest
import torch

from edgekd.errors import UserError
from edgekd.search.proxy import Batch, batch_from_images
from edgekd.search.scoring import Scorer, score, with_random_weights
from edgekd.testing.toys import toy_cnn, toy_recipe


def images() -> torch.Tensor:
    return torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def batch() -> Batch:
    return batch_from_images(images(), None, classes=4)


def test_a_score_is_the_mean_over_the_seeds_with_its_spread() -> None:
    single = [score([toy_recipe()], toy_cnn(), images(), "diswot", seeds=(seed,))[0] for seed in (3, 4)]
    both = Scorer(toy_cnn(), batch(), proxies=("diswot",), seeds=(3, 4)).score(toy_recipe())
    assert both.values[0] == pytest.approx(sum(single) / 2)
    assert both.spreads[0] == pytest.approx(abs(single[0] - single[1]) / 2**0.5)


def test_counting_proxies_have_no_spread_and_keep_their_place() -> None:
    found = Scorer(toy_cnn(), batch(), proxies=("params", "diswot", "macs"), seeds=(0, 1)).score(toy_recipe())
    assert found.values[0] > 0 > found.values[1]
    assert (found.spreads[0], found.spreads[2]) == (0.0, 0.0)


def test_the_teacher_s_own_weights_do_not_matter() -> None:
    first, second = (score([toy_recipe()], toy_cnn(seed=seed), images(), "diswot") for seed in (0, 1))
    assert first == second


def test_drawing_weights_anew_is_repeatable_and_touches_only_the_copy() -> None:
    module, before = toy_cnn(), toy_cnn().state_dict()
    state = torch.random.get_rng_state()
    first, again, other = (with_random_weights(module, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
    assert all(torch.equal(module.state_dict()[name], before[name]) for name in before)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_an_unknown_proxy_is_answered_with_the_near_one() -> None:
    with pytest.raises(UserError, match="Did you mean 'diswot'"):
        Scorer(toy_cnn(), batch(), proxies=("diswto",), seeds=(0,))
