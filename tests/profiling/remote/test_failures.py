"""What a user reads when a board cannot be used: an `ssh` on the PATH that fails in every way that OpenSSH does."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from edgekd.core.events import RecordingReporter, SilentReporter
from edgekd.errors import DeviceUnavailable, EdgekdError, UserError
from edgekd.profiling.remote.address import Address, parse_address
from edgekd.profiling.remote.archive import agent_archive
from edgekd.profiling.remote.board import Board
from edgekd.profiling.remote.failures import ConnectionFailed
from edgekd.profiling.remote.profile import profile_on_board
from edgekd.profiling.remote.request import BoardPlan
from edgekd.profiling.remote.ssh import Ssh
from tests.profiling.remote.conftest import candidate

ADDRESS = Address(host="orin", user="edge", port=2222)


class FakeSsh:
    """Puts a program named ssh on the PATH and records what it is called with."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder / "fake"
        self.folder.mkdir()
        monkeypatch.setenv("PATH", f"{self.folder}:{os.environ['PATH']}")

    def fails(self, words: str, code: int = 255) -> Ssh:
        return self.runs(f"import sys; sys.stderr.write({words!r}); sys.exit({code})")

    def answers(self, answer: dict[str, object], code: int = 0) -> Ssh:
        line = "Welcome to the board!\nedgekd-agent: " + json.dumps(answer) + "\n"
        return self.runs(f"import sys; sys.stdout.write({line!r}); sys.exit({code})")

    def runs(self, source: str) -> Ssh:
        program = self.folder / "ssh"
        record = self.folder / "calls"
        program.write_text(
            f"#!{sys.executable} -S\nimport sys\n"
            f"open({str(record)!r}, 'a').write(' '.join(sys.argv[1:]) + '\\n')\n{source}\n"
        )
        program.chmod(0o755)
        return Ssh(ADDRESS)

    def calls(self) -> list[str]:
        return (self.folder / "calls").read_text().splitlines()


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSsh:
    return FakeSsh(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("said", "kind", "message", "hint"),
    [
        (
            "ssh: Could not resolve hostname orin: Name or service not known",
            "unreachable",
            "cannot be reached",
            "power",
        ),
        ("ssh: connect to host orin port 2222: No route to host", "unreachable", "cannot be reached", "network"),
        ("ssh: connect to host orin port 2222: Connection timed out", "unreachable", "cannot be reached", "power"),
        (
            "ssh: connect to host orin port 2222: Connection refused",
            "refused",
            "nothing listens",
            "systemctl start ssh",
        ),
        ("edge@orin: Permission denied (publickey).", "key", "refused every key", "ssh-copy-id -p 2222 edge@orin"),
        ("Received disconnect from 10.0.0.2: Too many authentication failures", "key", "refused every", "IdentityFile"),
        (
            "No ED25519 host key is known for [orin]:2222 and you have requested strict checking.\n"
            "Host key verification failed.",
            "unknown-host",
            "does not know the board's host key",
            "`ssh -p 2222 edge@orin`",
        ),
        (
            "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\n"
            "Offending ED25519 key in /home/me/.ssh/known_hosts:3\n"
            "Host key verification failed.",
            "changed-host",
            "is not the one that this machine knows",
            'ssh-keygen -f "/home/me/.ssh/known_hosts" -R "[orin]:2222"',
        ),
        (
            "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\n  remove with:\n"
            "  ssh-keygen -f '/k/hosts' -R '[orin]:2222'\nHost key verification failed.",
            "changed-host",
            "set up anew, or it is another machine",
            "ssh-keygen -f '/k/hosts' -R '[orin]:2222'",
        ),
        (
            "/home/me/.ssh/config: line 3: Bad configuration option: hots",
            "config",
            "configuration has an error",
            "correct",
        ),
        ("Connection closed by 10.0.0.2 port 2222", "dropped", "broke off", "is back"),
        ("client_loop: send disconnect: Broken pipe", "dropped", "broke off", "is back"),
        ("Timeout, server orin not responding.", "dropped", "broke off", "is back"),
        ("something new", "other", "ssh failed. ssh says: something new", "without a question"),
    ],
)
def test_what_openssh_says_is_told_apart_and_answered(
    ssh: FakeSsh, said: str, kind: str, message: str, hint: str
) -> None:
    with pytest.raises(ConnectionFailed) as caught:
        Board(ssh.fails(said)).hello()
    assert caught.value.kind == kind
    assert caught.value.exit_code == 3
    assert message in caught.value.message
    assert caught.value.message.startswith("ssh://edge@orin:2222: ")
    assert hint in str(caught.value.hint)


def test_a_board_that_does_not_answer_is_given_up(ssh: FakeSsh) -> None:
    client = ssh.runs("import time; time.sleep(30)")
    with pytest.raises(ConnectionFailed, match="did not answer within 1 s") as caught:
        client.run(["true"], timeout_s=1.0)
    assert caught.value.kind == "timeout"
    with pytest.raises(ConnectionFailed, match="did not answer within 1 s"):
        client.follow(["true"], lambda line: None, silence_s=1.0)


def test_ssh_is_called_so_that_it_asks_nothing_and_verifies_the_host(ssh: FakeSsh) -> None:
    ssh.answers({"fine": True}).run(["true"], timeout_s=30.0)
    (call,) = ssh.calls()
    assert "-o BatchMode=yes" in call
    assert "-o StrictHostKeyChecking=yes" in call
    assert "-o ConnectTimeout=" in call
    assert call.endswith("-p 2222 -- edge@orin true")


