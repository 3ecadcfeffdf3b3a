"""The link to a JavaScript engine, spoken to by a host made of Python."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgekd.errors import DeviceUnavailable, UserError
from edgekd.runtimes.web.link import Link, message, tensors_in, tensors_out, unpacked


@pytest.fixture
def link(tmp_path: Path) -> Iterator[Link]:
    (tmp_path / "ort.wasm.min.mjs").write_text("export default 1")
    (tmp_path / "secret.txt").write_text("no")
    opened = Link(tmp_path)
    yield opened
    opened.close()


def fetched(address: str) -> tuple[int, bytes, dict[str, str]]:
    try:
        with urllib.request.urlopen(address, timeout=10) as found:
            return found.status, found.read(), dict(found.headers)
    except urllib.error.HTTPError as err:
        return err.code, b"", {}


def answering(link: Link, answer: bytes) -> threading.Thread:
    """A host that gives this answer to its first task."""

    def run() -> None:
        head, body = unpacked(fetched(f"{link.address}/next")[1])
        assert (head["do"], head["n"], body) == ("infer", 3, b"abc")
        urllib.request.urlopen(urllib.request.Request(f"{link.address}/answer", data=answer), timeout=10)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_a_task_reaches_the_host_and_its_answer_comes_back(link: Link) -> None:
    thread = answering(link, message({"outputs": []}, b"xyz"))
    assert link.ask("infer", {"n": 3}, b"abc", alive=lambda: None) == ({"outputs": []}, b"xyz")
    thread.join()


def test_what_the_engine_refuses_is_a_user_error_in_its_words(link: Link) -> None:
    thread = answering(link, message({"error": "no kernel for Foo"}))
    with pytest.raises(UserError, match="ONNX Runtime Web: no kernel for Foo"):
        link.ask("infer", {"n": 3}, b"abc", alive=lambda: None)
    thread.join()


def test_a_host_that_ended_is_noticed_while_waiting(link: Link) -> None:
    with pytest.raises(DeviceUnavailable, match="gone during 'open': node ended with code 1"):
        link.ask("open", {}, alive=lambda: "node ended with code 1")


def test_a_host_that_hangs_is_given_up(link: Link) -> None:
    with pytest.raises(DeviceUnavailable, match="did not answer to 'open' within 0 s"):
        link.ask("open", {}, alive=lambda: None, limit_s=0.1)


def test_the_program_and_the_library_are_served_isolated_and_nothing_else(link: Link) -> None:
    status, data, headers = fetched(f"{link.address}/ort/ort.wasm.min.mjs")
    assert (status, data) == (200, b"export default 1")
    assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"
    assert headers["Content-Type"] == "text/javascript"
    assert fetched(f"{link.address}/page.html")[0] == 200
    for name in ("ort/secret.txt", "ort/../secret.txt", "link.py", "../link.py", "ort/ort.missing.wasm"):
        assert fetched(f"{link.address}/{name}")[0] == 404


def test_another_path_learns_nothing(link: Link) -> None:
    port = link.address.split(":")[2].split("/")[0]
    for path in ("page.html", "guess/page.html", "guess/next"):
        assert fetched(f"http://127.0.0.1:{port}/{path}")[0] == 404


def test_tensors_survive_the_way_there_and_back() -> None:
    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.float32([7]),
        "c": np.zeros((0, 2), np.float32),
    }
    described, data = tensors_out(arrays)
    found = tensors_in(described, data)
    assert list(found) == ["a", "b", "c"]
    for name, value in arrays.items():
        np.testing.assert_array_equal(found[name], value)
    found["a"][0, 0] = 1  # the caller's own
