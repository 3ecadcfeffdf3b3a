"""The engines that are timed: the network with some groups cut, in the form that will be deployed.

Weights do not matter, so the first units of each group leave and nothing is calibrated or proved.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from edgekd.core.blobs import Blobs
from edgekd.core.bundle import ModelBundle
from edgekd.nn.channels.apply import remove_channels_
from edgekd.nn.channels.groups import ChannelGroup
from edgekd.nn.onnx import onnx_from_module
from edgekd.nn.reparam import reparameterised
from edgekd.runtimes.forms import FORMS, form_name
from edgekd.runtimes.onnx_file import bundle_from_graph, write_graph
from edgekd.targets.schema import Precision, QuantScheme


@dataclass(frozen=True, kw_only=True)
class Workshop:
    """Makes engines of one network.

    Attributes:
        module: The network, in evaluation mode.
        bundle: It comes from.
        precision: Of the engines.
        scheme: Form of INT8; None where there is none.
        opset: Of the default ONNX domain.
        blobs: Takes the graphs.
        folder: Takes files meanwhile.
    """

    module: nn.Module
    bundle: ModelBundle
    precision: Precision
    scheme: QuantScheme | None
    opset: int
    blobs: Blobs
    folder: Path

    def engine(self, groups: Sequence[ChannelGroup] = (), kept: int = 0) -> ModelBundle:
        """The ONNX graph in which each of the groups keeps so many units.

        Raises:
            BuildFailed: The cut network cannot be exported, or not be brought into the form.
            DeviceUnavailable: There is no such form of a graph.
        """
        form = form_name(self.precision, self.scheme)
        cut = copy.deepcopy(self.module)
        remove_channels_(cut, [(group, torch.arange(group.units - kept)) for group in groups])
        path = self.folder / "timed.onnx"
        onnx_from_module(reparameterised(cut), self.bundle.model.preprocessing.input_shape, path, opset=self.opset)
        write_graph(FORMS.get("fp32")(path, self.folder), path, made_by="the exporter")
        if form != "fp32":
            write_graph(FORMS.get(form)(path, self.folder), path, made_by=f"the form {form}")
        tags = {"precision": self.precision, "scheme": self.scheme or "" if self.precision == "int8" else ""}
        return bundle_from_graph(path, carry=self.bundle, tags={**tags}, blobs=self.blobs)
