"""A latency model that was fitted on a device, kept beside its card: where it lies, and how the card takes it in.

Cards that come with edgekd are read-only, so a calibration is a file of the user's: in `$EDGEKD_CALIBRATIONS`, or in
`edgekd/calibrations` of the user's cache folder, one per target. `load_target` puts its numbers in place of the card's,
with their source, so that everything that predicts uses them and the keys of cached results change with them.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from edgekd.core.schema import Schema
from edgekd.core.text import counted
from edgekd.errors import UserError
from edgekd.targets.latency import LatencyModel
from edgekd.targets.schema import Target

FOLDER_VARIABLE = "EDGEKD_CALIBRATIONS"
CALIBRATION_SCHEMA_VERSION = 1


class Calibration(Schema):
    """What was measured on a device, as a model.

    Attributes:
        target: Name of the card.
        device: Description of the device that was measured; on a card for many processors it must be this one.
        runtime: Where the networks ran, with its version.
        threads: CPU threads.
        networks: How many networks were timed.
        measured_at: Date, ISO 8601.
        model: The fitted roofline; its error is the median over networks left out of the fit.
    """

    schema_version: int = CALIBRATION_SCHEMA_VERSION
    target: str
    device: str
    runtime: str
    threads: int
    networks: int
    measured_at: str
    model: LatencyModel


def calibration_folder() -> Path:
    """Where the user's calibrations lie."""
    named = os.environ.get(FOLDER_VARIABLE)
    if named:
        return Path(named).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "edgekd" / "calibrations"


def save_calibration(calibration: Calibration, folder: Path | None = None) -> Path:
    """The file that later runs read; an earlier calibration of the target is replaced.

    Raises:
        UserError: The folder cannot be written.
    """
    path = (folder or calibration_folder()) / f"{calibration.target}.json"
    partial = path.with_suffix(".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(calibration.plain(), indent=1) + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError as err:
        raise UserError(
            f"The calibration of {calibration.target} cannot be written to {path} ({err.strerror}).",
            hint=f"set {FOLDER_VARIABLE} to a folder that can be written",
        ) from err
    return path


def load_calibration(name: str, folder: Path | None = None) -> Calibration | None:
    """The calibration of a target; None where there is none.

    Raises:
        UserError: The file is there but is not a calibration of this version.
    """
    path = (folder or calibration_folder()) / f"{name}.json"
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise UserError(
            f"Calibration {path}: not readable JSON ({err}).", hint=f"edgekd targets calibrate {name} writes it anew"
        ) from err
    return Calibration.parse(data, f"Calibration {path}")


def calibrated(target: Target, calibration: Calibration | None) -> Target:
    """The target with the calibration's numbers and their source; unchanged where the calibration is another device's.

    Args:
        target: As placed on this machine.
        calibration: Of this target; None for none.
    """
    if calibration is None or calibration.target != target.name or calibration.device != target.description:
        return target
    model = calibration.model
    source = (
        f"calibrated: a roofline fitted to {calibration.networks} networks timed in {calibration.runtime} with "
        f"{counted(calibration.threads, 'thread')} on {calibration.measured_at}"
    )
    peak = target.peak.model_copy(
        update={
            "gmacs_per_s": model.gmacs_per_s,
            "efficiency": model.efficiency,
            "precision_efficiency": {},
            "bandwidth_gb_s": model.bandwidth_gb_s,
            "bandwidth_efficiency": 1.0,
            "op_overhead_us": model.overhead_us_per_op,
            "fixed_us": model.fixed_us,
            "relative_error": model.relative_error,
            "sources": (source, *target.peak.sources),
        }
    )
    return target.model_copy(update={"peak": peak, "calibrated": source})
