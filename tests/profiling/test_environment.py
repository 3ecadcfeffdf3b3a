"""What the machine says of itself."""

from __future__ import annotations

import json
from pathlib import Path

from edgekd.profiling.environment import fingerprint, machine, state, warnings_from_states

QUIET = {"busy_share": 0.01, "usable_cores": 2, "governor": "performance", "steal_s": 1.0, "frequency_mhz": 3000}


def test_facts_are_plain_data_and_name_the_processor() -> None:
    facts = {**machine(), **state()}
    assert json.loads(json.dumps(facts)) == facts
    assert facts["cpu_model"]
    assert facts["cores"]


def test_a_fingerprint_changes_with_the_runtime_but_not_with_the_order() -> None:
    facts = machine()
    both = fingerprint(facts, {"onnxruntime": "1.31.1", "openvino": "2026.4"})
    assert both == fingerprint(facts, {"openvino": "2026.4", "onnxruntime": "1.31.1"})
    assert both != fingerprint(facts, {"onnxruntime": "1.30.0", "openvino": "2026.4"})
    assert fingerprint(facts, {}) in both


def test_governors_are_read_from_all_cores(tmp_path: Path) -> None:
    for core, governor in enumerate(("powersave", "performance")):
        folder = tmp_path / "sys/devices/system/cpu" / f"cpu{core}" / "cpufreq"
        folder.mkdir(parents=True)
        (folder / "scaling_governor").write_text(f"{governor}\n")
    assert state(tmp_path)["governor"] == "performance+powersave"
    assert state(tmp_path / "none")["governor"] is None


def test_a_quiet_machine_raises_no_warning() -> None:
    assert warnings_from_states(QUIET, QUIET, 10.0) == []


def test_load_governor_theft_and_throttling_are_each_said() -> None:
    before = {**QUIET, "busy_share": 0.6, "governor": "powersave"}
    after = {**before, "steal_s": 3.0, "frequency_mhz": 1800}
    text = " ".join(warnings_from_states(before, after, 10.0))
    assert "60% of the processor time went to other work" in text
    assert "'powersave'" in text
    assert "10% of the processor time" in text
    assert "from 3000 to 1800 MHz" in text
