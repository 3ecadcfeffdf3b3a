"""Student search without training: spaces of architectures, proxies that rank them, and searchers under a budget."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgekd.search.scoring import score

__all__ = ["score"]


def __getattr__(name: str) -> Any:
    """`score`, imported when it is asked for: it needs torch."""
    if name == "score":
        from edgekd.search.scoring import score

        return score
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
