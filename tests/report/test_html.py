"""The page: complete, self-contained, and safe with whatever a run is called."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from edgekd.core.report import Budget, Verdict
from edgekd.report.data import Asked, GraphNode, ReportData
from edgekd.report.html import html_from_report, write_report
from tests.report.sample import CHOSEN, sample_report, without_measurement

VOID = {"meta", "link", "br", "img"}


class Nesting(HTMLParser):
    """Follows open elements, and keeps every attribute that could fetch something."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "srcset", "action"):
                self.links.append(value or "")
            if name == "id":
                self.ids.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def parsed(page: str) -> Nesting:
    parser = Nesting()
    parser.feed(page)
    assert parser.open == []
    return parser


def minimal() -> ReportData:
    return ReportData(
        title="x",
        created="no date",
        version="0",
        asked=Asked(model="m", target="t"),
        verdict=Verdict(status="INCONCLUSIVE", reason="nothing ran"),
    )


@pytest.mark.parametrize("data", [sample_report(), sample_report(threads=(1, 2)), without_measurement(), minimal()])
def test_the_page_is_well_formed_and_fetches_nothing(data: ReportData) -> None:
    page = html_from_report(data)
    found = parsed(page)
    assert "script" not in found.tags
    assert [link for link in found.links if not link.startswith(("#", "data:"))] == []
    assert {link[1:] for link in found.links if link.startswith("#")} <= set(found.ids)
    assert not re.search(r"url\(|@import|https?://", page)


def test_every_drawing_is_well_formed_and_has_finite_coordinates() -> None:
    drawings = re.findall(r"<svg.*?</svg>", html_from_report(sample_report(threads=(1, 2))), re.DOTALL)
    assert len(drawings) > 5
    for drawing in drawings:
        ElementTree.fromstring(drawing)
        assert "nan" not in drawing
        assert "inf" not in drawing


def test_the_verdict_comes_first_and_in_the_title() -> None:
    page = html_from_report(sample_report())
    assert "<title>PASS" in page
    assert page.index('class="word">PASS') < page.index("What each stage bought")


def test_everything_that_was_promised_is_on_the_page() -> None:
    page = html_from_report(sample_report())
    headings = re.findall(r"<h2>(.*?)</h2>", page)
    assert headings == [
        "What each stage bought",
        "Latency against top-1 accuracy",
        "Every engine, and why it was or was not chosen",
        "Latency distributions",
        "Parity",
        "The graph",
        "Decisions, and why",
        "How each number was obtained",
        "Environment",
        "The bundle",
    ]
    for text in ("edgekd compress cifar10_resnet56_jpeg.pt", CHOSEN, "INT8 is slower", "no kernel for FP16", "5e5e5e"):
        assert text in page


def test_a_run_without_labels_shows_agreement_and_never_accuracy() -> None:
    data = sample_report()
    agreeing = tuple(e.model_copy(update={"metric": "agreement"}) for e in data.evaluations)
    page = html_from_report(data.model_copy(update={"evaluations": agreeing}))
    assert "<h2>Latency against agreement with the teacher</h2>" in page
    assert page.count('<th class="n">Agreement with the teacher</th>') == 2
    assert '<th class="n">Accuracy</th>' not in page
    assert "top1" not in page


def test_what_a_run_does_not_have_leaves_no_empty_section() -> None:
    page = html_from_report(minimal())
    assert re.findall(r"<h2>(.*?)</h2>", page) == ["How each number was obtained"]


def test_predictions_are_marked_and_never_called_measured() -> None:
    page = html_from_report(without_measurement())
    assert page.count('class="tag predicted"') == 3, "the tile and both engines"
    assert "Nothing was measured: this machine is not jetson-orin-nano." in page
    assert "Measured on" not in page
    assert "Latency distributions" not in page


def test_names_and_texts_of_a_run_cannot_become_markup() -> None:
    evil = '<script>alert("x")</script>&'
    data = sample_report()
    node = GraphNode(name=evil, stage=evil, inputs=("@teacher",), reasons=(evil,), decisions=(evil,))
    page = html_from_report(
        data.model_copy(
            update={
                "title": evil,
                "asked": Asked(model=evil, target=evil, command=evil, budget=Budget()),
                "graph": (*data.graph, node),
                "environment": {evil: evil},
                "next_steps": (evil,),
            }
        )
    )
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    parsed(page)


def test_the_file_is_written_with_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "out" / "report.html"
    write_report(sample_report(), path)
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert path.stat().st_size < 400_000
