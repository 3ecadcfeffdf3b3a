"""A verdict in the forms that CI systems read: JUnit XML, markdown, and GitHub's annotations.

Pure text from plain data; writing files and printing are the command line's affair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from xml.etree import ElementTree

from edgekd.core.report import Check, Status, Verdict
from edgekd.core.text import significant

ICONS: dict[Status, str] = {"PASS": "✅", "FAIL": "❌", "INCONCLUSIVE": "⚠️"}
SUITE = "edgekd gate"
_COMMANDS: dict[Status, str] = {"PASS": "notice", "FAIL": "error", "INCONCLUSIVE": "warning"}
# What XML 1.0 cannot hold in any form; a path or a message of a library may.
_NO_XML = {code: None for code in range(32) if chr(code) not in "\t\n\r"}


def junit_from_verdict(verdict: Verdict, subject: str, *, seconds: float = 0.0, warn: bool = False) -> str:
    """One test case per check: a FAIL is a failure, an INCONCLUSIVE an error, or skipped where it only warns.

    Args:
        subject: What was judged; the class name of the cases.
        seconds: How long it took.
        warn: INCONCLUSIVE does not fail the job.
    """
    checks = verdict.checks or (Check(name="limits", status="PASS", reason=verdict.reason),)
    counts = {status: sum(check.status == status for check in checks) for status in ICONS}
    numbers = {
        "tests": str(len(checks)),
        "failures": str(counts["FAIL"]),
        "errors": "0" if warn else str(counts["INCONCLUSIVE"]),
        "skipped": str(counts["INCONCLUSIVE"]) if warn else "0",
        "time": f"{seconds:.3f}",
    }
    root = ElementTree.Element("testsuites", {"name": SUITE, **numbers})
    suite = ElementTree.SubElement(root, "testsuite", {"name": SUITE, **numbers})
    for check in checks:
        case = ElementTree.SubElement(
            suite, "testcase", {"classname": _xml(subject), "name": _xml(check.name), "time": "0.000"}
        )
        _outcome(case, check, warn)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _outcome(case: ElementTree.Element, check: Check, warn: bool) -> None:
    reason = _xml(check.reason)
    if check.status == "PASS":
        ElementTree.SubElement(case, "system-out").text = reason
    elif check.status == "FAIL":
        ElementTree.SubElement(case, "failure", {"type": "FAIL", "message": reason}).text = reason
    elif warn:
        ElementTree.SubElement(case, "skipped", {"message": f"INCONCLUSIVE: {reason}"})
    else:
        ElementTree.SubElement(case, "error", {"type": "INCONCLUSIVE", "message": reason}).text = reason


def markdown_from_verdict(
    verdict: Verdict, subject: str, *, facts: Mapping[str, str] | None = None, notes: Sequence[str] = ()
) -> str:
    """A heading, the sentence, a table of the checks, then facts and notes; for a step summary or a comment.

    Args:
        facts: Short lines on where and how it was measured, by name.
        notes: Sentences.
    """
    lines = [f"### {ICONS[verdict.status]} {verdict.status}: {_inline(subject)}", "", _inline(verdict.reason), ""]
    if verdict.checks:
        lines += ["| check | result | value | interval | limit | why |", "|---|---|---:|---:|---:|---|"]
        lines += [_row(check) for check in verdict.checks] + [""]
    lines += [f"- {_inline(name)}: {_inline(value)}" for name, value in (facts or {}).items()]
    lines += [f"- {_inline(note)}" for note in notes]
    return "\n".join(lines).rstrip() + "\n"


def _row(check: Check) -> str:
    interval = "" if check.low is None or check.high is None else f"{_amount(check.low, check)} to "
    interval += "" if not interval or check.high is None else _amount(check.high, check)
    cells = [
        check.name + (" (predicted)" if check.origin == "predicted" else ""),
        f"{ICONS[check.status]} {check.status}",
        "" if check.value is None else _amount(check.value, check),
        interval,
        "" if check.limit is None else _amount(check.limit, check),
        check.reason,
    ]
    return "| " + " | ".join(_inline(cell).replace("|", "\\|") for cell in cells) + " |"


def _amount(value: float, check: Check) -> str:
    """Ratios as changes, shares as percentages, the rest in its unit."""
    if check.unit == "x":
        return f"{100 * (value - 1):+.1f} %"
    return f"{significant(value)} {check.unit}" if check.unit else f"{100 * value:.2f} %"


def github_annotations(verdict: Verdict, subject: str, *, notes: Sequence[str] = ()) -> list[str]:
    """Workflow commands that show the verdict in GitHub's interface: one line for each, to be printed alone.

    Checks that hold are one notice together; each of the others stands for itself.
    """
    title = f"latency gate: {verdict.status}"
    against = [check for check in verdict.checks if check.status != "PASS"]
    lines = [
        _command(_COMMANDS[check.status], f"{title}, {check.name}", f"{subject}: {check.reason}") for check in against
    ]
    if not against:
        lines.append(_command("notice", title, f"{subject}: {verdict.reason}"))
    return lines + [_command("notice", "latency gate", note) for note in notes]


def _command(kind: str, title: str, message: str) -> str:
    return f"::{kind} title={_property(title)}::{_data(message)}"


def _data(text: str) -> str:
    """The percent sign first: it begins every escape."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _inline(text: str) -> str:
    """One line that cannot open markup of its own."""
    flat = " ".join(text.split())
    return flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _xml(text: str) -> str:
    return text.translate(_NO_XML)
