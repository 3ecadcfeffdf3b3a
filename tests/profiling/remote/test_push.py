"""Sending files, with a program in the place of ssh that reads them, refuses them, or falls silent."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from edgekd.core.digest import Digest
from edgekd.core.events import RecordingReporter
from edgekd.errors import DeviceUnavailable
from edgekd.profiling.remote import board as board_module
from edgekd.profiling.remote.address import Address
from edgekd.profiling.remote.board import Board
from edgekd.profiling.remote.failures import ConnectionFailed
from edgekd.profiling.remote.ssh import Ssh

SIZE = 1 << 20


@pytest.fixture
def files(tmp_path: Path) -> dict[Digest, Path]:
    found = {}
    for letter in "ab":
        path = tmp_path / letter
        path.write_bytes(letter.encode() * SIZE)
        found[Digest(hashlib.sha256(path.read_bytes()).hexdigest())] = path
    return found


def board(folder: Path, monkeypatch: pytest.MonkeyPatch, line: str) -> Board:
    """A board whose ssh runs a line of shell."""
    program = folder / "bin" / "ssh"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{line}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    return Board(Ssh(Address("board")))


def test_files_go_through_one_connection_with_progress_within_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[Digest, Path]
) -> None:
    says = """printf '%s\\n' "$@" >> calls; cat > got; echo 'edgekd-agent: {"received": []}'"""
    monkeypatch.chdir(tmp_path)
    reporter = RecordingReporter()
    board(tmp_path, monkeypatch, says).push(files, reporter)
    assert (tmp_path / "got").read_bytes() == b"a" * SIZE + b"b" * SIZE
    (called,) = [line for line in (tmp_path / "calls").read_text().splitlines() if "receive" in line]
    assert called.endswith("receive " + " ".join(f"{digest} {SIZE}" for digest in files))
    shown = [event["done"] for event in reporter.events if event["event"] == "progress"]
    assert shown == sorted(set(shown))
    assert len(shown) > 20, "progress is told within a file"
    assert shown[-1] == 100
    assert any("sending 2 files, 2.0 MiB" in str(event.get("text")) for event in reporter.events)


def test_nothing_missing_is_nothing_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reporter = RecordingReporter()
    board(tmp_path, monkeypatch, "exit 255").push({}, reporter)
    assert reporter.events == []


def test_a_board_that_refuses_before_it_has_read_everything_is_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[Digest, Path]
) -> None:
    says = (
        """head -c 1000 > /dev/null; echo 'edgekd-agent: {"error": "disk-full", "message": "no space left"}'; exit 9"""
    )
    with pytest.raises(DeviceUnavailable, match="no space left"):
        board(tmp_path, monkeypatch, says).push(files, RecordingReporter())


def test_a_connection_that_breaks_while_sending_is_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[Digest, Path]
) -> None:
    says = "head -c 1000 > /dev/null; echo 'Connection reset by peer' >&2; exit 255"
    with pytest.raises(ConnectionFailed, match="the connection broke off") as caught:
        board(tmp_path, monkeypatch, says).push(files, RecordingReporter())
    assert caught.value.kind == "dropped"


def test_a_board_that_takes_nothing_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[Digest, Path]
) -> None:
    monkeypatch.setattr(board_module, "ANSWER_S", 0.3)
    monkeypatch.setattr(board_module, "SLOWEST_LINK_BYTES_PER_S", 1e12)
    with pytest.raises(ConnectionFailed, match="did not answer within"):
        board(tmp_path, monkeypatch, "exec sleep 30").push(files, RecordingReporter())
