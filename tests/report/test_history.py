"""The plot of a history: well-formed, self-contained, and nothing predicted looks measured."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from edgekd.core.history import HistoryEntry
from edgekd.errors import UserError
from edgekd.report.history import history_picture, write_history_plot

SVG = "{http://www.w3.org/2000/svg}"


def entry(p50: float | None, **changes: object) -> HistoryEntry:
    same = {"time": "2026-01-01T00:00:00+00:00", "subject": "b", "device": "a desk", "status": "PASS", "reason": "<ok>"}
    return HistoryEntry.parse({**same, "p50_ms": p50, **changes}, "test")


ENTRIES = [
    entry(1.0, low_ms=0.9, high_ms=1.1, limit_ms=1.2),
    entry(1.3, status="FAIL"),
    entry(1.0, status="INCONCLUSIVE"),
]


def marks(picture: str, tag: str = "circle") -> list[str]:
    return [str(found.get("class")) for found in ElementTree.fromstring(picture).iter(SVG + tag) if found.get("class")]


def test_every_verdict_is_a_mark_of_its_kind_beside_the_key() -> None:
    found = marks(history_picture(ENTRIES))
    assert sorted(found) == sorted(2 * ["pass", "fail", "inconclusive"])


def test_a_prediction_is_no_disc_and_no_part_of_the_curve() -> None:
    picture = history_picture([*ENTRIES, entry(9.0, origin="predicted")])
    assert marks(picture, "rect").count("predicted") == 2
    assert len(marks(picture)) == 6
    curve = next(p for p in ElementTree.fromstring(picture).iter(SVG + "path") if p.get("class") == "median")
    assert str(curve.get("d")).count("L") == 2, "three measured points"


def test_devices_never_share_an_axis() -> None:
    picture = history_picture([*ENTRIES, entry(50.0, device="another desk")])
    panels = [g for g in ElementTree.fromstring(picture).iter(SVG + "g") if "translate" in str(g.get("transform"))]
    assert len(panels) == 2


def test_entries_without_a_latency_are_left_out_and_alone_are_refused() -> None:
    assert len(marks(history_picture([*ENTRIES, entry(None)]))) == 6
    with pytest.raises(UserError, match="nothing to draw"):
        history_picture([entry(None)])


@pytest.mark.parametrize("count", [1, 2, 40])
def test_histories_of_any_length_are_drawn(count: int) -> None:
    assert marks(history_picture([entry(1.0) for _ in range(count)])).count("pass") == count + 1


def test_the_page_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    write_history_plot(ENTRIES, tmp_path / "h.html")
    text = (tmp_path / "h.html").read_text().replace("http://www.w3.org/2000/svg", "")
    assert "<svg" in text
    assert "http" not in text
    with pytest.raises(UserError, match=r"ends in \.svg or \.html"):
        write_history_plot(ENTRIES, tmp_path / "h.png")
