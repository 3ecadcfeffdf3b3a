"""Which engines fit which device, and which files are never loaded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from edgekd.core import deployment
from edgekd.runtimes.fingerprint import (
    FINGERPRINT_FILE,
    Device,
    Fingerprint,
    FingerprintError,
    fingerprint_from_plain,
    fingerprint_text,
    read_fingerprint,
    require_own_engine,
    sha256_of,
)

NANO = Device(gpu="Orin", compute_capability="8.7", tensorrt="10.3.0", os="linux", arch="aarch64", multiprocessors=8)
BUILT = Fingerprint(
    gpu="Orin", compute_capability="8.7", tensorrt="10.3.0", os="linux", arch="aarch64", multiprocessors=8,
    onnx_sha256="a" * 64, engine_sha256="b" * 64, builder="python", flags=("STRONGLY_TYPED",),
    settings={"precision": "int8"},
)  # fmt: skip


def test_an_engine_fits_the_device_it_was_built_on() -> None:
    assert BUILT.fits(NANO) == []
    assert BUILT.summary == "tensorrt-10.3.0/sm_87/Orin"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"gpu": "NVIDIA GeForce RTX 3070"},
            "built for Orin (compute capability 8.7), this is NVIDIA GeForce RTX 3070",
        ),
        ({"compute_capability": "8.6"}, "this is Orin (compute capability 8.6)"),
        ({"multiprocessors": 16}, "built for a Orin with 8 multiprocessors, this one has 16"),
        ({"tensorrt": "10.7.0"}, "it needs TensorRT 10.3.0, here is 10.7.0"),
        ({"tensorrt": "8.6.2"}, "it needs TensorRT 10.3.0, here is 8.6.2"),
        ({"arch": "x86_64"}, "it was built on linux aarch64, this is linux x86_64"),
        ({"os": "windows"}, "this is windows aarch64"),
    ],
)
def test_what_does_not_fit_is_told_one_by_one(changes: dict[str, object], reason: str) -> None:
    (found,) = BUILT.fits(replace(NANO, **changes))  # type: ignore[arg-type]
    assert reason in found


def test_all_reasons_are_told_at_once() -> None:
    assert len(BUILT.fits(replace(NANO, gpu="Thor", tensorrt="11.0.0", arch="x86_64"))) == 3


@pytest.mark.parametrize(("here", "fits"), [("10.3.0.26", True), ("10.3.1", False), ("10.3", False)])
def test_versions_are_compared_as_far_as_both_are_told(here: str, fits: bool) -> None:
    assert (BUILT.fits(replace(NANO, tensorrt=here)) == []) is fits


@pytest.mark.parametrize(
    ("here", "fits"), [("10.3.0", True), ("10.13.3.9", True), ("10.0.1", False), ("11.0.0", False), ("8.6.1", False)]
)
def test_a_version_compatible_engine_also_fits_later_releases_of_its_major_version(here: str, fits: bool) -> None:
    engine = replace(BUILT, version_compatible=True)
    assert (engine.fits(replace(NANO, tensorrt=here)) == []) is fits


@pytest.mark.parametrize(
    ("gpu", "capability", "fits"), [("RTX 4090", "8.9", True), ("Thor", "11.0", True), ("Xavier", "7.2", False)]
)
def test_a_hardware_compatible_engine_also_fits_other_gpus_from_ampere_on(
    gpu: str, capability: str, fits: bool
) -> None:
    engine = replace(BUILT, hardware_compatible=True)
    assert (engine.fits(replace(NANO, gpu=gpu, compute_capability=capability)) == []) is fits


def test_a_fingerprint_survives_its_file_and_gives_equal_bytes(tmp_path: Path) -> None:
    path = tmp_path / FINGERPRINT_FILE
    path.write_text(fingerprint_text(BUILT))
    assert read_fingerprint(path) == BUILT
    assert fingerprint_text(read_fingerprint(path)) == fingerprint_text(BUILT)
    assert json.loads(path.read_text())["schema_version"] == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 2}, "has the schema 2, this edgekd reads 1"),
        ({"gpus": "Orin"}, "has unknown keys gpus"),
        ({"engine_sha256": None}, "'engine_sha256' is None"),
        ({"version_compatible": "yes"}, "'version_compatible' is 'yes'"),
        ({"flags": "INT8"}, "'flags' is 'INT8'"),
    ],
)
def test_a_file_that_is_no_fingerprint_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(FingerprintError, match=message):
        fingerprint_from_plain({**BUILT.plain(), **changes}, "model.engine.json")
    plain = BUILT.plain()
    del plain["gpu"]
    with pytest.raises(FingerprintError, match="has no gpu"):
        fingerprint_from_plain(plain, "model.engine.json")


def test_a_missing_and_an_unreadable_file_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(FingerprintError, match=r"no fingerprint model\.engine\.json beside the engine"):
        read_fingerprint(tmp_path / FINGERPRINT_FILE)
    (tmp_path / FINGERPRINT_FILE).write_text("{")
    with pytest.raises(FingerprintError, match="is no JSON"):
        read_fingerprint(tmp_path / FINGERPRINT_FILE)
    with pytest.raises(FingerprintError, match="holds no object"):
        fingerprint_from_plain([], "x")


def test_an_altered_engine_is_not_our_own(tmp_path: Path) -> None:
    engine = tmp_path / "model.engine"
    engine.write_bytes(b"plan")
    own = replace(BUILT, engine_sha256=sha256_of(engine))
    require_own_engine(own, engine)
    engine.write_bytes(b"plan, and more")
    with pytest.raises(FingerprintError, match="was altered after it was built"):
        require_own_engine(own, engine)


def test_the_name_of_the_file_is_that_of_the_package_format() -> None:
    assert deployment.FINGERPRINT_FILE == FINGERPRINT_FILE
