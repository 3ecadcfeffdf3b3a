"""What blocks and their replacements cost, so that the cost of a network is a sum over its blocks and the rest."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from edgekd.core.cost import OpCost
from edgekd.nn.count import count_params, layer_costs
from edgekd.nn.reparam import reparameterised
from edgekd.search.blocks.chain import Block, Shape
from edgekd.search.limit import Cost
from edgekd.targets.latency import LatencyModel
from edgekd.targets.schema import Precision


def own_costs(costs: Sequence[OpCost], blocks: Sequence[Block]) -> list[tuple[OpCost, ...]]:
    """The operations of each block, out of those of the whole network.

    Args:
        costs: As `layer_costs` returns them.
        blocks: Of the network.
    """
    return [tuple(cost for cost in costs if cost.name.startswith(f"{block.path}.")) for block in blocks]


class Pricing:
    """Prices operations and networks in one unit: predicted milliseconds, or multiply-accumulates without a model.

    Args:
        model: Of the device.
        precision: Of the deployed network.
    """

    def __init__(self, model: LatencyModel | None, precision: Precision) -> None:
        self._model = model
        self._precision: Precision = precision

    def of_network(self, module: nn.Module, input_shape: Shape) -> Cost:
        """The cost of a whole network, in the form it is deployed in."""
        module = reparameterised(module)
        costs = layer_costs(module, input_shape)
        predicted = None if self._model is None else self._model.predict_ms(costs, self._precision)
        return Cost(predicted_ms=predicted, params=count_params(module), macs=sum(cost.macs for cost in costs))

    def of_operations(self, costs: Sequence[OpCost]) -> float:
        """The share of some operations in a network's `Cost.compared`."""
        if self._model is None:
            return float(sum(cost.macs for cost in costs))
        return sum(self._model.op_ms(cost, self._precision) for cost in costs)
