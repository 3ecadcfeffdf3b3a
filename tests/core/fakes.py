"""Stages without models for the tests of the engine: text files stand for weights, and `ran` notes what really ran."""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.digest import Digest, digest
from edgekd.core.graph import Graph, StageRegistry
from edgekd.core.registry import Registry
from edgekd.core.stage import Context, Inputs, Stage, StageConfig, StageResult, port
from edgekd.errors import BuildFailed, DeviceUnavailable

ran: list[str] = []
"""One entry per run of a stage; cleared by the `fresh` fixture of `conftest.py`."""

ranks: list[threading.Barrier] = []
"""What a joint stage waits at, when a test runs several ranks."""


hang_at: int | None = None
"""Step at which `slow` hangs."""


def text_bundle(text: str, ctx: Context, kind: BundleKind = BundleKind.TORCH) -> ModelBundle:
    path = ctx.scratch / "model.txt"
    path.write_text(text)
    return ModelBundle(kind=kind, files={"model.txt": ctx.blobs.add(path)})


def text_of(bundle: ModelBundle, ctx: Context) -> str:
    return ctx.path(bundle, "model.txt").read_text()


class Letters(StageConfig):
    letters: str = "a"


class Append(Stage[Letters]):
    """The input's text and the letters."""

    name = "append"
    Config = Letters
    ports: ClassVar = {"model": port(BundleKind.TORCH, optional=True)}
    produces = BundleKind.TORCH

    def run(self, inputs: Inputs, ctx: Context) -> StageResult:
        ran.append(self.config.letters)
        model = inputs.maybe("model")
        text = text_of(model, ctx) if model else ""
        metrics = {"length": len(text), "resumed": (ctx.scratch / "checkpoint").exists()}
        return StageResult(
            bundle=text_bundle(text + self.config.letters, ctx), metrics=metrics, decisions=("appended",)
        )


class First(Stage[Letters]):
    """Only the input's first letter: different inputs give one result."""

    name = "first"
    Config = Letters
    ports: ClassVar = {"model": port(BundleKind.TORCH)}
    produces = BundleKind.TORCH

    def run(self, inputs: Inputs, ctx: Context) -> StageResult:
        ran.append("first")
        return StageResult(bundle=text_bundle(text_of(inputs.one("model"), ctx)[0], ctx))


class Export(Append):
    """As `append`, and must not be followed by `append`."""

    name = "export"
    ports: ClassVar = {"model": port(BundleKind.TORCH), "data": port(BundleKind.DATA, optional=True)}
    produces = BundleKind.TORCH
    never_before = frozenset({"append"})


class Measure(Stage[StageConfig]):
    """The names and lengths of all candidates, anew each time."""

    name = "measure"
    Config = StageConfig
    ports: ClassVar = {"candidates": port(BundleKind.TORCH, many=True)}
    produces = BundleKind.REPORT
    cacheable = False

    def run(self, inputs: Inputs, ctx: Context) -> StageResult:
        ran.append("measure")
        text = " ".join(f"{name}={text_of(bundle, ctx)}" for name, bundle in inputs.all("candidates"))
        return StageResult(bundle=text_bundle(text, ctx, BundleKind.REPORT))


class Reads(Stage[StageConfig]):
    """Depends on the resource `data` and the seed; writes what it can see."""

    name = "reads"
    Config = StageConfig
    ports: ClassVar = {"model": port(BundleKind.TORCH, optional=True)}
    produces = BundleKind.TORCH
    reads = frozenset({"data"})

    def run(self, inputs: Inputs, ctx: Context) -> StageResult:
        ran.append("reads")
        return StageResult(bundle=text_bundle(f"{sorted(ctx.resources)} {ctx.seed} {inputs.by_port.keys()}", ctx))


class FailConfig(StageConfig):
    how: str


