"""Histories: appended to, never rewritten, and precise about a line that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekd.core.history import HistoryEntry, append_entry, read_history
from edgekd.errors import UserError


def entry(label: str) -> HistoryEntry:
    return HistoryEntry(
        time="2026-01-01T00:00:00+00:00",
        label=label,
        subject="b",
        device="a desk",
        status="PASS",
        reason="ok",
        p50_ms=1.0,
    )


def test_entries_come_back_in_order_and_earlier_lines_are_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "gate" / "history.jsonl"
    append_entry(path, entry("one"))
    first = path.read_bytes()
    append_entry(path, entry("two"))
    assert path.read_bytes().startswith(first)
    assert read_history(path) == (entry("one"), entry("two"))


def test_a_line_has_no_keys_without_a_value(tmp_path: Path) -> None:
    append_entry(tmp_path / "h.jsonl", entry("one"))
    assert "ratio" not in (tmp_path / "h.jsonl").read_text()


@pytest.mark.parametrize(
    ("line", "words"), [('{"time": ', "line 2: not JSON"), ('{"x": 1}', "line 2: .*unknown key 'x'")]
)
def test_a_broken_line_is_named_by_its_number(tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "h.jsonl"
    append_entry(path, entry("one"))
    with path.open("a") as stream:
        stream.write(line + "\n")
    with pytest.raises(UserError, match=words):
        read_history(path)


def test_a_missing_history_says_how_to_begin_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Cannot read the history") as found:
        read_history(tmp_path / "none.jsonl")
    assert "--history" in str(found.value.hint)
