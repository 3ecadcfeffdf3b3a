from __future__ import annotations

import errno
import hashlib
import io
import os
from pathlib import Path

import pytest

from edgekd.profiling.agent.folder import KEPT_S, Folder
from edgekd.profiling.agent.install import install
from edgekd.profiling.agent.start import refusal
from edgekd.profiling.agent.wire import AgentError, agent_error, heard, read_json, write_json

CONTENT = b"a model" * 1000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


def test_a_file_appears_under_its_digest_and_is_not_asked_for_again(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    assert folder.missing([DIGEST]) == [DIGEST]
    folder.receive(DIGEST, len(CONTENT), io.BytesIO(CONTENT))
    assert folder.file(DIGEST).read_bytes() == CONTENT
    assert folder.missing([DIGEST]) == []


@pytest.mark.parametrize("content", [CONTENT[:-1], b"x" * len(CONTENT)])
def test_a_file_that_arrives_short_or_changed_is_not_kept(tmp_path: Path, content: bytes) -> None:
    folder = Folder(tmp_path)
    with pytest.raises(AgentError, match="were expected with the SHA-256") as caught:
        folder.receive(DIGEST, len(CONTENT), io.BytesIO(content))
    assert caught.value.code == "damaged"
    assert list(folder.file(DIGEST).parent.iterdir()) == []


def test_a_disk_that_cannot_hold_a_file_is_noticed_before_it_is_filled(tmp_path: Path) -> None:
    stream = io.BytesIO(CONTENT)
    with pytest.raises(AgentError, match="no space left on the board's disk") as caught:
        Folder(tmp_path).receive(DIGEST, 1 << 60, stream)
    assert caught.value.code == "disk-full"
    assert stream.tell() == 0


def test_a_disk_that_fills_meanwhile_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    folder = Folder(tmp_path)
    with pytest.raises(AgentError) as caught:
        folder.receive(DIGEST, len(CONTENT), io.BytesIO(CONTENT))
    assert caught.value.code == "disk-full"
    assert list(folder.file(DIGEST).parent.iterdir()) == []


@pytest.mark.parametrize("digest", ["../../etc/passwd", "A" * 64, ""])
def test_a_digest_never_becomes_a_path(tmp_path: Path, digest: str) -> None:
    with pytest.raises(AgentError, match="is not a SHA-256"):
        Folder(tmp_path).file(digest)


def test_what_nobody_used_for_long_is_removed(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.receive(DIGEST, len(CONTENT), io.BytesIO(CONTENT))
    (tmp_path / "fetched" / "old").mkdir(parents=True)
    (tmp_path / "agent-0.pyz").touch()
    now = folder.file(DIGEST).stat().st_mtime
    folder.tidy(now + KEPT_S / 2)
    assert folder.missing([DIGEST]) == []
    folder.tidy(now + 2 * KEPT_S)
    assert folder.missing([DIGEST]) == [DIGEST]
    assert list(tmp_path.glob("fetched/*")) == list(tmp_path.glob("agent-*")) == []


def test_the_model_of_a_job_that_waits_is_never_removed(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.receive(DIGEST, len(CONTENT), io.BytesIO(CONTENT))
    (folder.jobs / "job1").mkdir(parents=True)
    write_json(folder.jobs / "job1" / "spec.json", {"engines": [{"files": [DIGEST]}]})
    folder.tidy(folder.file(DIGEST).stat().st_mtime + 2 * KEPT_S)
    assert folder.missing([DIGEST]) == []


def test_the_agent_is_installed_whole_or_not_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import base64

    text = base64.b64encode(CONTENT).decode()
    install(str(tmp_path / "new"), "agent.pyz", DIGEST, text)
    assert (tmp_path / "new" / "agent.pyz").read_bytes() == CONTENT
    assert heard(capsys.readouterr().out) == {"installed": "agent.pyz"}
    install(str(tmp_path / "other"), "agent.pyz", "0" * 64, text)
    assert (heard(capsys.readouterr().out) or {})["error"] == "damaged"
    assert not (tmp_path / "other").exists()


def test_an_agent_that_does_not_fit_says_that_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import base64

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    install(str(tmp_path), "agent.pyz", DIGEST, base64.b64encode(CONTENT).decode())
    assert (heard(capsys.readouterr().out) or {})["error"] == "disk-full"
    assert list(tmp_path.iterdir()) == []


def test_a_python_that_is_too_old_is_refused_in_words() -> None:
    answer = heard(refusal((3, 8, 10))) or {}
    assert answer["error"] == "old-python"
    assert "python3 is 3.8.10, and the agent needs 3.10" in answer["message"]
    assert refusal((3, 10, 0)) == refusal((3, 14, 1)) == ""


@pytest.mark.parametrize("line", ["Welcome!", "edgekd-agent: no json", "edgekd-agent: [1]", ""])
def test_what_a_login_shell_prints_is_no_answer(line: str) -> None:
    assert heard(line) is None


def test_an_answer_is_found_behind_what_a_login_shell_printed_on_the_line() -> None:
    assert heard('$ edgekd-agent: {"a": 1}\n') == {"a": 1}


def test_a_file_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json(tmp_path / "x.json", {"a": 1})

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_json(tmp_path / "x.json", {"a": 2})
    assert read_json(tmp_path / "x.json") == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_a_folder_of_another_user_is_told_apart_from_a_full_disk(tmp_path: Path) -> None:
    found = agent_error(PermissionError(errno.EACCES, "Permission denied"), tmp_path / "x")
    assert found.code == "not-writable"
    assert "must belong to the user" in found.hint