@pytest.mark.parametrize(
    ("answer", "message", "hint"),
    [
        (
            {"error": "disk-full", "message": "no space left on the board's disk", "hint": "free some"},
            "no space",
            "free",
        ),
        (
            {"error": "old-python", "message": "python3 is 3.8", "hint": "install a newer one"},
            "python3 is 3.8",
            "newer",
        ),
    ],
)
def test_what_the_agent_refuses_is_the_boards_error(
    ssh: FakeSsh, answer: dict[str, object], message: str, hint: str
) -> None:
    with pytest.raises(DeviceUnavailable, match=message) as caught:
        Board(ssh.answers(answer, code=9)).hello()
    assert hint in str(caught.value.hint)


def test_a_board_without_python_is_told_what_to_install(ssh: FakeSsh) -> None:
    with pytest.raises(DeviceUnavailable, match="there is no python3 on the board") as caught:
        Board(ssh.fails("sh: 1: python3: not found", code=127)).hello()
    assert "sudo apt-get install python3" in str(caught.value.hint)
    assert "--device-python" in str(caught.value.hint)


def test_an_agent_that_breaks_is_quoted(ssh: FakeSsh) -> None:
    with pytest.raises(DeviceUnavailable, match=r"exit code 1.*KeyError: 'x'"):
        Board(ssh.fails("Traceback\nKeyError: 'x'", code=1)).hello()


def test_the_agent_is_installed_where_it_is_missing(ssh: FakeSsh) -> None:
    source = (
        "words = sys.argv[-1]\n"
        "if words.endswith(' -'):\n"
        "    program = sys.stdin.read(); open(__file__ + '.program', 'w').write(program)\n"
        '    sys.stdout.write(\'edgekd-agent: {"installed": "x"}\\n\')\n'
        "else:\n"
        "    import os\n"
        "    if not os.path.exists(__file__ + '.program'):\n"
        "        sys.stderr.write(\"python3: can't open file 'x'\"); sys.exit(2)\n"
        '    sys.stdout.write(\'edgekd-agent: {"python": "3.10.1"}\\n\')\n'
    )
    assert Board(ssh.runs(source)).hello() == {"python": "3.10.1"}
    assert [call.rpartition("edge@orin ")[2] for call in ssh.calls()] == [
        f"python3 .cache/edgekd/{agent_archive().name} hello",
        "python3 -",
        f"python3 .cache/edgekd/{agent_archive().name} hello",
    ]
    assert agent_archive().digest in (ssh.folder / "ssh.program").read_text()


def test_the_job_goes_on_when_the_connection_is_lost_for_good(ssh: FakeSsh, tmp_path: Path) -> None:
    offers = {"onnxruntime": {"ok": True, "version": "1"}, "tensorrt": {"ok": False, "install": ""}}
    source = (
        "words = sys.argv[-1].split()\n"
        "answers = {'hello': {'runtimes': %r, 'missing': []}}\n"
        "answers['submit'] = {'state': 'queued', 'joined': False}\n"
        "import json\n"
        "if words[2] not in answers:\n"
        "    sys.stderr.write('Connection closed by 10.0.0.2'); sys.exit(255)\n"
        "sys.stdout.write('edgekd-agent: ' + json.dumps(answers[words[2]]) + '\\n')\n"
    )
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    reporter = RecordingReporter()
    with pytest.raises(DeviceUnavailable, match="goes on there without this machine") as caught:
        profile_on_board(
            ssh.runs(source.replace("%r", repr(offers))),
            [candidate(tmp_path, "small")],
            BoardPlan(),
            reporter=reporter,
            patience_s=60.0,
            clock_s=lambda: now[0],
            sleep=sleep,
        )
    assert "run the same command again" in str(caught.value.hint)
    assert 60 < now[0] < 90
    assert len([event for event in reporter.events if "Trying again" in str(event.get("text"))]) == 8


def test_a_damaged_key_configuration_is_not_tried_again_while_following(ssh: FakeSsh, tmp_path: Path) -> None:
    with pytest.raises(ConnectionFailed):
        profile_on_board(
            ssh.fails("Permission denied (publickey)."),
            [candidate(tmp_path, "small")],
            BoardPlan(),
            reporter=SilentReporter(),
        )
    assert len(ssh.calls()) == 1


def test_a_machine_without_the_client_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="no `ssh` on the PATH"):
        Ssh(ADDRESS)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("ssh://edge@orin", Address("orin", "edge")),
        ("ssh://orin", Address("orin")),
        ("ssh://edge@192.168.0.7:2222", Address("192.168.0.7", "edge", 2222)),
        ("ssh://edge@[fe80::1%eth0]:22", Address("fe80::1%eth0", "edge", 22)),
    ],
)
def test_an_address_is_read_as_it_is_written(text: str, found: Address) -> None:
    assert parse_address(text, "--device") == found
    assert parse_address(str(found), "--device") == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("edge@orin", "expected ssh://user@host"),
        ("ssh://edge:secret@orin", "a password in the address would be visible"),
        ("ssh://-oProxyCommand=sh", "characters that no such name has"),
        ("ssh://edge@orin;ls", "characters that no such name has"),
        ("ssh://edge@orin:99999", "is not a port"),
        ("http://orin", "expected ssh://user@host"),
        ("ssh://edge@orin/path", "expected ssh://user@host"),
    ],
)
def test_an_address_that_is_none_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parse_address(text, "--device")
    assert "secret" not in str(caught.value)


def test_an_interpreter_that_means_something_to_a_shell_is_refused() -> None:
    with pytest.raises(EdgekdError, match="no plain path"):
        Board(Ssh(ADDRESS), "python3; rm -rf x")
