"""From a stage's inputs to what its importance sees; what is missing is found before any work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from edgekd.core.stage import Context, Inputs
from edgekd.data.calibration import calibration_samples
from edgekd.data.dataset import Dataset
from edgekd.errors import UserError
from edgekd.nn.build import module_from_bundle
from edgekd.prune.config import PruneConfig
from edgekd.prune.importance import Evidence, Need, importances_without, needs_of
from edgekd.train.engine import resolve_device, torch_settings
from edgekd.train.memory_format import placed
from edgekd.train.reconcile import check_same_classes, reconciled, reconciliation


def check_evidence(config: PruneConfig, inputs: Inputs, ctx: Context) -> None:
    """Makes sure that the importance gets what it looks at; reads no weights.

    Raises:
        UserError: Labels that the data does not have, a teacher that is not connected or does not fit.
    """
    needs = needs_of(config.importance)
    if Need.LABELS in needs and not ctx.resource("data", Dataset).labelled:
        free = importances_without(frozenset({Need.LABELS}))
        raise UserError(
            f"The importance {config.importance!r} needs labels, and the data has none.",
            hint=f"importances that need no labels: {', '.join(free)}",
        )
    if Need.TEACHER not in needs:
        return
    model, teacher = inputs.one("model"), inputs.maybe("teacher")
    if teacher is None:
        free = importances_without(frozenset({Need.TEACHER}))
        raise UserError(
            f"The importance {config.importance!r} compares with a teacher, and the port 'teacher' is not connected.",
            hint=f"connect the node of the teacher, which may be the model itself; without one: {', '.join(free)}",
        )
    if teacher.model.preprocessing != model.model.preprocessing:
        raise UserError(
            "The pruned network and its teacher must see the same tensor, but their preprocessing differs: model "
            f"{model.model.preprocessing.plain()}, teacher {teacher.model.preprocessing.plain()}.",
            hint="connect the teacher that the model was distilled from",
        )
    check_same_classes(model, teacher)


@contextmanager
def gathered(
    config: PruneConfig, module: nn.Module, inputs: Inputs, ctx: Context
) -> Iterator[tuple[Evidence, tuple[str, ...]]]:
    """What the importance sees, on the device that the run computes on, and a sentence on the images if it sees any.

    Networks are back on the CPU afterwards.
    """
    needs = needs_of(config.importance)
    if not needs:
        yield Evidence(module=module), ()
        return
    samples = calibration_samples(
        ctx.resource("data", Dataset),
        inputs.one("model").model.preprocessing,
        samples=config.importance_images,
        seed=ctx.seed,
    )
    bundle = inputs.maybe("teacher")
    teacher: nn.Module | None = None
    said: tuple[str, ...] = ()
    if bundle is not None and Need.TEACHER in needs:
        teacher = reconciled(module_from_bundle(bundle, ctx.blobs), bundle.model, inputs.one("model").model)
        said = reconciliation(bundle.model, inputs.one("model").model)
    device = torch.device(resolve_device(ctx.execution.device))
    with torch_settings(ctx.execution, ctx.seed), ExitStack() as places:
        for network in (module, teacher):
            if network is not None:
                places.enter_context(placed(network, device, channels_last=False))
        labels = None if samples.labels is None or Need.LABELS not in needs else torch.from_numpy(samples.labels)
        evidence = Evidence(module=module, images=torch.from_numpy(samples.images), labels=labels, teacher=teacher)
        yield evidence, (f"The importance looked at {samples.description}.", *said)
