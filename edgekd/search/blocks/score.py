"""How far a changed network is from its teacher: the number that replacements are compared by."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from edgekd.core.preprocess import Preprocessing
from edgekd.core.stage import Context
from edgekd.data.calibration import calibration_samples
from edgekd.data.dataset import Dataset
from edgekd.nn.mode import evaluating
from edgekd.search.blocks.activations import CHUNK
from edgekd.search.blocks.local import LocalTraining, train_together_
from edgekd.search.blocks.report import LibraryReport
from edgekd.train.averaging import gather_statistics_
from edgekd.train.engine import resolve_device
from edgekd.train.memory_format import placed


def divergence(teacher: Tensor, changed: Tensor) -> float:
    """Mean over images of KL(teacher || changed) = sum_k p_k (log p_k - log q_k), in nats, at temperature 1.

    Args:
        teacher: (N, K) logits.
        changed: (N, K) logits.
    """
    log_p, log_q = (logits.double().log_softmax(1) for logits in (teacher, changed))
    return max(0.0, float((log_p.exp() * (log_p - log_q)).sum(1).mean()))


@torch.no_grad()
def logits_of(module: nn.Module, images: Tensor) -> Tensor:
    """(N, K), in evaluation mode."""
    with evaluating(module):
        return torch.cat([module(chunk) for chunk in torch.split(images, CHUNK)])


class Judge:
    """Compares networks with the teacher, on the images that the library held out.

    Args:
        teacher: On the CPU; it is left there.
        report: Of the library.
        p: The teacher's preprocessing.
        ctx: The run's data and device.
    """

    def __init__(self, teacher: nn.Module, report: LibraryReport, p: Preprocessing, ctx: Context) -> None:
        data = ctx.resource("data", Dataset)
        samples = calibration_samples(data, p, samples=report.images + report.held_out, seed=report.seed)
        self._device = torch.device(resolve_device(ctx.execution.device))
        images = torch.from_numpy(samples.images).to(self._device, memory_format=torch.channels_last)
        self._seen, self._held_out = images[: report.images], images[report.images :]
        with placed(teacher, self._device, channels_last=True):
            self._reference = logits_of(teacher, self._held_out)
            self._taught = logits_of(teacher, self._seen)

    def settled_(self, student: nn.Module, how: LocalTraining | None, seed: int) -> float:
        """KL(teacher || student) on the held-out images, after what brought the student closer and nothing else.

        Tried are BatchNorm statistics of its own, for behind several replacements activations are not what the
        teacher's statistics say (Li et al. 2020, EagleEye, arXiv 2007.02491), and then a short joint training.

        Args:
            student: On the CPU; it is left there.
            how: Of the joint training; None leaves it out.
            seed: Of its order.
        """
        student.requires_grad_(True)
        with placed(student, self._device, channels_last=True):
            best = self._divergence(student)
            best = self._if_closer_(student, best, lambda: gather_statistics_(student, torch.split(self._seen, CHUNK)))
            if how is not None:
                best = self._if_closer_(
                    student, best, lambda: train_together_(student, self._seen, self._taught, how, seed)
                )
        return best

    def _if_closer_(self, student: nn.Module, before: float, change: Callable[[], None]) -> float:
        """Makes a change and takes it back where it brings the student no closer; returns the divergence."""
        state = {name: value.clone() for name, value in student.state_dict().items()}
        change()
        after = self._divergence(student)
        if after < before:
            return after
        student.load_state_dict(state)
        return before

    def _divergence(self, student: nn.Module) -> float:
        return divergence(self._reference, logits_of(student, self._held_out))
