"""The stage `block-library`: cheaper replacements for a teacher's blocks, each trained and scored in its place."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import ClassVar

import torch
from pydantic import Field, JsonValue
from torch import Tensor, nn

from edgekd.core.bundle import BundleKind
from edgekd.core.report_io import bundle_from_report
from edgekd.core.stage import Context, Inputs, Stage, StageConfig, StageResult, port
from edgekd.core.text import significant
from edgekd.data.calibration import calibration_samples
from edgekd.data.dataset import Dataset
from edgekd.errors import UserError
from edgekd.nn.build import is_trainable, module_from_bundle
from edgekd.nn.count import layer_costs
from edgekd.nn.reparam import reparameterised
from edgekd.search.blocks.activations import bytes_per_image
from edgekd.search.blocks.chain import Block, find_blocks, split_edits_
from edgekd.search.blocks.costs import own_costs
from edgekd.search.blocks.library import Deadline, Library, Teaching
from edgekd.search.blocks.local import LocalTraining
from edgekd.search.blocks.replacement import Family, candidates, default_families
from edgekd.search.blocks.report import BLOCKS_FILE, LibraryReport, save_states
from edgekd.train.engine import resolve_device, torch_settings
from edgekd.train.memory_format import placed

_LEAST = 8
"""Images below which neither a training nor a score means anything."""


class BlockLibraryConfig(StageConfig):
    """What to try, and how thoroughly.

    Attributes:
        families: Kinds of replacements; None takes those that suit the teacher's own blocks.
        training: Of each replacement.
        images: Training images whose activations are used.
        held_out: Further training images, on which replacements are scored.
        channel_multiple: Inner widths are multiples of it.
        memory_mib: Largest size of the stored activations; fewer images are used where they would take more.
        time_limit_s: Stops training after so long and goes on with what is finished, every stage having had its share.
            A result under a limit depends on the machine's speed.
    """

    families: tuple[Family, ...] | None = None
    training: LocalTraining = Field(default_factory=LocalTraining)
    images: int = Field(default=1024, ge=_LEAST)
    held_out: int = Field(default=256, ge=_LEAST)
    channel_multiple: int = Field(default=8, ge=1)
    memory_mib: int = Field(default=2048, ge=1)
    time_limit_s: float | None = Field(default=None, gt=0)


class BlockLibraryStage(Stage[BlockLibraryConfig]):
    """A report on replacements for blocks, and for runs of blocks, with their trained weights beside it.

    Puzzle's first two steps (Bercovich et al. 2024, arXiv 2411.19146): train each replacement alone on the teacher's
    activations, and score it by the divergence of the teacher with that one replacement. Labels serve to draw images
    of all classes alone, and no image of the select or test split is touched.
    """

    name = "block-library"
    Config = BlockLibraryConfig
    ports: ClassVar = {"teacher": port(BundleKind.TORCH)}
    produces = BundleKind.REPORT
    reads = frozenset({"data"})

    def requires(self, inputs: Inputs, ctx: Context) -> None:
        if not is_trainable(inputs.one("teacher").model):
            raise UserError(
                "The blocks of this teacher cannot be replaced: its program could not be rebuilt into layers.",
                hint="give a state dict with --arch, or leave `blocks` out of --students",
            )

    def run(self, inputs: Inputs, ctx: Context) -> StageResult:
        config, bundle = self.config, inputs.one("teacher")
        began = time.monotonic()
        teacher = module_from_bundle(bundle, ctx.blobs)
        split_edits_(teacher)
        shape = bundle.model.preprocessing.input_shape
        blocks = find_blocks(teacher, shape)
        families = default_families(blocks) if config.families is None else config.families
        operations = own_costs(layer_costs(reparameterised(teacher), shape), blocks)
        macs = [sum(cost.macs for cost in part) for part in operations]
        planned = candidates(blocks, families, macs=macs, multiple=config.channel_multiple)
        images, held_out, said = self._images(inputs, blocks, ctx)
        with ExitStack() as stack:
            device = torch.device(resolve_device(ctx.execution.device))
            stack.enter_context(torch_settings(ctx.execution, ctx.seed))
            stack.enter_context(placed(teacher, device, channels_last=True))
            library = Library(self._teaching(teacher, blocks, images.to(device), held_out, ctx), planned)
            library.make(Deadline(config.time_limit_s, len(planned)))
        report = LibraryReport(
            blocks=blocks,
            scored=tuple(library.scored),
            skipped=library.skipped,
            images=len(images) - held_out,
            held_out=held_out,
            seed=ctx.seed,
        )
        path = ctx.scratch / BLOCKS_FILE
        save_states({key: library.states[key] for key in sorted(library.states)}, path)
        made = bundle_from_report(report, ctx)
        made = made.model_copy(update={"files": {**made.files, BLOCKS_FILE: ctx.blobs.add(path)}})
        metrics: dict[str, JsonValue] = {"replacements": len(report.scored), "seconds": time.monotonic() - began}
        return StageResult(bundle=made, metrics=metrics, decisions=(*_decisions(report, families), *said))

    def _teaching(
        self, teacher: nn.Module, blocks: tuple[Block, ...], images: Tensor, held_out: int, ctx: Context
    ) -> Teaching:
        return Teaching(
            teacher=teacher,
            blocks=blocks,
            images=images.contiguous(memory_format=torch.channels_last),
            held_out=held_out,
            training=self.config.training,
            seed=ctx.seed,
            folder=ctx.scratch,
            reporter=ctx.reporter,
        )

    def _images(self, inputs: Inputs, blocks: tuple[Block, ...], ctx: Context) -> tuple[Tensor, int, tuple[str, ...]]:
        """Images to train on and then to score on, how many of them are for scoring, and what was decided about it."""
        config, data = self.config, ctx.resource("data", Dataset)
        wanted = config.images + config.held_out
        fitting = config.memory_mib * 2**20 // bytes_per_image(blocks)
        count = min(wanted, fitting, len(data.train))
        if count < 2 * _LEAST:
            raise UserError(
                f"A block library needs at least {2 * _LEAST} images, but has {len(data.train)} training images and "
                f"memory for the activations of {fitting}.",
                hint="give more images, or raise memory_mib",
            )
        said: tuple[str, ...] = ()
        if count < wanted:
            why = "memory_mib allows no more" if fitting < len(data.train) else "the data has no more"
            said = (f"Used {count} of {wanted} training images, for {why}.",)
        held_out = max(_LEAST, count * config.held_out // wanted)
        p = inputs.one("teacher").model.preprocessing
        samples = calibration_samples(data, p, samples=count, seed=ctx.seed)
        return torch.from_numpy(samples.images), held_out, said


def _decisions(report: LibraryReport, families: tuple[Family, ...]) -> tuple[str, ...]:
    kinds = ", ".join(
        family.block if family.block not in ("basic", "inverted") else f"{family.block} x{significant(family.width, 2)}"
        for family in families
    )
    lines = [
        f"{len(report.scored)} replacements for the {len(report.blocks)} blocks of the teacher and runs of them "
        f"({kinds}) were trained on its activations for {report.images} training images, and scored on "
        f"{report.held_out} others by the divergence that each one alone brings into the teacher."
    ]
    for why in sorted(set(report.skipped.values())):
        count = sum(reason == why for reason in report.skipped.values())
        lines.append(f"{count} further replacements were left out: {why}.")
    return tuple(lines)
