"""Which limits `edgekd gate` judges by."""

from __future__ import annotations

from typing import Any

import pytest

from edgekd.cli.gate import _budget
from edgekd.core.report import Budget
from edgekd.errors import UserError

OWN = Budget(max_latency_ms=5.0, percentile=99, max_drop=0.02)
NONE: dict[str, Any] = {
    "max_latency_ms": None, "percentile": "50", "max_drop": None, "drop_type": "absolute", "max_size_mib": None
}  # fmt: skip


def test_limits_that_are_not_given_are_those_of_the_run() -> None:
    assert _budget(NONE, OWN) == OWN
    assert _budget(NONE | {"max_size_mib": 1.0}, OWN) == OWN.model_copy(update={"max_size_mib": 1.0})


def test_a_given_latency_brings_its_own_percentile() -> None:
    found = _budget(NONE | {"max_latency_ms": 3.0}, OWN)
    assert (found.max_latency_ms, found.percentile, found.max_drop) == (3.0, 50, 0.02)


@pytest.mark.parametrize("flag", [{"percentile": "99"}, {"drop_type": "relative"}])
def test_a_qualifier_without_its_limit_is_refused(flag: dict[str, str]) -> None:
    with pytest.raises(UserError, match="to apply to"):
        _budget(NONE | flag, OWN)
