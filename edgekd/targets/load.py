"""Finds targets by name, alias or file, and completes the one that this machine is with what was found here."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import yaml

from edgekd.core.schema import suggest
from edgekd.core.shipped import shipped_folder
from edgekd.errors import UserError
from edgekd.targets.calibration import calibrated, load_calibration
from edgekd.targets.host import HostFacts, completed, host_facts, is_host
from edgekd.targets.schema import Target

HOST = "host"
"""`--target host`: this machine, whatever it is."""


def load_target(name_or_path: str, *, facts: HostFacts | None = None) -> Target:
    """The target with this name or alias, or in this file.

    Args:
        name_or_path: A name (`jetson-orin-nano`), an alias (`jetson`), `host`, or a path to a YAML card.
        facts: What this machine is; detected when not given.

    Raises:
        UserError: Unknown name (the message suggests the near one), or a card that does not parse.
    """
    path = Path(name_or_path).expanduser()
    here = host_facts() if facts is None else facts
    if path.suffix in (".yaml", ".yml"):
        return _placed(target_from_yaml(path), here)
    targets = known_targets(facts=here)
    if name_or_path == HOST:
        return _host(targets, here)
    for target in targets:
        if name_or_path in (target.name, *target.aliases):
            return target
    names = [HOST, *(name for target in targets for name in (target.name, *target.aliases))]
    raise UserError(
        f"Unknown target {name_or_path!r}.{suggest(name_or_path, names)}",
        hint=f"known: {', '.join([HOST, *(target.name for target in targets)])}; or give the path of a card (.yaml)",
    )


def known_targets(*, facts: HostFacts | None = None) -> tuple[Target, ...]:
    """The shipped targets, by name; those that this machine is are marked and completed.

    Raises:
        UserError: A shipped card does not parse, or two cards share a name.
    """
    here = host_facts() if facts is None else facts
    targets = [_placed(target_from_yaml(path), here) for path in sorted(shipped_folder("targets").glob("*.yaml"))]
    _check_names(targets)
    return tuple(targets)


def target_from_yaml(path: Path) -> Target:
    """The card in a file, as it is written there.

    Raises:
        UserError: No such file, not YAML, keys that do not fit, or a card that claims to be measured.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as err:
        raise UserError(f"Target card {path}: not a readable YAML file ({err}).") from err
    target = Target.parse(data, f"Target card {path}")
    if target.calibrated is not None:
        raise UserError(
            f"Target card {path}: 'calibrated' cannot be written in a card.",
            hint=f"edgekd targets calibrate {target.name} measures it",
        )
    if target.measured_here:
        raise UserError(
            f"Target card {path}: 'measured_here' cannot be written in a card.",
            hint="describe how to recognise the device under 'presence'; whether it is here is found out each time",
        )
    return target


def _placed(target: Target, here: HostFacts) -> Target:
    placed = completed(target, here) if is_host(target, here) else target
    return calibrated(placed, load_calibration(placed.name))


def _host(targets: Iterable[Target], here: HostFacts) -> Target:
    """The most specific CPU target that this machine is: a board rather than its processor family."""
    found = [target for target in targets if target.measured_here and target.kind == "cpu"]
    if not found:
        raise UserError(
            f"No target describes this machine ({here.cpu_model}, {here.machine}).",
            hint="write a card for it (see targets/README.md) and give its path",
        )
    return max(found, key=lambda target: target.presence.model is not None)


def _check_names(targets: Iterable[Target]) -> None:
    owner: dict[str, str] = {HOST: HOST}
    for target in targets:
        for name in (target.name, *target.aliases):
            if name in owner:
                raise UserError(f"The target name {name!r} belongs to both {owner[name]} and {target.name}.")
            owner[name] = target.name
