"""What the runtime refuses before TensorRT sees a byte; nothing here runs an engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekd.core.blobs import FolderBlobs
from edgekd.core.bundle import BundleKind
from edgekd.errors import DeviceUnavailable, UserError
from edgekd.runtimes.fingerprint import fingerprint_text, sha256_of
from edgekd.runtimes.tensorrt import RUNTIME, require_engine_for
from edgekd.testing.toy_graphs import toy_onnx_bundle
from tests.runtimes.test_fingerprint import BUILT, NANO


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    path = tmp_path / "model.engine"
    path.write_bytes(b"plan")
    return path


def sidecar(engine: Path, **changes: object) -> Path:
    from dataclasses import replace

    path = engine.with_name("model.engine.json")
    found = replace(BUILT, engine_sha256=sha256_of(engine), **changes)  # type: ignore[arg-type]
    path.write_text(fingerprint_text(found))
    return path


def test_an_engine_of_our_own_for_this_device_is_let_through(engine: Path) -> None:
    path = sidecar(engine)
    require_engine_for(NANO, path, engine)
    assert path.is_file()


def test_an_engine_without_a_fingerprint_is_not_loaded(engine: Path) -> None:
    with pytest.raises(UserError, match="is not loaded: there is no fingerprint") as caught:
        require_engine_for(NANO, engine.with_name("model.engine.json"), engine)
    assert caught.value.hint is not None
    assert "edgekd build" in caught.value.hint


def test_an_engine_that_was_altered_is_not_loaded(engine: Path) -> None:
    path = sidecar(engine)
    engine.write_bytes(b"another plan")
    with pytest.raises(UserError, match=r"was altered after it was built.*native code"):
        require_engine_for(NANO, path, engine)


def test_an_engine_of_another_gpu_is_refused_with_the_reason(engine: Path) -> None:
    with pytest.raises(DeviceUnavailable, match=r"does not fit this device: it was built for Thor .* this is Orin"):
        require_engine_for(NANO, sidecar(engine, gpu="Thor"), engine)


def test_a_bundle_without_a_fingerprint_is_refused_before_its_file_is_opened(tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path / "blobs")
    (tmp_path / "plan").write_bytes(b"plan")
    bundle = toy_onnx_bundle(blobs, tmp_path).model_copy(
        update={"kind": BundleKind.ENGINE, "files": {"model.engine": blobs.add(tmp_path / "plan")}}
    )
    with pytest.raises(UserError, match=r"no fingerprint of edgekd \(model\.engine\.json\)"):
        RUNTIME.open_bundle(bundle, blobs)
