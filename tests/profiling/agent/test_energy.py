"""Meters that are files, and a clock that the test moves."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from edgekd.profiling.agent.energy import (
    RailMeter,
    RaplMeter,
    energy_of_calls,
    joules_of_readings,
    meter_here,
    why_no_meter,
)
from tests.profiling.agent.test_facts import put


@pytest.fixture
def package(tmp_path: Path) -> Path:
    zone = "sys/class/powercap/intel-rapl:0"
    put(tmp_path, f"{zone}/name", "package-0\n")
    put(tmp_path, f"{zone}/energy_uj", "1000000\n")
    put(tmp_path, f"{zone}/max_energy_range_uj", "5000000\n")
    put(tmp_path, "sys/class/powercap/intel-rapl:0:0/name", "core\n")
    put(tmp_path, "sys/class/powercap/intel-rapl:0:0/energy_uj", "1\n")
    return tmp_path


def use(root: Path, microjoules: int) -> None:
    put(root, "sys/class/powercap/intel-rapl:0/energy_uj", f"{microjoules}\n")


def test_energy_is_what_the_package_counted_over_the_calls(package: Path) -> None:
    now, counted = [0.0], [1_000_000]

    def sleep(seconds: float) -> None:  # idle at 2 W
        now[0] += seconds
        counted[0] += round(2e6 * seconds)
        use(package, counted[0])

    def call_for(seconds: float) -> int:  # busy at 4 W, 100 calls a second
        now[0] += seconds
        counted[0] = (counted[0] + round(4e6 * seconds)) % 5_000_000  # the counter starts again
        use(package, counted[0])
        return round(100 * seconds)

    meter = meter_here(package)
    assert isinstance(meter, RaplMeter)
    assert meter.source == "RAPL, package-0"
    found = energy_of_calls(call_for, meter, 1.0, clock_s=lambda: now[0], sleep=sleep)
    assert found.calls == 100
    assert found.per_call_mj == pytest.approx(40.0)
    assert found.mean_w == pytest.approx(4.0)
    assert found.idle_w == pytest.approx(2.0)


def test_a_machine_without_a_meter_has_no_energy(tmp_path: Path) -> None:
    assert meter_here(tmp_path) is None
    assert "neither RAPL counters nor INA3221 rails" in why_no_meter(tmp_path)


def test_counters_that_cannot_be_read_are_no_meter(package: Path) -> None:
    (package / "sys/class/powercap/intel-rapl:0/energy_uj").write_text("")  # root reads any file: stands for refusal
    assert meter_here(package) is None
    assert "only root may read" in why_no_meter(package)


def jetson(root: Path, *labels: str) -> None:
    put(root, "sys/class/hwmon/hwmon1/name", "ina3221\n")
    for number, label in enumerate(labels, start=1):
        put(root, f"sys/class/hwmon/hwmon1/in{number}_label", f"{label}\n")
        put(root, f"sys/class/hwmon/hwmon1/in{number}_input", "5000\n")
        put(root, f"sys/class/hwmon/hwmon1/curr{number}_input", "1400\n")


def test_a_jetson_is_metered_by_the_rail_of_the_whole_board_alone(tmp_path: Path) -> None:
    jetson(tmp_path, "VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC")
    meter = meter_here(tmp_path)
    assert isinstance(meter, RailMeter)
    assert meter.source == "INA3221, VDD_IN"
    (rail,) = meter.rails
    assert rail.power_w() == pytest.approx(7.0)


def test_rails_that_are_parts_of_a_board_do_not_make_a_meter(tmp_path: Path) -> None:
    jetson(tmp_path, "VDD_CPU_CV", "VDD_SOC")
    assert meter_here(tmp_path) is None


def test_the_power_of_a_rail_is_integrated_over_the_time(tmp_path: Path) -> None:
    jetson(tmp_path, "VDD_IN")
    meter = meter_here(tmp_path)
    assert isinstance(meter, RailMeter)
    meter.start()
    time.sleep(0.1)
    joules = meter.stop()
    seconds = meter.readings[-1][0] - meter.readings[0][0]
    assert seconds >= 0.1
    assert joules == pytest.approx(7.0 * seconds)


def test_uneven_readings_are_integrated_by_trapezoids() -> None:
    assert joules_of_readings([(0.0, 2.0), (1.0, 4.0), (3.0, 4.0)]) == pytest.approx(3.0 + 8.0)
    assert joules_of_readings([(0.0, 2.0)]) == 0
