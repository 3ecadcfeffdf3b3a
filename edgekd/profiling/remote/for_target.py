"""A board in the place of a run's target: asked early whether it can be, profiled on when the candidates are there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgekd.core.events import Reporter
from edgekd.core.stage import BoardAccess
from edgekd.errors import DeviceUnavailable
from edgekd.profiling.agent.engines import ADAPTERS
from edgekd.profiling.remote.board import Board, board_from_access
from edgekd.profiling.remote.identity import require_target
from edgekd.profiling.remote.profile import BoardProfile, profile_on_board
from edgekd.profiling.remote.request import BoardPlan, Candidate, usable_runtimes
from edgekd.targets.schema import Target


@dataclass(frozen=True, kw_only=True)
class BoardOffer:
    """What a board has of a card's runtimes.

    Attributes:
        runtimes: In the card's order; at least one.
        absent: Those that it could have and does not, with the command that installs each.
    """

    runtimes: tuple[str, ...]
    absent: Mapping[str, str]


def runtimes_for(board: Board, target: Target, offers: Mapping[str, Any]) -> BoardOffer:
    """The runtimes of a card that a board has.

    Args:
        board: For messages.
        target: The card.
        offers: What the agent found: `ok`, `version` and `install` by name.

    Raises:
        DeviceUnavailable: There is none; the hint installs the first.
    """
    names = tuple(support.runtime for support in target.runtimes if support.runtime in ADAPTERS)
    if not names:
        listed = " and ".join(support.runtime for support in target.runtimes)
        raise DeviceUnavailable(
            f"{target.name} runs in {listed}; boards are measured in {', '.join(ADAPTERS)}.",
            hint="run the command on the device itself",
        )
    there = tuple(name for name in names if offers.get(name, {}).get("ok"))
    plan, login = BoardPlan(runtimes=there or names[:1]), board.ssh.address.command
    usable = tuple(usable_runtimes(board.name, board.python, login, plan, offers))
    absent = {name: f"{login} {offers[name]['install']}" for name in names if name not in usable and name in offers}
    return BoardOffer(runtimes=usable, absent=absent)


def require_board(access: BoardAccess, target: Target) -> BoardOffer:
    """What the target's board has, asked before hours of work and not after them.

    Raises:
        UserError: An address that cannot be one.
        DeviceUnavailable: It cannot be reached, is another device, or has none of the card's runtimes.
    """
    board = board_from_access(access)
    known = board.hello()
    require_target(board.name, known["machine"], target)
    return runtimes_for(board, target, known["runtimes"])


def profile_for_target(
    access: BoardAccess, target: Target, candidates: Sequence[Candidate], plan: BoardPlan, reporter: Reporter
) -> BoardProfile:
    """The latencies of candidates on the target's board, in every runtime of the card that it has.

    Args:
        access: How it is reached; also says whether clocks are fixed.
        target: The card.
        candidates: What to measure.
        plan: How; its runtimes are replaced.
        reporter: Told of progress.

    Raises:
        DeviceUnavailable: As `require_board`, or the job failed there.
    """
    offer = require_board(access, target)
    board = board_from_access(access)
    asked = plan.model_copy(update={"runtimes": offer.runtimes, "lock_clocks": access.lock_clocks})
    return profile_on_board(
        board.ssh,
        candidates,
        asked,
        reporter=reporter,
        python=board.python,
        name=access.name or None,
        among=(*offer.runtimes, *offer.absent),
    )
