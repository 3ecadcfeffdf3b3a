"""A lab file: boards by name, with what it takes to reach each one and to choose among them."""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import Field, field_validator

from edgekd.core.schema import Schema, suggest
from edgekd.errors import UserError
from edgekd.profiling.remote.address import parse_address
from edgekd.profiling.remote.board import PYTHON
from edgekd.targets.load import load_target


class LabBoard(Schema):
    """One board.

    Attributes:
        address: `ssh://user@host[:port]`; the host may be a name of `~/.ssh/config`.
        tags: Words that `--tag` chooses by.
        target: Its target card: a name, an alias or a path; None when it has none.
        python: The interpreter on the board that has the runtime.
        resource: With `--workers ray://...`: the Ray resource of the machines that reach this board, as in
            `ray start --resources '{"bench-a": 1}'`; None where every machine of the cluster does.
    """

    address: str
    tags: tuple[str, ...] = ()
    target: str | None = None
    python: str = PYTHON
    resource: str | None = Field(default=None, min_length=1)

    @field_validator("address")
    @classmethod
    def _is_an_address(cls, text: str) -> str:
        try:
            parse_address(text, "address")
        except UserError as err:
            raise ValueError(str(err.message)) from err
        return text


class Lab(Schema):
    """Boards that are measured on together.

    Attributes:
        boards: By name.
        concurrency: How many boards are worked with at the same time; each one measures one job at a time anyhow.
    """

    boards: dict[str, LabBoard] = Field(min_length=1)
    concurrency: int = Field(default=8, ge=1)

    def chosen(self, tags: tuple[str, ...], where: str) -> dict[str, LabBoard]:
        """The boards that carry every one of the tags.

        Raises:
            UserError: There is none.
        """
        found = {name: board for name, board in self.boards.items() if set(tags) <= {*board.tags, name}}
        if not found:
            known = sorted({tag for board in self.boards.values() for tag in board.tags} | set(self.boards))
            unknown = [tag for tag in tags if tag not in known]
            near = suggest(unknown[0], known) if unknown else ""
            raise UserError(
                f"{where}: no board has {' and '.join(map(repr, tags))}.{near}",
                hint=f"tags and names: {', '.join(known)}",
            )
        return found


def load_lab(path: Path) -> Lab:
    """The lab in a YAML file.

    Raises:
        UserError: No such file, not YAML, unknown keys (with the near one), a bad address, or an unknown target card.
    """
    where = f"Lab file {path}"
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as err:
        raise UserError(f"{where}: not a readable YAML file ({err}).") from err
    lab = Lab.parse(data, where)
    for name, board in lab.boards.items():
        if board.target is not None:
            try:
                load_target(board.target)
            except UserError as err:
                raise UserError(f"{where}: boards.{name}.target: {err.message}", hint=err.hint) from err
    return lab
