"""A job that builds: digests become paths, files that were made become digests, and reasons keep their code."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any, ClassVar

import pytest

from edgekd.profiling.agent import builds
from edgekd.profiling.agent.builds import built
from edgekd.profiling.agent.folder import Folder
from edgekd.profiling.agent.wire import AgentError
from edgekd.runtimes.engines.settings import BuildSettings, InputShapes
from edgekd.runtimes.engines.supervise import BuildError, Order

ONE = (1, 3, 8, 8)
SETTINGS = BuildSettings(inputs=(InputShapes("images", ONE, ONE, ONE),), precision="fp16", workspace_mib=64)


class Supervisor:
    """Stands for the real one: writes one engine, or fails as it is told to."""

    orders: ClassVar[list[Order]] = []
    error: ClassVar[BuildError | None] = None

    def __init__(self, order: Order, folder: Path, worker: Any, **more: Any) -> None:
        self.order, self.folder, self.more = order, folder, more
        self.orders.append(order)

    def result(self) -> dict[str, Any]:
        if self.error is not None:
            raise self.error
        self.more["tell"]("build 1 of 1", 1, 2)
        (self.folder / "build-0").mkdir()
        (self.folder / "build-0" / "model.engine").write_bytes(b"plan")
        digest = hashlib.sha256(b"plan").hexdigest()
        return {
            "builds": [{"engine": "build-0/model.engine", "engine_sha256": digest, "timing_cache": None}],
            "notes": [],
        }


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    monkeypatch.setattr(builds, "Supervisor", Supervisor)
    monkeypatch.setattr(Supervisor, "orders", [])
    monkeypatch.setattr(Supervisor, "error", None)
    (tmp_path / "files").mkdir()
    return Folder(tmp_path)


def pushed(folder: Folder, content: bytes) -> str:
    digest = hashlib.sha256(content).hexdigest()
    folder.file(digest).write_bytes(content)
    return digest


def job(folder: Folder) -> tuple[Path, dict[str, Any]]:
    place = folder.root / "jobs" / "a1"
    place.mkdir(parents=True)
    spec = {
        "onnx": pushed(folder, b"graph"), "settings": SETTINGS.plain(), "shapes": {"images": list(ONE)},
        "probes": [{"images": pushed(folder, b"image")}], "builder": "auto", "builds": 1, "limit_s": 60.0,
        "timing_cache": None, "timing_cache_from": None, "run_s": 1.0,
    }  # fmt: skip
    return place, {"build": spec}


def test_an_order_has_paths_and_a_result_has_digests(folder: Folder) -> None:
    place, spec = job(folder)
    told: list[tuple[str, float]] = []
    found = built(folder, place, spec, lambda text, done: told.append((text, done)))
    (order,) = Supervisor.orders
    assert order.onnx.read_bytes() == b"graph"
    assert order.probes[0]["images"].read_bytes() == b"image"
    assert order.settings == SETTINGS
    engine = found["builds"][0]["engine"]
    assert folder.file(engine).read_bytes() == b"plan"
    assert told == [("build 1 of 1", 0.5)]
    assert list(place.iterdir()) == []


def test_a_reason_keeps_its_code(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    place, spec = job(folder)
    monkeypatch.setattr(Supervisor, "error", BuildError("time-limit", "too slow"))
    with pytest.raises(AgentError, match="too slow") as caught:
        built(folder, place, spec, lambda text, done: None)
    assert caught.value.code == "time-limit"


def test_a_file_goes_home_in_pieces_whose_bytes_are_its_own(folder: Folder) -> None:
    content = bytes(range(256)) * 2000
    digest = pushed(folder, content)
    said: list[dict[str, Any]] = []
    folder.send(digest, said.append)
    assert b"".join(base64.b64decode(answer["piece"]) for answer in said[:-1]) == content
    assert len(said) > 2
    assert said[-1] == {"sent": len(content)}


def test_what_was_fetched_is_forgotten_and_forgetting_twice_is_no_mistake(folder: Folder) -> None:
    digest, other = pushed(folder, b"plan"), pushed(folder, b"graph")
    folder.forget([digest])
    folder.forget([digest])
    assert folder.missing([digest, other]) == [digest]


def test_a_file_that_was_removed_is_no_empty_file(folder: Folder) -> None:
    with pytest.raises(AgentError, match="was removed from the board"):
        folder.send("0" * 64, lambda answer: None)
