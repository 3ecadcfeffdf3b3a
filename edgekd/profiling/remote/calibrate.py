"""The designed networks timed on a board: a `Measure` for `edgekd.profiling.predict.calibrate` that goes over ssh."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.digest import Digest
from edgekd.core.events import Reporter
from edgekd.core.report import LatencyReport
from edgekd.core.stage import BoardAccess
from edgekd.errors import DeviceUnavailable, EdgekdError, UserError
from edgekd.profiling.predict.calibrate import Measure, Medians
from edgekd.profiling.remote.board import Board, board_from_access
from edgekd.profiling.remote.for_target import runtimes_for
from edgekd.profiling.remote.identity import require_target
from edgekd.profiling.remote.profile import profile_on_board
from edgekd.profiling.remote.request import TAKES, BoardPlan, Candidate
from edgekd.runtimes.onnx_file import onnx_interface
from edgekd.targets.schema import Target

PROBE_SCHEME = "ort-u8s8"
"""Form of INT8 in the designed networks; TensorRT reads another one, so there its rate stays the card's."""


@dataclass(frozen=True, kw_only=True)
class BoardCalibrator:
    """A board that is the target, and the runtime that its latency model will speak of.

    Attributes:
        runtime: The first of the card's that the board has and that runs ONNX graphs.
        version: Of that runtime, there.
    """

    board: Board
    access: BoardAccess
    runtime: str
    version: str

    def measure(self, *, threads: int, duration_s: float, reporter: Reporter, seed: int = 0) -> Measure:
        """Times ONNX files on the board, in turns.

        Args:
            threads: CPU threads.
            duration_s: Measuring time per network, at most.
            reporter: Told of progress.
            seed: Of the order.
        """
        plan = BoardPlan(threads=(threads,), warmup_s=0.05, duration_s=duration_s, precision=0.04, seed=seed)

        def measure(paths: Mapping[str, Path]) -> Medians:
            candidates = [_candidate(name, path) for name, path in paths.items()]
            found, _ = self.latencies(candidates, plan, reporter)
            return {
                name: latency.p50_ms if isinstance(latency, LatencyReport) else latency
                for name, latency in found.items()
            }

        return measure

    def latencies(
        self, candidates: Sequence[Candidate], plan: BoardPlan, reporter: Reporter
    ) -> tuple[dict[str, LatencyReport | EdgekdError], tuple[str, ...]]:
        """The latency of each candidate in the board's runtime, or the error in its place; and what was decided.

        Args:
            candidates: What takes turns.
            plan: How; its runtimes are replaced.
            reporter: Told of progress.
        """
        asked = plan.model_copy(update={"runtimes": (self.runtime,), "lock_clocks": self.access.lock_clocks})
        found = profile_on_board(self.board.ssh, candidates, asked, reporter=reporter, python=self.board.python)
        absent = DeviceUnavailable(f"{self.runtime} does not take this form of INT8")
        latencies: dict[str, LatencyReport | EdgekdError] = dict.fromkeys([c.name for c in candidates], absent)
        for entry in found.report.entries:
            latencies[entry.candidate] = entry.latency or DeviceUnavailable(entry.failure or "no latency")
        return latencies, tuple(found.decisions)


def board_calibrator(access: BoardAccess, target: Target) -> BoardCalibrator:
    """The board, asked whether it is the target and what runs there.

    Raises:
        UserError: A card that stands for many processors, this machine's among them.
        DeviceUnavailable: The board cannot be reached, is another device, or has none of the card's runtimes that run
            ONNX graphs.
    """
    if target.measured_here and target.kind == "cpu" and target.presence.model is None:
        raise UserError(
            f"The card {target.name} holds facts of this machine, so the numbers of a board do not belong to it.",
            hint="write a card for the board (targets/README.md) and give its path in place of the name",
        )
    board = board_from_access(access)
    known = board.hello()
    require_target(board.name, known["machine"], target)
    offer = runtimes_for(board, target, known["runtimes"])
    runtime = next((name for name in offer.runtimes if "onnx" in TAKES[name]), None)
    if runtime is None:
        first = next((command for name, command in offer.absent.items() if "onnx" in TAKES[name]), None)
        raise DeviceUnavailable(
            f"{board.name} has {' and '.join(offer.runtimes)}; networks are timed there as ONNX graphs, which these do "
            "not run.",
            hint=first,
        )
    return BoardCalibrator(
        board=board, access=access, runtime=runtime, version=str(known["runtimes"][runtime]["version"])
    )


def _candidate(name: str, path: Path) -> Candidate:
    """A designed network; its bundle has no preprocessing, since only time matters."""
    inputs, outputs = onnx_interface(path)
    whole, digest = name.endswith("int8"), Digest(hashlib.sha256(path.read_bytes()).hexdigest())
    bundle = ModelBundle(
        kind=BundleKind.ONNX,
        inputs=inputs,
        outputs=outputs,
        files={"model.onnx": digest},
        tags={"precision": "int8" if whole else "fp32", "scheme": PROBE_SCHEME if whole else ""},
    )
    return Candidate(name=name, bundle=bundle, files={digest: path})
