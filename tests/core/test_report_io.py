"""Reports as bundles."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekd.core.bundle import BundleKind
from edgekd.core.report import Budget, Verdict
from edgekd.core.report_io import bundle_from_report, report_from_bundle, schema_from_json
from edgekd.errors import UserError
from edgekd.testing.harness import make_context


def test_a_report_comes_back_as_it_was_put(tmp_path: Path) -> None:
    ctx = make_context(tmp_path)
    verdict = Verdict(status="PASS", reason="all is well")
    bundle = bundle_from_report(verdict, ctx)
    assert bundle.kind is BundleKind.REPORT
    assert report_from_bundle(bundle, Verdict, ctx, "gate") == verdict


def test_equal_reports_are_equal_bundles(tmp_path: Path) -> None:
    ctx = make_context(tmp_path)
    first = bundle_from_report(Budget(max_drop=0.01), ctx)
    assert first.content == bundle_from_report(Budget(max_drop=0.01), ctx).content


def test_a_report_of_another_kind_is_refused_by_name(tmp_path: Path) -> None:
    ctx = make_context(tmp_path)
    bundle = bundle_from_report(Budget(), ctx)
    with pytest.raises(UserError, match=r"profile: 'status' is missing.*unknown key 'max_latency_ms'"):
        report_from_bundle(bundle, Verdict, ctx, "profile")


def test_a_file_that_is_no_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    path.write_text("{")
    with pytest.raises(UserError, match=r"metrics\.json is not valid JSON"):
        schema_from_json(path, Budget, "out")
    with pytest.raises(UserError, match="cannot read"):
        schema_from_json(tmp_path / "absent.json", Budget, "out")
