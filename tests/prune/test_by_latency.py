"""Steps by what they save: staircases, ties, and the exact solution of small problems."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn

from edgekd.core.cost import OpCost
from edgekd.nn.channels.analysis import analyse
from edgekd.nn.channels.ends import LEAST_KEPT, chunk_ends
from edgekd.nn.channels.groups import ChannelGroup
from edgekd.nn.channels.importance import unit_sums
from edgekd.nn.channels.widths import PriceOf, WidthLatency
from edgekd.nn.count import layer_costs
from edgekd.prune.by_latency import LatencyPlan, plan_by_latency
from edgekd.prune.schedule import MacModel, plan_removals
from tests.prune.nets import PaddedShortcut

SHAPE = (3, 8, 8)


def wide() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return PaddedShortcut(width=16).eval()


class Problem:
    """The inner groups of `PaddedShortcut` (first.conv1 of 16 units, second.conv1 of 32), priced as a test likes."""

    def __init__(self, price: PriceOf, scores: Mapping[str, Tensor] | None = None) -> None:
        self.module = wide()
        self.groups = analyse(self.module, SHAPE).groups
        self.scores = scores or {g.name: unit_sums(self.module, g, "l2") for g in self.groups}
        self.latency = WidthLatency(self.module, SHAPE, self.groups, price)
        self.macs = MacModel(self.module, layer_costs(self.module, SHAPE), self.groups)
        self.whole_ms = self.latency.now_ms

    def plan(self, share: float, multiple: int = 1) -> LatencyPlan:
        goal = share * self.whole_ms
        return plan_by_latency(
            self.groups,
            self.scores,
            self.latency,
            self.macs,
            reached=lambda: self.latency.now_ms <= goal,
            multiple=multiple,
        )

    def loss(self, plan: LatencyPlan) -> float:
        return sum(float(self.scores[group.name][units].sum()) for group, units in plan.removals)


def by_macs(cost: OpCost) -> float:
    return cost.macs / 1e6


def stairs(block: int) -> Callable[[OpCost], float]:
    """A kernel that computes whole blocks: a layer's time goes by its weights, rounded up to `block` channels."""

    def price(cost: OpCost) -> float:
        per_channel = 9 * 16 if "first" in cost.name else 9 * 32
        return math.ceil(cost.params / (per_channel * block)) * block * 1e-3 if cost.kind == "conv" else 0.0

    return price


def widths(plan: LatencyPlan) -> dict[str, int]:
    return {group.name: group.units - len(units) for group, units in plan.removals}


def test_the_goal_is_reached_and_what_is_reported_adds_up() -> None:
    problem = Problem(by_macs)
    plan = problem.plan(0.7)
    assert plan.reached
    assert problem.latency.now_ms <= 0.7 * problem.whole_ms
    for group, units in plan.removals:
        kept = torch.ones(group.units, dtype=torch.bool).index_fill_(0, units, False)
        assert problem.scores[group.name][units].max() <= problem.scores[group.name][kept].min()


def test_widths_between_the_edges_of_a_staircase_are_never_chosen() -> None:
    plan = Problem(stairs(8)).plan(0.7)
    assert plan.removals
    assert all(width % 8 == 0 for width in widths(plan).values())


@pytest.mark.parametrize("seed", range(3))
def test_a_goal_in_multiply_accumulates_is_reached_at_edges_too(seed: int) -> None:
    """Bringing units back would keep the goal, but between two edges they are cut for nothing."""
    random = torch.Generator().manual_seed(seed)
    units = {"first.conv1": 16, "second.conv1": 32}
    scores = {name: torch.rand(n, generator=random, dtype=torch.float64) for name, n in units.items()}
    problem = Problem(stairs(8), scores)
    plan = plan_by_latency(
        problem.groups,
        problem.scores,
        problem.latency,
        problem.macs,
        reached=lambda: problem.macs.now <= 0.7 * problem.macs.total,
        multiple=1,
    )
    assert plan.reached
    assert plan.removals
    assert all(width % 8 == 0 for width in widths(plan).values())


