"""Reports as bundles: how a stage that makes numbers hands them on, and how the next one reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

from edgekd.core.blobs import disk_errors
from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.schema import Schema
from edgekd.core.stage import Context
from edgekd.errors import UserError

REPORT_FILE = "report.json"

S = TypeVar("S", bound=Schema)


def bundle_from_report(report: Schema, ctx: Context) -> ModelBundle:
    """A REPORT bundle whose one file holds `report` as JSON."""
    path = ctx.scratch / REPORT_FILE
    with disk_errors(path):
        path.write_text(json.dumps(report.plain(), indent=1, sort_keys=True), encoding="utf-8")
    return ModelBundle(kind=BundleKind.REPORT, files={REPORT_FILE: ctx.blobs.add(path)})


def report_from_bundle(bundle: ModelBundle, kind: type[S], ctx: Context, where: str) -> S:
    """Reads back what `bundle_from_report` wrote.

    Args:
        bundle: A REPORT bundle.
        kind: The schema of the report.
        ctx: Finds the blob.
        where: The node that made it, for messages.

    Raises:
        UserError: Not a report of this kind.
    """
    return schema_from_json(ctx.path(bundle, REPORT_FILE), kind, where)


def schema_from_json(path: Path, kind: type[S], where: str) -> S:
    """An object of `kind` read from a JSON file.

    Raises:
        UserError: The file is missing or unreadable, not JSON, or its keys do not fit.
    """
    return kind.parse(json_from_file(path, where), where)


def json_from_file(path: Path, where: str) -> object:
    """The plain data in a JSON file.

    Raises:
        UserError: The file is missing or unreadable, or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as err:
        raise UserError(f"{where}: cannot read {path} ({err.strerror}).") from err
    except (ValueError, RecursionError) as err:
        raise UserError(f"{where}: {path} is not valid JSON ({err}).") from err
