"""What several proxies ask of one network is computed once.

Proxies do not know of each other: each calls `features`, `view`, `loss_gradients` as if it were alone. While the scorer
says that nothing changes, such functions answer equal questions from memory; a proxy that is called by itself always
computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_memory: ContextVar[dict[Any, tuple[Any, Any]] | None] = ContextVar("memory", default=None)


@contextmanager
def unchanged() -> Iterator[None]:
    """Promises that no network and no batch changes while the block runs; what was computed is forgotten at its end."""
    token = _memory.set({})
    try:
        yield
    finally:
        _memory.reset(token)


def shared(function: Callable[P, R]) -> Callable[P, R]:
    """The function, which inside `unchanged` computes once for each set of arguments: the same objects, equal numbers.

    What it returns is shared as well: nobody may change it. An error is not remembered.
    """

    @wraps(function)
    def answer(*args: P.args, **kwargs: P.kwargs) -> R:
        memory = _memory.get()
        if memory is None:
            return function(*args, **kwargs)
        question = (function, *map(_identity, args), *((name, _identity(value)) for name, value in kwargs.items()))
        if question not in memory:
            # The arguments are kept, so that no other object gets their identity.
            memory[question] = ((args, kwargs), function(*args, **kwargs))
        result: R = memory[question][1]
        return result

    return answer


def _identity(value: object) -> object:
    return value if isinstance(value, int | float | str | None) else id(value)
