"""Writes the report: one HTML file with its styles and drawings inside, which needs no network, script or server."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from pydantic import JsonValue

from edgekd.core.blobs import disk_errors
from edgekd.core.report import ProfileReport
from edgekd.report.data import ReportData
from edgekd.report.plots.curve import curve_in_words, curve_picture
from edgekd.report.plots.graph import graph_picture
from edgekd.report.plots.latency import latencies
from edgekd.report.plots.marks import PRECISION_NAMES, marker, precision_name, runtime_name
from edgekd.report.plots.pareto import pareto
from edgekd.report.plots.students import students
from edgekd.report.sources import sources
from edgekd.report.students import student_rows
from edgekd.report.svg import picture
from edgekd.report.view import engine_rows, flattened, step_rows, tiles

REPORT_FILE = "report.html"


def html_from_report(data: ReportData) -> str:
    """The whole page. Everything that comes from the run is escaped; only our own drawings are markup."""
    environment, style = page_environment()
    return environment.get_template("report.html").render(
        data=data,
        style=style,
        created=readable(data.created),
        tiles=tiles(data),
        steps=step_rows(data),
        students=_markup(students(data.search)),
        student_rows=student_rows(data.search),
        curves=[(curve_in_words(c), Markup(curve_picture(c, data.asked.budget)), c) for c in data.curves],
        pareto=_markup(pareto(data)),
        latencies=_markup(latencies(data)),
        graph=_markup(graph_picture(data)),
        keys=keys_of(data.profile),
        engines=engine_rows(data),
        decided=bool(data.decisions) or any(node.decisions for node in data.graph),
        sources=sources(data),
        environment=flattened({**circumstances(data.profile), **data.environment}),
    )


def page_environment() -> tuple[Environment, Markup]:
    """Where templates are, everything escaped, and the style sheet that all pages share."""
    environment = Environment(
        loader=PackageLoader("edgekd.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, _, _ = environment.loader.get_source(environment, "report.css") if environment.loader else ("", None, None)
    return environment, Markup(style)


def write_report(data: ReportData, path: Path) -> None:
    """Writes the page to `path`.

    Raises:
        UserError: The disk is full or the folder cannot be written.
    """
    page = html_from_report(data)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")


def _markup(svg: str | None) -> Markup | None:
    return None if svg is None else Markup(svg)


def circumstances(profile: ProfileReport | None) -> dict[str, JsonValue]:
    """What the profiler noted of the machine, the same beside every engine of a thread count."""
    for entry in profile.entries if profile is not None else ():
        if entry.latency is not None:
            noted = entry.latency.environment
            return {name: noted[name] for name in ("machine", "before", "after") if name in noted}
    return {}


def readable(created: str) -> str:
    """`2 March 2026, 14:05 UTC`; a text that is no date stays as it is."""
    try:
        moment = datetime.fromisoformat(created)
    except ValueError:
        return created
    return f"{moment.day} {moment:%B %Y, %H:%M %Z}".strip()


def keys_of(profile: ProfileReport | None) -> list[tuple[Markup, str]]:
    """The legend: a (drawn mark, name) for each precision and each runtime that occurs."""
    entries = profile.entries if profile is not None else ()
    precisions = {entry.precision for entry in entries}
    runtimes = dict.fromkeys(entry.runtime for entry in entries)
    drawn = [
        (marker(8, 8, "", precision, 5.5), precision_name(precision))
        for precision in PRECISION_NAMES
        if precision in precisions
    ]
    drawn += [(marker(8, 8, runtime, "any", 5.5), runtime_name(runtime)) for runtime in runtimes]
    return [(Markup(picture(16, 16, name, mark, style="key")), name) for mark, name in drawn]
