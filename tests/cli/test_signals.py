"""SIGINT and SIGTERM end a verb alike: scratch goes, one sentence says what is kept, the code tells which it was."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

VERB = """
import signal, sys, tempfile, time
import click
from edgekd.cli import app

@click.command()
{options}
def slow(**flags):
    with tempfile.TemporaryDirectory() as scratch:
        print(scratch, flush=True)
        time.sleep(60)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
app.VERBS["slow"] = ("__main__:slow", "Waits.")
app.main(["slow"])
"""


@pytest.mark.parametrize(("sent", "code", "word"), [("SIGINT", 130, "Interrupted"), ("SIGTERM", 143, "Terminated")])
@pytest.mark.parametrize("options", ["@click.option('--store')", ""])
def test_a_verb_that_is_ended_cleans_up_and_says_what_is_kept(sent: str, code: int, word: str, options: str) -> None:
    verb = subprocess.Popen(
        [sys.executable, "-c", VERB.format(options=options)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert verb.stdout is not None
    scratch = Path(verb.stdout.readline().strip())
    assert scratch.is_dir()
    verb.send_signal(signal.Signals[sent])
    _, said = verb.communicate(timeout=20)
    assert verb.returncode == code
    assert not scratch.exists()
    assert word in said
    assert "Traceback" not in said
    assert ("the same command continues" in said) == bool(options)
