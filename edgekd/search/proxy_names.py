"""From the name of a proxy to the proxy, whichever of the two families it is from.

It stands above both, so that the contract (`search.proxy`) knows nothing of the proxies that are made of objectives.
"""

from __future__ import annotations

from edgekd.search.proxies.objective import objective_proxy
from edgekd.search.proxy import PROXIES, Proxy

OBJECTIVE_PREFIX = "loss-"
"""In front of the name of a distillation objective: the objective as a proxy."""


def proxy_from_name(name: str) -> Proxy:
    """A registered proxy, or `loss-NAME` for the objective NAME.

    Raises:
        UserError: Unknown; the message suggests the near one.
    """
    if name.startswith(OBJECTIVE_PREFIX):
        return objective_proxy(name.removeprefix(OBJECTIVE_PREFIX))
    return PROXIES.get(name)()
