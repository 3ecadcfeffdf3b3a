"""The promises of `edgekd.core.store.Store` as tests: inherit `StoreConformance` and give it a store.

class TestMyStore(StoreConformance):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        return MyStore(tmp_path / "store")
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.digest import digest
from edgekd.core.record import InputRef, Record, RunKey
from edgekd.core.store import DamagedRecord, Store
from edgekd.errors import UserError


def make_record(store: Store, folder: Path, *, node: str = "prune", text: str = "weights", seed: int = 0) -> Record:
    """A record whose bundle has one file, `weights.txt`, with `text` in it; `seed` sets its key apart."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "weights.txt"
    path.write_text(text)
    return Record(
        node=node,
        run="run-1",
        key=RunKey(
            stage="prune",
            version=1,
            config={"keep": 0.5, "exclude": ["head"]},
            inputs={"model": (InputRef(source="distill", content=digest("test", 1)),)},
            resources={"data": digest("test", 2)},
            seed=seed,
        ),
        bundle=ModelBundle(kind=BundleKind.TORCH, files={"weights.txt": store.blobs.add(path)}, tags={"keep": 0.5}),
        metrics={"macs_m": 12.5, "widths": [8, 16], "accuracy": None},
        decisions=("kept the head",),
        seconds=1.5,
        finished=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    )


class StoreConformance:
    """What every store does."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        """An empty store."""
        raise NotImplementedError("give the suite a store: override this fixture")

    def test_an_empty_store_has_nothing(self, store: Store) -> None:
        assert store.get(digest("test")) is None
        assert store.last("prune") is None
        assert store.holder() is None

    def test_a_record_comes_back_equal_under_its_own_key_only(self, store: Store, tmp_path: Path) -> None:
        record = make_record(store, tmp_path)
        store.put(record)
        assert store.get(record.key.digest) == record
        assert store.get(make_record(store, tmp_path, seed=1).key.digest) is None

    def test_a_later_record_replaces_an_earlier_one(self, store: Store, tmp_path: Path) -> None:
        store.put(make_record(store, tmp_path, text="old"))
        new = make_record(store, tmp_path, text="new")
        store.put(new)
        assert store.get(new.key.digest) == new

    def test_the_bytes_of_a_file_come_back(self, store: Store, tmp_path: Path) -> None:
        record = make_record(store, tmp_path, text="the bytes")
        assert store.blobs.path(record.bundle.file("weights.txt")).read_text() == "the bytes"

    def test_a_note_is_kept_by_node_and_never_reused(self, store: Store, tmp_path: Path) -> None:
        first, second = make_record(store, tmp_path, seed=1), make_record(store, tmp_path, seed=2)
        other = make_record(store, tmp_path, node="other", seed=3)
        for record in (first, second, other):
            store.note(record)
        assert store.last("prune") == second
        assert store.last("other") == other
        assert store.get(second.key.digest) is None

    def test_a_lost_file_makes_the_record_unusable_and_says_which(self, store: Store, tmp_path: Path) -> None:
        record = make_record(store, tmp_path)
        store.put(record)
        store.blobs.path(record.bundle.file("weights.txt")).unlink()
        with pytest.raises(DamagedRecord, match=r"weights\.txt .* is lost"):
            store.get(record.key.digest)

    def test_a_damaged_file_is_found_and_adding_it_again_repairs_it(self, store: Store, tmp_path: Path) -> None:
        record = make_record(store, tmp_path)
        store.put(record)
        blob = store.blobs.path(record.bundle.file("weights.txt"))
        blob.chmod(0o644)
        blob.write_text("weighty")
        with pytest.raises(DamagedRecord, match=r"weights\.txt .* is damaged"):
            store.get(record.key.digest)
        make_record(store, tmp_path)
        assert store.get(record.key.digest) == record

    def test_scratch_belongs_to_a_key_and_is_not_made_by_asking(self, store: Store) -> None:
        one, other = digest("test", 1), digest("test", 2)
        assert store.scratch(one) == store.scratch(one)
        assert store.scratch(one) != store.scratch(other)
        assert not store.scratch(one).exists()

    def test_one_run_holds_the_store_at_a_time(self, store: Store) -> None:
        with store.lock() as mine:
            assert store.holder() == mine
            with pytest.raises(UserError, match="in use"), store.lock():
                pass
            assert store.holder() == mine
        assert store.holder() is None
        with store.lock() as next_one:
            assert next_one.run != mine.run
