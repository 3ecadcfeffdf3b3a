from __future__ import annotations

import logging
import sys
import warnings

import pytest

from edgekd.nn.quiet import quiet_exporter


def test_nothing_is_heard_inside_and_everything_after(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with quiet_exporter():
        sys.stdout.write("progress")
        warnings.warn("old", stacklevel=1)
        logging.getLogger("torch").error("graph")
    assert (capsys.readouterr().out, caplog.text) == ("", "")
    logging.getLogger("edgekd").error("heard")
    assert "heard" in caplog.text


def test_errors_pass_through() -> None:
    with pytest.raises(ZeroDivisionError), quiet_exporter():
        raise ZeroDivisionError
    assert logging.root.manager.disable == 0
