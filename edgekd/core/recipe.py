"""A model's architecture as data: a builder, its arguments, and edits that are replayed on top.

Weights are not part of a recipe. `edgekd.nn.build` turns a recipe and a safetensors file into a module; nothing here
imports torch, so a plan can be made, shown and diffed without it.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, JsonValue, field_validator

from edgekd.core.digest import Digest, digest
from edgekd.core.preprocess import Preprocessing
from edgekd.core.schema import Schema

BuilderScheme = Literal["timm", "edgekd", "module", "program", "onnx"]
BUILDER_SCHEMES: tuple[BuilderScheme, ...] = ("timm", "edgekd", "module", "program", "onnx")


class Edit(Schema):
    """One replayable change of a built module.

    Attributes:
        kind: Name of the edit; `edgekd.nn.edits` knows how to replay it.
        args: Its arguments, plain data.
    """

    kind: str
    args: dict[str, JsonValue] = Field(default_factory=dict)


class ModelRecipe(Schema):
    """How to rebuild a model without its weights.

    Attributes:
        builder: `timm:NAME`, `edgekd:FAMILY`, `module:package.module:factory`, `program` (a `torch.export` program,
            blob `program.pt2`) or `onnx` (a graph that has no PyTorch form).
        kwargs: Arguments of the builder.
        edits: Replayed in order on the built module (pruned channels, for example).
        preprocessing: The one preprocessing of this model, everywhere.
        labels: K class names, in the order of the logits.
        task: What the outputs mean.
    """

    builder: str
    kwargs: dict[str, JsonValue] = Field(default_factory=dict)
    edits: tuple[Edit, ...] = ()
    preprocessing: Preprocessing
    labels: tuple[str, ...] = ()
    task: Literal["classification"] = "classification"

    @field_validator("builder")
    @classmethod
    def _known_scheme(cls, value: str) -> str:
        scheme, _, name = value.partition(":")
        if scheme not in BUILDER_SCHEMES or (scheme in ("timm", "edgekd", "module")) != bool(name):
            raise ValueError("expected timm:NAME, edgekd:FAMILY, module:package.module:factory, program or onnx")
        return value

    def with_edit(self, edit: Edit) -> ModelRecipe:
        """The same recipe with one more edit at the end."""
        return self.model_copy(update={"edits": (*self.edits, edit)})

    @property
    def digest(self) -> Digest:
        return digest("recipe", self.plain())
