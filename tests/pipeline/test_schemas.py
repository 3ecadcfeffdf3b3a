from __future__ import annotations

from pathlib import Path

import pytest

from edgekd.pipeline.schemas import schema_texts, write_schemas

PUBLISHED = Path(__file__).parents[2] / "docs" / "schemas"


@pytest.mark.parametrize("name", sorted(schema_texts()))
def test_the_published_schema_is_up_to_date(name: str) -> None:
    assert (PUBLISHED / name).read_text() == schema_texts()[name], "run `make schemas`"


def test_schemas_are_written_where_they_are_asked_for(tmp_path: Path) -> None:
    write_schemas(tmp_path / "new")
    assert {path.name for path in (tmp_path / "new").iterdir()} == set(schema_texts())
