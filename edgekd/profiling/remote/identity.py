"""Whether a board is the device that a card describes, as far as both say: numbers of the wrong device help nobody."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgekd.errors import DeviceUnavailable
from edgekd.targets.schema import Target


def require_target(board: str, machine: Mapping[str, Any], target: Target) -> None:
    """Refuses a board that says that it is another device than the target.

    Args:
        board: Its name, for messages.
        machine: What the agent found: `architecture`, and `board_model` where there is a device tree.
        target: The card; what it does not name is not asked.

    Raises:
        DeviceUnavailable: Another architecture or another board.
    """
    wanted, architecture = target.presence, _architecture(machine)
    model = str(machine.get("board_model") or "")
    if wanted.machine is not None and wanted.machine != architecture:
        said = f"its architecture is {architecture}, the card's {wanted.machine}"
    elif wanted.model is not None and wanted.model.lower() not in model.lower():
        said = f"it calls itself {model or machine['cpu_model']!r}, the card expects {wanted.model!r}"
    else:
        return
    raise DeviceUnavailable(
        f"{board} is not a {target.name}: {said}.",
        hint="name the target that the board is, or write a card for it: `edgekd targets` lists them",
    )


def _architecture(machine: Mapping[str, Any]) -> str:
    return str(machine["architecture"]).lower().replace("amd64", "x86_64").replace("arm64", "aarch64")