def test_a_step_that_does_not_make_it_faster_is_not_taken() -> None:
    """The second block's time does not depend on its width, so only the first one shrinks, and then nothing is left."""
    problem = Problem(lambda cost: by_macs(cost) if "first" in cost.name else 1.0)
    plan = problem.plan(0.01)
    assert not plan.reached
    assert set(widths(plan)) == {"first.conv1"}


def test_a_step_that_makes_it_slower_is_jumped_over() -> None:
    """Odd widths run a slow kernel: one channel less costs time, two less save it."""
    plan = Problem(lambda cost: by_macs(cost) * (3.0 if cost.params // (9 * 16) % 2 else 1.0)).plan(0.8)
    assert plan.reached
    assert widths(plan)["first.conv1"] % 2 == 0


def test_nothing_could_come_back() -> None:
    problem = Problem(by_macs)
    plan = problem.plan(0.7, multiple=2)
    for group, _ in plan.removals:
        problem.latency.remove(group, -2)
        assert problem.latency.now_ms > 0.7 * problem.whole_ms
        problem.latency.remove(group, 2)


def test_every_group_keeps_something_when_the_goal_is_out_of_reach() -> None:
    problem = Problem(by_macs)
    plan = problem.plan(1e-6)
    assert not plan.reached
    sizes = {group.name: group.units for group in problem.groups}
    assert all(width >= LEAST_KEPT * sizes[name] for name, width in widths(plan).items())


def exact_loss(problem: Problem, share: float, multiple: int) -> float:
    """The least loss of all combinations of widths that reach the goal."""
    best = math.inf
    ends = [[0, *chunk_ends(group, multiple)] for group in problem.groups]
    for gone in itertools.product(*ends):
        for group, units in zip(problem.groups, gone, strict=True):
            problem.latency.remove(group, units)
        if problem.latency.now_ms <= share * problem.whole_ms:
            sums = [problem.scores[g.name].sort().values[:n].sum() for g, n in zip(problem.groups, gone, strict=True)]
            best = min(best, float(sum(sums)))
        for group, units in zip(problem.groups, gone, strict=True):
            problem.latency.remove(group, -units)
    return best


def loss_by_macs(problem: Problem, share: float, multiple: int) -> float:
    """What the order by multiply-accumulates loses until the same latency is reached."""
    for keep in torch.linspace(0.99, 0.2, 80).tolist():
        macs = MacModel(problem.module, layer_costs(problem.module, SHAPE), problem.groups)
        removals = plan_removals(
            problem.groups, problem.scores, macs, target=keep * macs.total, multiple=multiple, across=True
        )
        for group, units in removals:
            problem.latency.remove(group, len(units))
        fast = problem.latency.now_ms <= share * problem.whole_ms
        for group, units in removals:
            problem.latency.remove(group, -len(units))
        if fast:
            return sum(float(problem.scores[group.name][units].sum()) for group, units in removals)
    return math.inf


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("price", [by_macs, stairs(4), lambda cost: cost.activations / 1e6])
def test_the_greedy_plan_is_close_to_the_exact_one_and_never_worse_than_by_macs(price: PriceOf, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    units = {"first.conv1": 16, "second.conv1": 32}
    scores = {name: torch.rand(n, generator=random, dtype=torch.float64) ** 2 for name, n in units.items()}
    share, multiple = 0.75, 2
    problem = Problem(price, scores)
    exact, other = exact_loss(problem, share, multiple), loss_by_macs(problem, share, multiple)
    found = problem.loss(problem.plan(share, multiple))
    assert exact - 1e-9 <= found <= 1.1 * exact + 1e-9
    assert found <= other + 1e-9


def test_units_that_cost_nothing_leave_first() -> None:
    scores = {"first.conv1": torch.ones(16, dtype=torch.float64), "second.conv1": torch.ones(32, dtype=torch.float64)}
    scores["second.conv1"][3:9] = -0.5
    plan = Problem(by_macs, scores).plan(0.97)
    (group, units), *others = plan.removals
    assert not others
    assert group.name == "second.conv1"
    assert set(units.tolist()) <= set(range(3, 9))


def test_ends_are_multiples_and_stop_before_a_tenth() -> None:
    group = ChannelGroup(name="g", units=20, width=1, members=())
    assert chunk_ends(group, 8) == [4, 12]
    assert chunk_ends(group, 1)[-1] == 18
