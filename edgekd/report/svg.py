"""SVG as text: elements with escaped content and short numbers. Colours come from the page's style sheet.

Inline SVG is drawn by the reader's browser in the page's own fonts and colours, so it follows light and dark and prints
sharp; a plotting library's picture would do neither.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

Attributes = Mapping[str, str | float]


def tag(name: str, attributes: Attributes, *children: str) -> str:
    """One element; `children` are markup already, attribute values are escaped here."""
    written = "".join(f' {key}="{_value(value)}"' for key, value in attributes.items())
    return f"<{name}{written}>{''.join(children)}</{name}>" if children else f"<{name}{written}/>"


def label(x: float, y: float, content: str, style: str = "", anchor: str = "start") -> str:
    """Text whose baseline starts, centres or ends (`start`, `middle`, `end`) at a point."""
    return tag("text", {"x": x, "y": y, "class": f"t {style}".strip(), "text-anchor": anchor}, escape(content))


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    return tag("line", {"x1": x1, "y1": y1, "x2": x2, "y2": y2, "class": style})


def rect(x: float, y: float, width: float, height: float, style: str, radius: float = 0) -> str:
    """A rectangle; one of no width or height draws nothing."""
    box: Attributes = {"x": x, "y": y, "width": max(width, 0), "height": max(height, 0), "rx": radius, "class": style}
    return tag("rect", box)


def path(points: Sequence[tuple[float, float]], style: str, *, closed: bool = False) -> str:
    """Straight lines through the points."""
    steps = "L".join(f"{_value(x)} {_value(y)}" for x, y in points)
    return tag("path", {"d": f"M{steps}{'Z' if closed else ''}", "class": style})


def titled(content: str, *children: str) -> str:
    """A group whose tooltip is `content`."""
    return tag("g", {}, tag("title", {}, escape(content)), *children)


def picture(width: float, height: float, description: str, *children: str, style: str = "plot") -> str:
    """The whole drawing; `description` is what a screen reader says."""
    box = f"0 0 {_value(width)} {_value(height)}"
    attributes: Attributes = {"viewBox": box, "class": style, "role": "img", "aria-label": description}
    return tag("svg", attributes, *children)


def text_width(content: str, size: float = 12) -> float:
    """About how wide a text is, in pixels: enough to keep labels apart."""
    return 0.56 * size * len(content)


def shortened(content: str, limit: int) -> str:
    """At most `limit` characters, the end replaced by an ellipsis."""
    return content if len(content) <= limit else content[: limit - 1] + "…"


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Maps data to pixels, linearly or by logarithm.

    Attributes:
        low: Data value at pixel `start`.
        high: Data value at pixel `end`.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = self._mapped(self.low), self._mapped(self.high)
        return self.start + (self._mapped(value) - low) / (high - low) * (self.end - self.start)

    def ticks(self, wanted: int = 6) -> list[float]:
        """Round values inside the range, about `wanted` of them."""
        return _log_ticks(self.low, self.high, wanted) if self.log else _linear_ticks(self.low, self.high, wanted)

    def _mapped(self, value: float) -> float:
        return math.log10(value) if self.log else value


def _linear_ticks(low: float, high: float, wanted: int) -> list[float]:
    rough = (high - low) / max(wanted, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float, wanted: int) -> list[float]:
    """1, 2, 5 of each decade; more digits in a short range, only decades in a long one."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        found = [d * 10.0**k for k in decades for d in digits if low <= d * 10.0**k <= high]
        if len(found) >= wanted - 2:
            return found
    return _linear_ticks(low, high, wanted)


def _value(value: str | float) -> str:
    if isinstance(value, str):
        return escape(value)
    return f"{value:.1f}".removesuffix(".0")
