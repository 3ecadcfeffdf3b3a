"""From a stage's goals (a share of the compute, a budget of milliseconds) to the units that leave, and why."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from edgekd.core.text import ms, percent
from edgekd.errors import BuildFailed
from edgekd.nn.channels.analysis import Analysis
from edgekd.nn.channels.apply import Removal, remove_channels_
from edgekd.nn.channels.widths import Corrections, WidthLatency
from edgekd.nn.count import layer_costs
from edgekd.nn.reparam import reparameterised
from edgekd.prune.by_latency import plan_by_latency
from edgekd.prune.config import PruneConfig
from edgekd.prune.schedule import MacModel, plan_removals
from edgekd.prune.table import corrections_from_table
from edgekd.targets.latency import LatencyModel
from edgekd.targets.latency_table import LatencyTable

_STEP = 0.85
"""With a budget, the share that may remain shrinks by this factor until the prediction fits."""
_CORRECTIONS = 4
"""How often a plan by latency is made anew because the network that was really cut misses the goal by a rounding."""
_NAMED = 4
"""How many groups that stay whole for one reason are named in a decision."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to cut.

    Attributes:
        removals: Groups that lose units.
        multiple: The channel multiple it took.
        kept: Share of the multiply-accumulates that remains.
        said: What the budget, or the reach of the groups, had to do with it, one sentence each.
    """

    removals: Sequence[Removal]
    multiple: int
    kept: float
    said: tuple[str, ...] = ()


class Planner:
    """Plans cuts of one network.

    Args:
        config: The goals.
        module: The network, in evaluation mode; left as it was.
        input_shape: (C, H, W).
        analysis: Its groups.
        scores: (units,) by group name, comparable across groups.
        model: Predicts the latency of the device; None where nothing is predicted.
        table: Latencies of this network, or of the wider one that it was cut from, timed on the device; with
            `follow=measured`.
        on_progress: Called with (groups priced, groups in all) when the plan follows the latency.
    """

    def __init__(
        self,
        config: PruneConfig,
        module: nn.Module,
        input_shape: tuple[int, int, int],
        analysis: Analysis,
        scores: Mapping[str, Tensor],
        model: LatencyModel | None,
        table: LatencyTable | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.config = config
        self._module, self._shape, self._analysis, self._scores = module, input_shape, analysis, scores
        self._model, self._table = model, table
        self._costs = layer_costs(module, input_shape)
        self._on_progress = on_progress
        self._followed: WidthLatency | None = None

    def predicted_ms(self, removals: Sequence[Removal] = ()) -> float | None:
        """The predicted latency of the network that is really cut, or that of its widths by the table; None without
        either."""
        if self._table is not None:
            latency = self._by_table(self._table)
            for group, units in removals:
                latency.remove(group, len(units))
            return latency.now_ms
        if self._model is None:
            return None
        cut = copy.deepcopy(self._module)
        remove_channels_(cut, removals)
        return self._model.predict_ms(layer_costs(reparameterised(cut), self._shape), self.config.precision)

    def plan(self) -> Plan:
        """The cut that reaches the goals.

        Raises:
            BuildFailed: The groups together cannot reach `macs_keep`, whatever the channel multiple, and the config is
                strict or there are no groups.
        """
        goal = self._goal_ms()
        if goal is None:
            return self._loose()
        return self._along_macs(goal) if self.config.follow == "macs" else self._along_latency(goal)

    def _goal_ms(self) -> float | None:
        """Where this cut is to end: at the budget, or the first of several equal ratios on the way there."""
        budget, now = self.config.budget_ms, self.predicted_ms()
        if budget is None or now is None:
            return None
        return float(now * (budget / now) ** (1 / self.config.rounds_left)) if now > budget else budget

    def _loose(self) -> Plan:
        """The cut to `macs_keep`; where the groups do not reach it, to the same share of what they do reach."""
        config = self.config
        plan = self._cut(config.macs_keep)
        if plan.kept <= config.macs_keep or config.follow != "macs":
            return plan
        if config.strict or not plan.removals:
            raise self._shortfall(config.macs_keep, plan.kept)
        # A cut as deep as the groups go would leave a tenth of each.
        keep = plan.kept + (1 - plan.kept) * config.macs_keep
        said = (
            f"At most {percent(keep)} of the multiply-accumulates are kept, not {percent(config.macs_keep)}: the "
            f"groups of channels that can be cut reach {percent(plan.kept)} at the utmost."
        )
        plan = self._cut(keep)
        return replace(plan, said=(said, *plan.said))

    def _along_macs(self, goal: float) -> Plan:
        """Ever deeper cuts by multiply-accumulates until the prediction fits."""
        config = self.config
        plan = loose = self._loose()
        keep = max(config.macs_keep, loose.kept)
        while (predicted := self._predicted_after(plan)) > goal:
            ended = plan.kept > keep
            keep *= _STEP
            if ended or keep < config.macs_floor:
                # No cut that can recover is fast enough, so a deeper one would only cost accuracy.
                return self._out_of_reach(loose, plan.kept if ended else keep / _STEP, predicted, goal)
            # Where the groups end above `keep`, the deepest cut there is, which is tried last.
            plan = self._cut(keep)
        said = (
            f"Cut to at most {percent(max(keep, plan.kept))} of the multiply-accumulates: the predicted "
            f"{ms(predicted)} ({config.precision}) keeps {self._goal_in_words(goal)}."
        )
        return replace(plan, said=(*plan.said, said))

    def _along_latency(self, goal: float) -> Plan:
        """One cut to the goal; made anew a little below it while the network really cut misses it by a rounding."""
        aim, keep, predicted = goal, 1.0, goal
        for _ in range(_CORRECTIONS):
            plan = self._cut(self.config.macs_keep, aim)
            keep, predicted = plan.kept, self._predicted_after(plan)
            if keep < self.config.macs_floor:
                break
            if predicted <= goal:
                said = (
                    f"Cut where the least importance is lost per millisecond: the {self._in_words(predicted)} "
                    f"keeps {self._goal_in_words(goal)}, with {percent(keep)} of the "
                    "multiply-accumulates."
                )
                return replace(plan, said=(*plan.said, said))
            aim *= 0.999 * goal / predicted
        return self._out_of_reach(self._cut(self.config.macs_keep), keep, predicted, goal)

    def _out_of_reach(self, loose: Plan, keep: float, predicted: float, goal: float) -> Plan:
        config = self.config
        below = f", less than the {percent(config.macs_floor)} that may remain" if keep < config.macs_floor else ""
        reason = (
            f"{self._goal_in_words(goal).capitalize()} would take {percent(keep)} of the multiply-accumulates{below}"
            if predicted <= goal
            else f"Even {percent(keep)} of the multiply-accumulates would take {'a ' if self._table is None else ''}"
            f"{self._in_words(predicted)}, more than {ms(goal)}"
        )
        kept = max(config.macs_keep, loose.kept)
        return replace(loose, said=(f"{reason}: {percent(kept)} are kept.", *loose.said))

    def _in_words(self, latency_ms: float) -> str:
        figure = f"{ms(latency_ms)} ({self.config.precision})"
        return f"predicted {figure}" if self._table is None else f"{figure} of the latency table"

    def _goal_in_words(self, goal: float) -> str:
        if goal == self.config.budget_ms:
            return f"the budget of {ms(goal)}"
        return f"this round's goal of {ms(goal)} on the way to {ms(self.config.budget_ms or goal)}"

    def _predicted_after(self, plan: Plan) -> float:
        predicted = self.predicted_ms(plan.removals)
        assert predicted is not None, "a goal in milliseconds comes with a latency model"
        return predicted

    def _cut(self, keep: float, goal_ms: float | None = None) -> Plan:
        """What leaves so that at most `keep` of the MACs and, where the groups allow it, `goal_ms` remain.

        The channel multiple is halved while `keep` is out of reach with it. Where the groups do not reach `keep` at
        all, the deepest cut that there is. Along the latency `keep` gives way where no further cut makes the engine
        faster.
        """
        multiple, first = self.config.channel_multiple, None
        while True:
            macs = MacModel(self._module, self._costs, self._analysis.groups)
            target = keep * macs.total
            removals = self._removals(macs, target, goal_ms, multiple)
            plan = Plan(removals=removals, multiple=multiple, kept=macs.now / macs.total)
            if macs.now <= target:
                return replace(plan, kept=min(keep, plan.kept))  # a quotient may round to a little more than `keep`
            first = first or replace(plan, said=(self._no_faster(keep, macs),))
            if multiple == 1:
                return plan if self.config.follow == "macs" else first
            multiple //= 2

    def _no_faster(self, keep: float, macs: MacModel) -> str:
        return (
            f"{percent(macs.now / macs.total)} of the multiply-accumulates remain, not {percent(keep)}: no further cut "
            f"{'is predicted' if self._table is None else 'was measured'} to make the engine faster."
        )

    def _removals(self, macs: MacModel, target: float, goal_ms: float | None, multiple: int) -> Sequence[Removal]:
        groups = self._analysis.groups
        if self._table is not None:
            latency = self._by_table(self._table)
        elif self.config.follow == "latency" and self._model is not None:
            latency = self._by_model(self._model)
        else:
            across = self.config.scope == "global"
            return plan_removals(groups, self._scores, macs, target=target, multiple=multiple, across=across)

        def reached() -> bool:
            return macs.now <= target and (goal_ms is None or latency.now_ms <= goal_ms)

        return plan_by_latency(groups, self._scores, latency, macs, reached=reached, multiple=multiple).removals

    def _by_model(self, model: LatencyModel) -> WidthLatency:
        """The prediction, of the whole network."""
        corrections = Corrections(fixed_ms=model.fixed_us / 1e3)
        return self._followed_along(model, self.config.kernel_block, corrections)

    def _by_table(self, table: LatencyTable) -> WidthLatency:
        """The table, of the whole network."""
        corrections = corrections_from_table(table, self._analysis.groups, self.config.kernel_block)
        return self._followed_along(table.model, 1, corrections)

    def _followed_along(self, model: LatencyModel, block: int, corrections: Corrections) -> WidthLatency:
        """Groups are priced once."""
        precision = self.config.precision
        if self._followed is None:
            self._followed = WidthLatency(
                self._module,
                self._shape,
                self._analysis.groups,
                lambda cost: model.op_ms(cost, precision),
                block=block,
                corrections=corrections,
                on_progress=self._on_progress,
            )
        self._followed.reset()
        return self._followed

    def _shortfall(self, keep: float, reachable: float) -> BuildFailed:
        return BuildFailed(
            f"Pruning cannot keep as little as {percent(keep)} of the multiply-accumulates: the "
            f"{len(self._analysis.groups)} groups of channels that can be cut reach {percent(reachable)}. "
            f"{kept_whole_in_words(self._analysis)}".rstrip(),
            hint=f"ask for macs_keep {reachable + 0.01:.2f} or more",
        )


def kept_whole_in_words(analysis: Analysis) -> str:
    """One sentence that names the groups that stay whole, by reason; empty when there are none."""
    by_reason: dict[str, list[str]] = {}
    for name, why in analysis.kept_whole.items():
        by_reason.setdefault(why, []).append(name)
    parts = []
    for why, names in by_reason.items():
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        parts.append(f"{', '.join(names[:_NAMED])}{more} ({why})")
    return f"Kept whole: {'; '.join(parts)}." if parts else ""
