"""Where training runs: device, precision, processes. The only file that knows Lightning Fabric.

Without a launcher there is one process. Under `torchrun` each process trains on its share of every batch (DDP); the
processes must see the same scratch folder.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch

from edgekd.core.events import Reporter
from edgekd.core.stage import Execution
from edgekd.errors import DeviceUnavailable, UserError
from edgekd.train.config import Precision

Fabric: TypeAlias = Any
"""`lightning_fabric.Fabric`, which has no usable types."""


def start_fabric(execution: Execution, precision: Precision, reporter: Reporter) -> Fabric:
    """A launched Fabric on the device that `execution` names.

    Raises:
        UserError: An unknown device name.
        DeviceUnavailable: `cuda` was asked for and there is none.
    """
    from lightning_fabric import Fabric as LightningFabric  # imported late: it takes more than a second
    from lightning_fabric.strategies import DDPStrategy

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it has a handler of its own that prints
    device = resolve_device(execution.device)
    if device == "cpu":
        _warn_of_emulation(precision, reporter)
    world = int(os.environ.get("WORLD_SIZE", "1")) if torch.distributed.is_torchelastic_launched() else 1
    if world == 1:
        fabric = LightningFabric(accelerator=device, devices=1, precision=precision)
    else:
        local = int(os.environ.get("LOCAL_WORLD_SIZE", str(world)))
        fabric = LightningFabric(
            accelerator=device,
            devices=local,
            num_nodes=world // local,
            # Objectives change their state alike in each process, and BatchNorm reads its statistics only after the
            # training, for which the first process's are taken: nothing is to be sent in every step.
            strategy=DDPStrategy(gradient_as_bucket_view=True, broadcast_buffers=False),
            precision=precision,
        )
    fabric.launch()
    return fabric


def resolve_device(name: str) -> str:
    """`cpu` or `cuda`; `auto` takes a GPU where there is one.

    Raises:
        UserError: Another name.
        DeviceUnavailable: `cuda` was asked for and there is none.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise UserError(f"Unknown device {name!r}.", hint="known: auto, cpu, cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise DeviceUnavailable(
            f"The device cuda was asked for, but torch {torch.__version__} finds no GPU.",
            hint="use --device cpu, or install a driver and a CUDA build of torch",
        )
    return name


@contextmanager
def torch_settings(execution: Execution, seed: int = 0) -> Iterator[None]:
    """Threads, deterministic convolutions and a seeded generator inside of the block; the caller's own afterwards."""
    threads = torch.get_num_threads()
    deterministic, benchmark = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    gpus = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=gpus):
        try:
            torch.manual_seed(seed)
            torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
            if execution.threads is not None:
                torch.set_num_threads(execution.threads)
            yield
        finally:
            torch.set_num_threads(threads)
            torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = deterministic, benchmark


def _warn_of_emulation(precision: Precision, reporter: Reporter) -> None:
    if precision == "bf16-mixed" and torch.backends.cpu.get_cpu_capability() != "AVX512":
        reporter.message(
            "bf16-mixed on a CPU without AVX-512 is emulated and about ten times slower than 32-true.", level="warning"
        )
