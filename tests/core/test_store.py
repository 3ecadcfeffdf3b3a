from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from edgekd.core.blobs import disk_errors
from edgekd.core.store import DamagedRecord, LocalStore, MemoryStore, Store
from edgekd.errors import UserError
from edgekd.testing.conformance_store import StoreConformance, make_record


class TestLocalStore(StoreConformance):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        return LocalStore(tmp_path / "store")


class TestMemoryStore(StoreConformance):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        return MemoryStore(tmp_path / "store")


def record_file(root: Path) -> Path:
    (found,) = (root / "records").rglob("*.json")
    return found


def test_looking_into_a_store_that_is_not_there_makes_nothing(root: Path, store: LocalStore) -> None:
    assert store.last("a") is None
    assert store.holder() is None
    assert not root.exists()


def test_another_process_sees_what_was_put(root: Path, store: LocalStore, tmp_path: Path) -> None:
    record = make_record(store, tmp_path)
    store.put(record)
    store.note(record)
    assert LocalStore(root).get(record.key.digest) == record
    assert LocalStore(root).last("prune") == record


def test_a_store_works_from_where_it_was_moved_to(root: Path, store: LocalStore, tmp_path: Path) -> None:
    record = make_record(store, tmp_path)
    store.put(record)
    root.rename(tmp_path / "elsewhere")
    assert LocalStore(tmp_path / "elsewhere").get(record.key.digest) == record


@pytest.mark.parametrize("damage", ["", "{", "[]", "\x00\xff", '{"schema_version": 1}'])
def test_an_unreadable_record_says_where_it_lies(root: Path, store: LocalStore, tmp_path: Path, damage: str) -> None:
    record = make_record(store, tmp_path)
    store.put(record)
    store.note(record)
    record_file(root).write_text(damage, encoding="latin-1")
    with pytest.raises(DamagedRecord, match="its record: "):
        store.get(record.key.digest)
    (root / "nodes" / "prune.json").write_text(damage, encoding="latin-1")
    with pytest.raises(DamagedRecord, match="its record: "):
        store.last("prune")


def test_a_record_under_another_key_is_refused(root: Path, store: LocalStore, tmp_path: Path) -> None:
    record = make_record(store, tmp_path)
    store.put(record)
    file = record_file(root)
    file.write_text(json.dumps({**json.loads(file.read_text()), "key": {**record.key.plain(), "seed": 9}}))
    with pytest.raises(DamagedRecord, match="belongs to another key"):
        store.get(record.key.digest)


def test_a_kill_while_writing_leaves_the_old_record(
    root: Path, store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = make_record(store, tmp_path, text="old")
    store.put(old)
    new = make_record(store, tmp_path, text="new")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        store.put(new)
    assert store.get(old.key.digest) == old
    assert list(root.rglob(".new-*")) == []


def test_a_full_disk_is_one_clear_error(store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = make_record(store, tmp_path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"No space left on the disk while writing .*records") as caught:
        store.put(record)
    assert caught.value.hint is not None
    assert "--store" in caught.value.hint
    assert store.get(record.key.digest) is None


def test_a_store_on_a_read_only_disk_is_one_clear_error(
    root: Path, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", read_only)
    with pytest.raises(UserError, match=f"Cannot write {root}/lock: Read-only file system") as caught, store.lock():
        pass
    assert "--store" in str(caught.value.hint)


def test_disk_errors_leave_other_errors_alone(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), disk_errors(tmp_path):
        (tmp_path / "missing").read_text()
