"""Forms of a verdict for CI systems: read back by their own parsers, and hostile text stays text."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from edgekd.core.report import Check, Verdict
from edgekd.report.ci import github_annotations, junit_from_verdict, markdown_from_verdict

PASS = Check(name="size", status="PASS", value=1.0, limit=2.0, unit="MiB", reason="small")
FAIL = Check(
    name="latency against the baseline", status="FAIL", value=1.06, low=1.05, high=1.07, limit=1.02, unit="x",
    reason="6.0 % slower: <b>|\n::error::x",
)  # fmt: skip
OPEN = Check(name="drop", status="INCONCLUSIVE", value=0.01, limit=0.02, reason="no data")
VERDICT = Verdict(status="FAIL", reason="A limit is missed: 6 %.", checks=(PASS, FAIL, OPEN))


def cases(text: str) -> dict[str, str]:
    """What each test case came to, as a CI system reads it."""
    root = ElementTree.fromstring(text)
    return {str(case.get("name")): ",".join(child.tag for child in case) for case in root.iter("testcase")}


def test_junit_has_a_case_per_check_and_counts_them() -> None:
    text = junit_from_verdict(VERDICT, "out/bundle", seconds=12.5)
    assert cases(text) == {"size": "system-out", FAIL.name: "failure", "drop": "error"}
    suite = ElementTree.fromstring(text).find("testsuite")
    assert suite is not None
    assert {k: suite.get(k) for k in ("tests", "failures", "errors", "skipped", "time")} == {
        "tests": "3", "failures": "1", "errors": "1", "skipped": "0", "time": "12.500"
    }  # fmt: skip


def test_an_inconclusive_check_that_only_warns_is_skipped_and_not_an_error() -> None:
    text = junit_from_verdict(VERDICT, "x", warn=True)
    assert cases(text)["drop"] == "skipped"
    assert 'errors="0"' in text


def test_characters_that_xml_cannot_hold_do_not_break_the_file() -> None:
    broken = VERDICT.model_copy(update={"checks": (FAIL.model_copy(update={"reason": 'a\x00\x1b[31m<&"b'}),)})
    (case,) = ElementTree.fromstring(junit_from_verdict(broken, "x\x07")).iter("testcase")
    assert case[0].get("message") == 'a[31m<&"b'
    assert case.get("classname") == "x"


def test_a_verdict_without_checks_is_one_case_that_passes() -> None:
    assert cases(junit_from_verdict(Verdict(status="PASS", reason="nothing asked"), "x")) == {"limits": "system-out"}


def test_markdown_has_one_row_per_check_whatever_is_in_the_texts() -> None:
    text = markdown_from_verdict(VERDICT, "out/bundle", facts={"device": "a desk"}, notes=("The clock fell.",))
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + 3
    assert {row.replace("\\|", "").count("|") for row in rows} == {7}
    assert "| +6.0 % | +5.0 % to +7.0 % | +2.0 % |" in text
    assert "&lt;b&gt;\\|" in text
    assert text.startswith("### ❌ FAIL: out/bundle\n")
    assert text.endswith("- device: a desk\n- The clock fell.\n")


def test_a_predicted_value_is_marked_in_the_table() -> None:
    guess = PASS.model_copy(update={"origin": "predicted"})
    assert "size (predicted)" in markdown_from_verdict(Verdict(status="PASS", reason="x", checks=(guess,)), "x")


def test_annotations_are_one_command_a_line_and_cannot_be_broken_out_of() -> None:
    lines = github_annotations(VERDICT, "a,b:c", notes=("100% busy",))
    assert [line.split(" ")[0] for line in lines] == ["::error", "::warning", "::notice"]
    assert all("\n" not in line for line in lines)
    assert lines[0] == (
        "::error title=latency gate%3A FAIL%2C latency against the baseline::a,b:c: 6.0 %25 slower: <b>|%0A::error::x"
    )
    assert lines[2].endswith("::100%25 busy")


@pytest.mark.parametrize("subject", ["x", "y"])
def test_a_pass_is_one_notice(subject: str) -> None:
    found = github_annotations(Verdict(status="PASS", reason="Every limit holds.", checks=(PASS,)), subject)
    assert found == [f"::notice title=latency gate%3A PASS::{subject}: Every limit holds."]
