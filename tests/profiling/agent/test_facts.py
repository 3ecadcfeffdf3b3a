"""Facts from a file tree that looks like a board's /proc and /sys."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from edgekd.profiling.agent import facts

QUIET = {"busy_share": 0.01, "usable_cores": 2, "governor": "performance", "steal_s": 1.0, "frequency_mhz": 3000}


def put(root: Path, name: str, text: str) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def board(tmp_path: Path) -> Path:
    for core, khz in ((0, 1_500_000), (1, 600_000)):
        put(tmp_path, f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq", f"{khz}\n")
        put(tmp_path, f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_max_freq", "1800000\n")
        put(tmp_path, f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_governor", "ondemand\n")
        put(tmp_path, f"sys/devices/system/cpu/cpu{core}/thermal_throttle/core_throttle_count", "3\n")
    put(tmp_path, "sys/devices/system/cpu/cpufreq/boost", "1\n")
    put(tmp_path, "sys/class/thermal/thermal_zone0/type", "cpu-thermal\n")
    put(tmp_path, "sys/class/thermal/thermal_zone0/temp", "48500\n")
    put(tmp_path, "sys/class/thermal/thermal_zone1/type", "gpu-thermal\n")
    put(tmp_path, "sys/class/thermal/thermal_zone1/temp", "-256000\n")
    put(tmp_path, "sys/class/hwmon/hwmon0/name", "nvme\n")
    put(tmp_path, "sys/class/hwmon/hwmon0/temp1_input", "39000\n")
    put(tmp_path, "proc/meminfo", "MemTotal:        4096000 kB\nMemAvailable:    2048000 kB\n")
    put(tmp_path, "proc/stat", "cpu  100 0 50 800 10 0 0 40 0 0\ncpu0 1 2 3\n")
    put(tmp_path, "proc/device-tree/model", "Raspberry Pi 5 Model B Rev 1.0\0")
    put(tmp_path, "proc/cpuinfo", "processor : 0\nBogoMIPS : 108.00\n")
    return tmp_path


def test_what_the_board_tells_is_read(board: Path) -> None:
    found = facts.state(board, sleep=lambda _: None)
    assert found["clocks_mhz"] == {"cpu0": 1500, "cpu1": 600}
    assert found["frequency_mhz"] == 1500
    assert found["clock_limit_mhz"] == 1800
    assert found["governor"] == "ondemand"
    assert found["boost"] is True
    assert found["temperatures_c"] == {"cpu-thermal (thermal_zone0)": 48.5, "nvme temp1 (hwmon0)": 39.0}
    assert found["throttle_counts"] == {"cpu0/core_throttle_count": 3, "cpu1/core_throttle_count": 3}
    assert found["memory_available_mib"] == 2000
    assert found["steal_s"] == 40 / os.sysconf("SC_CLK_TCK")
    assert facts.machine(board)["cpu_model"] == "Raspberry Pi 5 Model B Rev 1.0"
    assert facts.machine(board)["memory_mib"] == 4000


def test_what_a_system_does_not_tell_is_none(tmp_path: Path) -> None:
    found = facts.state(tmp_path, sleep=lambda _: None)
    assert {found[key] for key in ("busy_share", "frequency_mhz", "governor", "boost", "temperature_c")} == {None}
    assert (found["clocks_mhz"], found["throttle_counts"]) == ({}, {})


def test_the_busy_share_is_that_of_the_time_in_between(board: Path) -> None:
    def pass_time(_: float) -> None:
        put(board, "proc/stat", "cpu  130 0 50 860 10 0 0 50 0 0\n")

    assert facts.state(board, sleep=pass_time)["busy_share"] == 0.3


def test_a_vendors_tool_is_asked_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (("vcgencmd", "throttled=0x50005"), ("nvpmodel", "NV Power Mode: 15W\n0")):
        path = put(tmp_path, name, f"#!/bin/sh\nprintf '{text}'\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    found = facts.state(tmp_path, sleep=lambda _: None)
    assert found["pi_throttled"] == 0x50005
    assert found["power_mode"] == "15W"


def test_a_throttle_counter_that_rose_is_certain_evidence() -> None:
    before, after = {"throttle_counts": {"cpu0/a": 1, "cpu1/a": 5}}, {"throttle_counts": {"cpu0/a": 3, "cpu1/a": 5}}
    assert facts.throttled(before, before) is None
    assert "cpu0/a by 2" in str(facts.throttled(before, after))


@pytest.mark.parametrize(
    ("before", "after", "slowed"),
    [(0, 0, False), (0, 0x4, True), (0x50000, 0x50000, False), (0, 0x20000, True), (0x50000, 0x50001, True)],
)
def test_a_raspberry_pi_says_whether_it_was_slowed_since(before: int, after: int, slowed: bool) -> None:
    found = facts.throttled({"pi_throttled": before}, {"pi_throttled": after})
    assert (found is not None) == slowed


def test_a_clock_that_moves_is_seen_while_measuring_and_a_single_odd_reading_is_not(board: Path) -> None:
    def watched(readings: list[int]) -> str | None:
        now = [0.0]
        watch = facts.Watch(board, clock_s=lambda: now[0])
        for mhz in readings:
            put(board, "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq", f"{1000 * mhz}\n")
            watch.look()
            watch.look()  # within the same second: not read again
            now[0] += 1.0
        assert watch.fastest_mhz == readings
        return facts.floating(watch)

    assert watched([1500] * 12) is None
    assert watched([1500] * 6 + [900] + [1500] * 6) is None
    assert watched([1500] * 6 + [1000] * 6) == "The clock moved between 1000 and 1500 MHz while measuring."


def test_a_clock_that_is_hidden_does_not_count_as_moving(tmp_path: Path) -> None:
    watch = facts.Watch(tmp_path)
    watch.look()
    assert facts.floating(watch) is None


def test_a_changed_power_mode_and_an_old_undervoltage_are_warned_of() -> None:
    before, after = {**QUIET, "power_mode": "15W", "pi_throttled": 1}, {**QUIET, "power_mode": "MAXN"}
    text = " ".join(facts.warnings_from_states(before, after, 1.0))
    assert "'15W' to 'MAXN'" in text
    assert "get_throttled=0x1" in text
