from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from edgekd.core.shipped import shipped_folder
from edgekd.errors import UserError
from edgekd.targets.host import HostFacts, estimated_gmacs_per_s, host_facts
from edgekd.targets.load import known_targets, load_target, target_from_yaml
from edgekd.targets.schema import Target

X86 = HostFacts(machine="x86_64", cpu_model="Toy CPU", cores=6, memory_mib=4000, features=("avx2",), clock_ghz=3.0)
PI = HostFacts(machine="aarch64", board="Raspberry Pi 5 Model B Rev 1.0", cpu_model="Cortex-A76", cores=4)
NAMES = {"arm-cpu", "jetson-agx-orin", "jetson-orin-nano", "jetson-xavier-nx", "nvidia-gpu", "raspberry-pi-4"}


def _card(folder: Path, **changes: object) -> str:
    data = yaml.safe_load((shipped_folder("targets") / "raspberry-pi-4.yaml").read_text())
    path = folder / "board.yaml"
    path.write_text(yaml.safe_dump({**data, "name": "board", "aliases": [], **changes}))
    return str(path)


def test_the_promised_targets_are_shipped_each_under_its_file_name() -> None:
    names = {target.name for target in known_targets()}
    assert names >= NAMES | {"raspberry-pi-5", "x86-cpu"}
    assert names == {path.stem for path in shipped_folder("targets").glob("*.yaml")}


@pytest.mark.parametrize("target", known_targets(), ids=lambda target: target.name)
def test_every_card_says_where_its_numbers_come_from(target: Target) -> None:
    told = " ".join(target.peak.sources)
    assert any(word in told for word in ("data sheet", "Data sheet", "Specification", "estimate"))
    assert set(target.precisions) <= set(target.peak.gmacs_per_s) | {"fp16"}
    assert Target.parse(target.plain(), "x").digest == target.digest


def test_jetson_is_the_orin_nano() -> None:
    target = load_target("jetson", facts=X86)
    assert target.name == "jetson-orin-nano"
    assert not target.measured_here
    assert target.scheme_for("tensorrt") == "tensorrt-s8"
    assert target.scheme_for("onnxruntime") is None


def test_an_unknown_name_suggests_the_near_one() -> None:
    with pytest.raises(UserError, match=r"Unknown target 'rasberry-pi-5'. Did you mean 'raspberry-pi-5'\?") as caught:
        load_target("rasberry-pi-5", facts=X86)
    assert caught.value.hint is not None
    assert "host" in caught.value.hint


def test_host_and_x86_cpu_are_this_machine_with_its_own_facts() -> None:
    target = load_target("host", facts=X86)
    assert target == load_target("x86-cpu", facts=X86)
    assert target.measured_here
    assert (target.description, target.memory_mib) == ("Toy CPU, 6 cores, avx2", 4000)
    assert (target.threads, target.features) == ((1, 6), ("avx2",))
    assert target.peak.gmacs_per_s == {"fp32": 288.0, "int8": 374.4}
    assert "estimated as 6 cores x 3 GHz" in target.peak.sources[-1]


def test_another_machine_is_another_target_to_the_cache() -> None:
    other = HostFacts(machine="x86_64", cpu_model="Other CPU", cores=6, memory_mib=4000)
    assert load_target("host", facts=X86).digest != load_target("host", facts=other).digest


def test_x86_cpu_elsewhere_is_the_plain_card() -> None:
    target = load_target("x86-cpu", facts=PI)
    assert not target.measured_here
    assert target == target_from_yaml(shipped_folder("targets") / "x86-cpu.yaml")


def test_on_a_board_host_is_the_boards_card_with_its_own_numbers() -> None:
    target = load_target("host", facts=PI)
    assert (target.name, target.measured_here) == ("raspberry-pi-5", True)
    assert target.peak == load_target("raspberry-pi-5", facts=X86).peak


def test_a_gpu_is_here_when_its_driver_is(tmp_path: Path) -> None:
    facts = HostFacts(machine="x86_64", root=tmp_path)
    assert not load_target("nvidia-gpu", facts=facts).measured_here
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    (tmp_path / "proc/driver/nvidia/version").touch()
    assert load_target("nvidia-gpu", facts=facts).measured_here
    assert load_target("host", facts=facts).name == "x86-cpu"


def test_the_web_is_here_where_node_or_a_browser_is_and_is_never_the_host(tmp_path: Path) -> None:
    facts = HostFacts(machine="x86_64", features=("avx2",), root=tmp_path, path=str(tmp_path))
    assert not load_target("web", facts=facts).measured_here
    (tmp_path / "node").write_text("#!/bin/sh\n")
    (tmp_path / "node").chmod(0o755)
    found = load_target("web", facts=facts)
    assert found.measured_here
    assert (found.threads, found.features, found.memory_mib) == ((1,), (), 4096), "its own numbers, not the host's"
    assert load_target("host", facts=facts).name == "x86-cpu"


def test_a_machine_without_a_card_is_told_how_to_write_one() -> None:
    with pytest.raises(UserError, match=r"No target describes this machine \(RISC, riscv64\)"):
        load_target("host", facts=HostFacts(machine="riscv64", cpu_model="RISC"))


def test_the_facts_of_this_machine_are_the_same_at_every_call() -> None:
    assert host_facts() == host_facts()
    assert host_facts().cores >= 1


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        (("avx2", "fma"), {"fp32": 16.0, "int8": 20.8}),
        (("avx2", "avx_vnni"), {"fp32": 16.0, "int8": 64.0}),
        (("avx2", "avx512f", "avx512_vnni"), {"fp32": 32.0, "int8": 128.0}),
        (("asimddp",), {"fp32": 8.0, "int8": 32.0}),
    ],
)
def test_peaks_follow_vector_width_and_dot_products(features: tuple[str, ...], expected: dict[str, float]) -> None:
    assert estimated_gmacs_per_s(features, 1, 1.0) == expected


def test_a_card_of_ones_own_is_taken_by_path(tmp_path: Path) -> None:
    assert load_target(_card(tmp_path), facts=X86).name == "board"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"memory_mb": 1}, r"unknown key 'memory_mb'. Did you mean 'memory_mib'\?"),
        ({"measured_here": True}, "'measured_here' cannot be written in a card"),
        ({"name": "My Board"}, "'name'"),
        (
            {"runtimes": [{"runtime": "onnxruntime", "precisions": ["int8"]}]},
            "int8 among the precisions needs a scheme",
        ),
        ({"runtimes": []}, "'runtimes'"),
    ],
)
def test_cards_with_mistakes_are_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_target(_card(tmp_path, **changes), facts=X86)


def test_a_missing_card_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Target card .*nothing.yaml: not a readable YAML file"):
        load_target(str(tmp_path / "nothing.yaml"), facts=X86)
