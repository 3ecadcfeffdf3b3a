"""What a model says of plain images, whichever form it is in: the basis of choosing among data and among teachers."""

from __future__ import annotations

import numpy as np
import torch

from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.preprocess import Preprocessing
from edgekd.core.stage import Context
from edgekd.data.batches import eval_batches
from edgekd.data.dataset import Split
from edgekd.data.transform import FloatArray
from edgekd.errors import UserError
from edgekd.nn.build import is_trainable, module_from_bundle
from edgekd.nn.mode import evaluating
from edgekd.runtimes.session import open_bundle
from edgekd.train.engine import resolve_device, torch_settings
from edgekd.train.evaluate_torch import BATCH, module_logits
from edgekd.train.memory_format import placed
from edgekd.train.signal import Signal
from edgekd.train.signals import SignalSource
from edgekd.train.teachers import RUNTIME


def responses(model: ModelBundle, split: Split, ctx: Context) -> FloatArray:
    """(N, K) float32 logits of a model for every image of a split, in order, without augmentation.

    Args:
        model: TORCH or ONNX; its own preprocessing is used.
        split: At least one image.
        ctx: Of the stage; files, device and threads.

    Raises:
        DeviceUnavailable: The model is a graph, and its runtime is not installed.
    """
    p = model.model.preprocessing
    if model.kind is not BundleKind.ONNX:
        return module_logits(module_from_bundle(model, ctx.blobs), split, p, ctx.execution)
    with open_bundle(model, ctx.blobs, RUNTIME, threads=ctx.execution.threads) as session:
        source, output = session.input_names[0], model.outputs[0].name
        found = [session.infer({source: batch.images})[output] for batch in eval_batches(split, p, BATCH)]
    return np.concatenate(found)


def embeddings(model: ModelBundle, split: Split, ctx: Context) -> tuple[FloatArray, str]:
    """(N, D) float32 inputs of the classifier for every image of a split, and what they are in words.

    A graph, a frozen program and a network whose classifier is not found have none: their logits, (N, K), take the
    place.
    """
    p = model.model.preprocessing
    if model.kind is BundleKind.ONNX or not is_trainable(model.model):
        return responses(model, split, ctx), "logits"
    module = module_from_bundle(model, ctx.blobs)
    try:
        source = SignalSource(module, frozenset({Signal.EMBEDDING}), p.input_shape)
    except UserError:
        return responses(model, split, ctx), "logits"
    return _tapped(source, split, p, ctx), "features"


def _tapped(source: SignalSource, split: Split, p: Preprocessing, ctx: Context) -> FloatArray:
    device, found = torch.device(resolve_device(ctx.execution.device)), []
    placement = placed(source, device, channels_last=True)
    with torch_settings(ctx.execution), placement, evaluating(source), torch.inference_mode():
        for batch in eval_batches(split, p, BATCH):
            said = source(torch.from_numpy(batch.images).to(device, memory_format=torch.channels_last))
            found.append(said.embedding.float().cpu().numpy())
    return np.concatenate(found)
