"""Makes a block library: trains and scores every candidate on a teacher's activations, one after the other.

Each finished candidate is a file in the scratch folder, so a kill loses at most one.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn

from edgekd.core.blobs import disk_errors
from edgekd.core.digest import digest
from edgekd.core.events import Reporter
from edgekd.core.report_io import schema_from_json
from edgekd.search.blocks.activations import boundaries, logits_with, stage_inputs
from edgekd.search.blocks.chain import Block, chains, stages
from edgekd.search.blocks.local import LocalTraining, answers, train_block_
from edgekd.search.blocks.replacement import Replacement
from edgekd.search.blocks.report import Scored, State, save_states
from edgekd.search.blocks.score import divergence, logits_of

TASK = "train replacement blocks"


@dataclass(frozen=True, kw_only=True)
class Teaching:
    """What all candidates of a library share.

    Attributes:
        teacher: In evaluation mode, on the training device.
        blocks: Its replaceable blocks.
        images: (M + H, C, H, W) on the same device: M to train on, then H to score on.
        held_out: H.
        training: How each candidate is trained.
        seed: Of the run.
        folder: Where finished candidates are kept.
        reporter: Told about each of them.
    """

    teacher: nn.Module
    blocks: Sequence[Block]
    images: Tensor
    held_out: int
    training: LocalTraining
    seed: int
    folder: Path
    reporter: Reporter


class Deadline:
    """Shares a limit of time evenly among the stages that are still to come.

    Args:
        limit_s: Of all together; None for no limit.
        parts: Number of stages.
        clock: Seconds; injected by tests.
    """

    def __init__(self, limit_s: float | None, parts: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end = math.inf if limit_s is None else clock() + limit_s
        self._left = parts
        self._part_end = self._end

    def next_part(self) -> None:
        """The next stage begins."""
        now = self._clock()
        self._part_end = now + (self._end - now) / max(1, self._left)
        self._left -= 1

    @property
    def passed(self) -> bool:
        """Whether the share of this stage is used up."""
        return self._clock() >= self._part_end


class Library:
    """The candidates of one teacher.

    Args:
        teaching: What they share.
        planned: By stage, in the order of training.
    """

    def __init__(self, teaching: Teaching, planned: Sequence[Sequence[Replacement]]) -> None:
        self._teaching = teaching
        self._planned = planned
        self._total = sum(len(part) for part in planned)
        self._done = 0
        self.states: dict[str, State] = {}
        self.scored: list[Scored] = []
        self.skipped: dict[str, str] = {}

    def make(self, deadline: Deadline) -> None:
        """Trains and scores all candidates that are not finished yet, as far as the time allows."""
        t = self._teaching
        reference = logits_of(t.teacher, t.images[-t.held_out :])
        inputs = stage_inputs(t.teacher, t.blocks, t.images)
        for stage, planned, first in zip(stages(t.blocks), self._planned, inputs, strict=True):
            deadline.next_part()
            self._make_stage(stage, planned, first, reference, deadline)
        self.scored.sort(key=lambda one: (one.replacement.first, one.replacement.last, one.replacement.key))
        t.reporter.progress(TASK, self._total, self._total)

    def _make_stage(
        self,
        stage: range,
        planned: Sequence[Replacement],
        first: Tensor,
        reference: Tensor,
        deadline: Deadline,
    ) -> None:
        t = self._teaching
        chain = next(chain for chain in chains(t.blocks) if stage.start in chain)
        between: list[Tensor] = []
        for one in planned:
            if not self._taken_up(one):
                if deadline.passed:
                    self.skipped[one.key] = "the limit of time was reached"
                else:
                    between = between or boundaries(t.teacher, t.blocks, stage, first)
                    x, target = between[one.first - stage.start], between[one.last + 1 - stage.start]
                    self._make_one(one, x, target, chain, reference)
            self._done += 1
            t.reporter.progress(TASK, min(self._done, self._total - 1), self._total)

    def _make_one(self, one: Replacement, x: Tensor, target: Tensor, chain: range, reference: Tensor) -> None:
        """Trains, scores and keeps one candidate."""
        t = self._teaching
        seed = int(digest("replacement", t.seed, one.plain())[:15], 16)
        block = one.module(t.teacher, t.blocks, seed).to(x.device)
        error = None
        if one.trained:
            error = train_block_(block, x[: -t.held_out], target[: -t.held_out], t.training, seed)
        outputs = answers(block, x[-t.held_out :])
        logits = logits_with(t.teacher, t.blocks, chain, one.last, outputs, t.images[-t.held_out :])
        kl = divergence(reference, logits)
        if not math.isfinite(kl) or (error is not None and not math.isfinite(error)):
            self.skipped[one.key] = "its training diverged"
            return
        state = block.state_dict() if one.trained else {}
        self._keep(Scored(replacement=one, error=error, kl=kl), state)

    def _taken_up(self, one: Replacement) -> bool:
        """Whether a finished candidate was found in the scratch folder."""
        record, weights = self._files(one)
        if not record.exists():
            return False
        self.scored.append(schema_from_json(record, Scored, "a finished replacement"))
        if one.trained:
            self.states[one.key] = {name.partition("/")[2]: value for name, value in load_file(weights).items()}
        return True

    def _keep(self, scored: Scored, state: State) -> None:
        """Writes the weights first: where there is a record, the candidate is whole."""
        one = scored.replacement
        record, weights = self._files(one)
        temporary = record.with_suffix(".tmp")
        with disk_errors(record):
            record.parent.mkdir(parents=True, exist_ok=True)
            if one.trained:
                save_states({one.key: state}, temporary)
                os.replace(temporary, weights)
            temporary.write_text(json.dumps(scored.plain()), encoding="utf-8")
            os.replace(temporary, record)
        self.scored.append(scored)
        if one.trained:
            self.states[one.key] = {name: value.detach().to("cpu", copy=True) for name, value in state.items()}

    def _files(self, one: Replacement) -> tuple[Path, Path]:
        folder = self._teaching.folder / "replacements"
        return folder / f"{one.key}.json", folder / f"{one.key}.safetensors"
