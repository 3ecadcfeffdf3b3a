"""The one thing that flows along a graph's edges: an immutable description of a model, a data set or a report.

A bundle holds no weights: its files are named blobs in a store, found by digest. It is described by plain data and
never by a pickle, so that reading one cannot run code.
"""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Self

from pydantic import Field, JsonValue

from edgekd.core.digest import Digest, digest
from edgekd.core.recipe import ModelRecipe
from edgekd.core.schema import Schema
from edgekd.errors import UserError

BUNDLE_SCHEMA_VERSION = 1


class BundleKind(StrEnum):
    """What a bundle is, and so which ports take it."""

    TORCH = "torch"
    """`weights.safetensors` and a recipe that rebuilds the module."""
    ONNX = "onnx"
    """`model.onnx`, self-contained."""
    ENGINE = "engine"
    """`model.engine`, bound to one device and runtime."""
    DATA = "data"
    """Preprocessed samples in `samples.safetensors` (a calibration set)."""
    REPORT = "report"
    """`report.json`: numbers and decisions, no model."""


class TensorSpec(Schema):
    """Name, shape and type of one input or output.

    Attributes:
        name: As the exported graph names it.
        shape: Sizes; a string such as `"N"` is a dynamic axis.
        dtype: NumPy name, `float32` for example.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str = "float32"


class ModelBundle(Schema):
    """An artifact: what it is, its files by content, and how to rebuild it.

    Attributes:
        kind: Decides which ports accept the bundle.
        inputs: Tensor specs of a model's inputs, empty for DATA and REPORT.
        outputs: Tensor specs of a model's outputs; the first one is the logits (N, K).
        files: Blob digests by file name.
        recipe: Architecture, edits, preprocessing and labels; carried along to ONNX and ENGINE as provenance.
        tags: Facts about the content, such as `{"precision": "int8", "scheme": "ort-u8s8"}`.
        bound_to: ENGINE only: fingerprint of the device and runtime it was built for.
    """

    kind: BundleKind
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    files: dict[str, Digest] = Field(default_factory=dict)
    recipe: ModelRecipe | None = None
    tags: dict[str, JsonValue] = Field(default_factory=dict)
    bound_to: str | None = None

    @property
    def content(self) -> Digest:
        """What the keys of later stages depend on: equal content means that nothing downstream needs to run again."""
        return digest("bundle", self.plain())

    @property
    def model(self) -> ModelRecipe:
        """The recipe, for bundles that must have one.

        Raises:
            UserError: The bundle is a report or data.
        """
        if self.recipe is None:
            raise UserError(f"A model was expected, but this is a {self.kind} bundle without a recipe.")
        return self.recipe

    def file(self, name: str) -> Digest:
        """The digest of a named file.

        Raises:
            UserError: The bundle has no such file; the message lists those it has.
        """
        try:
            return self.files[name]
        except KeyError:
            have = ", ".join(sorted(self.files)) or "none"
            raise UserError(f"This {self.kind} bundle has no file {name!r} (it has: {have}).") from None

    def to_json(self) -> str:
        """Stable text form, readable back by `from_json`."""
        return json.dumps({"schema_version": BUNDLE_SCHEMA_VERSION, **self.plain()}, indent=2, sort_keys=True)

    @classmethod
    def from_json(cls, text: str, where: str = "bundle") -> Self:
        """Reads what `to_json` wrote.

        Raises:
            UserError: Not JSON, another schema version, or keys that do not fit.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as err:
            raise UserError(f"{where}: not valid JSON ({err}).") from err
        version = data.pop("schema_version", None) if isinstance(data, dict) else None
        if version != BUNDLE_SCHEMA_VERSION:
            raise UserError(f"{where}: bundle schema {version!r}, this edgekd reads {BUNDLE_SCHEMA_VERSION}.")
        return cls.parse(data, where)
