"""Loads what a request names (model, data, target) and checks that the three fit together, before any work."""

from __future__ import annotations

from edgekd.core.events import Reporter
from edgekd.core.stage import BoardAccess, Resource
from edgekd.core.store import Store
from edgekd.data.dataset import Dataset
from edgekd.data.sources import load_dataset
from edgekd.errors import DeviceUnavailable, UserError
from edgekd.nn.build import module_from_bundle
from edgekd.nn.count import count_macs
from edgekd.pipeline.classes import with_same_classes
from edgekd.pipeline.request import SYNTHETIC, Request
from edgekd.pipeline.situation import Situation, runtimes_of
from edgekd.pipeline.sources import model_from_source, require_network
from edgekd.targets.load import HOST, load_target


def prepare(request: Request, store: Store, reporter: Reporter, board: BoardAccess | None = None) -> Situation:
    """The situation of a request.

    Args:
        request: What was asked.
        store: Takes the teacher.
        reporter: Told of what is missing.
        board: The target, where it is reached over ssh; this machine is then not it, even if it is one of its kind.

    Raises:
        UserError: A path, an architecture, a state dict, data or a target that cannot be used, or that do not fit.
        DeviceUnavailable: The target is this machine, and none of its runtimes is installed.
    """
    target = load_target(request.target)
    if board is not None:
        if request.target == HOST:
            raise UserError(
                f"--target {HOST} is this machine, and --device {board.address} another one.",
                hint="name the board's target, for example --target jetson-orin-nano; `edgekd targets` lists them",
            )
        target = target.model_copy(update={"measured_here": False})
    runtimes, missing = runtimes_of(target)
    if target.measured_here and not runtimes and target.kind != "gpu":
        raise DeviceUnavailable(
            f"None of the runtimes of {target.name} is installed: {'; '.join(missing)}.",
            hint="install one of them: what to run stands in brackets; `edgekd doctor` says what this machine has",
        )
    for sentence in missing:
        reporter.message(sentence, level="warning")
    if target.measured_here and not runtimes:
        reporter.message(f"{target.name} cannot be measured here without TensorRT: the bundle is built on the device.")
        target = target.model_copy(update={"measured_here": False})
        runtimes = target.runtimes
    dataset = _data(request)
    loaded = model_from_source(request.model, store, reporter, seed=request.seed)
    teacher = require_network(loaded, request.model, "a compression starts from a PyTorch model")
    if dataset is not None:
        teacher, dataset = with_same_classes(teacher, dataset)
    module = module_from_bundle(teacher, store.blobs)
    return Situation(
        teacher=teacher,
        teacher_macs=count_macs(module, teacher.model.preprocessing.input_shape),
        trainable=loaded.trainable,
        dataset=dataset,
        target=target,
        runtimes=runtimes,
        license=request.model.license or loaded.license,
        on_board=board is not None,
    )


def _data(request: Request) -> Dataset | None:
    if request.data in (None, SYNTHETIC):
        if request.unlabelled is not None:
            raise UserError(
                "Images without labels are gathered to train on beside the data of the task, and there is none.",
                hint="give it with --data FOLDER_OR_NPZ; images without labels alone are data too: --data",
            )
        return None
    return load_dataset(str(request.data), seed=request.seed, unlabelled=request.unlabelled)


def resources_of(situation: Situation) -> dict[str, Resource]:
    """What stages may name in `reads`."""
    resources: dict[str, Resource] = {"target": situation.target}
    if situation.dataset is not None:
        resources["data"] = situation.dataset
    return resources