class Fail(Stage[FailConfig]):
    """Fails in the way that its config names."""

    name = "fail"
    Config = FailConfig
    ports: ClassVar = {"model": port(BundleKind.TORCH, optional=True)}
    produces = BundleKind.TORCH

    def requires(self, inputs: Inputs, ctx: Context) -> None:
        if self.config.how == "requires":
            raise DeviceUnavailable("There is no such device.")

    def run(self, inputs: Inputs, ctx: Context) -> StageResult:
        ran.append("fail")
        (ctx.scratch / "checkpoint").write_text("half done")
        if self.config.how == "error":
            raise BuildFailed("The build failed.", hint="try again")
        if self.config.how == "bug":
            raise ZeroDivisionError("division by zero")
        if self.config.how == "no file":
            return StageResult(bundle=ModelBundle(kind=BundleKind.TORCH, files={"x": digest("nothing")}))
        kind = BundleKind.ONNX if self.config.how == "wrong kind" else BundleKind.TORCH
        metrics = {"loss": float("nan")} if self.config.how == "nan" else {}
        return StageResult(bundle=text_bundle("x", ctx, kind), metrics=metrics)

    def ensures(self, inputs: Inputs, result: StageResult, ctx: Context) -> None:
        if self.config.how == "ensures":
            raise BuildFailed("The promise was broken.")


class Slow(Stage[Letters]):
    """Takes its letters one by one and remembers how far it came, as training does; hangs halfway when asked to."""

    name = "slow"
    Config = Letters
    ports: ClassVar = {"model": port(BundleKind.TORCH)}
    produces = BundleKind.TORCH

    def run(self, inputs: Inputs, ctx: Context) -> StageResult:
        checkpoint = ctx.scratch / "checkpoint"
        text = checkpoint.read_text() if checkpoint.exists() else text_of(inputs.one("model"), ctx)
        steps = text_of(inputs.one("model"), ctx) + self.config.letters
        for step in range(len(text), len(steps)):
            if hang_at == step:
                sys.stdout.write("halfway\n")
                sys.stdout.flush()
                time.sleep(60)
            ran.append(f"step {steps[step]}")
            text += steps[step]
            checkpoint.write_text(text)
        return StageResult(bundle=text_bundle(text, ctx))


class Joint(Stage[Letters]):
    """Every rank takes part: none goes on before all have come."""

    name = "joint"
    Config = Letters
    ports: ClassVar = {"model": port(BundleKind.TORCH, optional=True)}
    produces = BundleKind.TORCH
    distributed = True

    def run(self, inputs: Inputs, ctx: Context) -> StageResult:
        ran.append(f"joint {self.config.letters}")
        # A file of its own, before the others come: the first rank to end removes the folder that all share.
        path = ctx.scratch / f"{threading.get_ident()}.txt"
        path.write_text(self.config.letters)
        bundle = ModelBundle(kind=BundleKind.TORCH, files={"model.txt": ctx.blobs.add(path)})
        for barrier in ranks:
            barrier.wait(timeout=20)
        return StageResult(bundle=bundle)


STAGES: StageRegistry = Registry(
    "stage",
    {
        "append": "tests.core.fakes:Append",
        "first": "tests.core.fakes:First",
        "export": "tests.core.fakes:Export",
        "measure": "tests.core.fakes:Measure",
        "reads": "tests.core.fakes:Reads",
        "fail": "tests.core.fakes:Fail",
        "slow": "tests.core.fakes:Slow",
        "joint": "tests.core.fakes:Joint",
    },
)


@dataclass
class FakeData:
    """A resource."""

    content: str = "digits"
    digest: Digest = field(init=False)

    def __post_init__(self) -> None:
        self.digest = digest("data", self.content)


def graph(*nodes: dict[str, Any], inputs: dict[str, str] | None = None) -> Graph:
    """A graph from plain data, as a recipe gives it."""
    return Graph.parse({"inputs": inputs or {}, "nodes": list(nodes)}, "graph")


def chain(*letters: str, stage: str = "append") -> Graph:
    """`append` nodes named n0, n1, ... in a row."""
    return graph(
        *(
            {"name": f"n{i}", "stage": stage, "config": {"letters": x}, "inputs": {"model": f"n{i - 1}"} if i else {}}
            for i, x in enumerate(letters)
        )
    )


def blob_text(root: Path, bundle: ModelBundle) -> str:
    """The text of a bundle of these stages in a `LocalStore` at `root`."""
    content = bundle.file("model.txt")
    return (root / "blobs" / content[:2] / content[2:]).read_text()
