"""The contract of a stage: typed ports in, one bundle out, everything it depends on declared.

The runner calls `requires` (early and cheap), then `run`, then `ensures` (what the stage promised, checked). A stage
depends on exactly: its config, the bundles on its ports, the seed, and the resources it names in `reads`; the runner
hides every other resource from it, so that a cache key can be trusted.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Generic, Protocol, TypeVar

from edgekd.core.blobs import Blobs
from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.digest import Digest, Json
from edgekd.core.events import Reporter
from edgekd.core.schema import Schema
from edgekd.errors import EdgekdError

R = TypeVar("R", bound="Resource")


class StageConfig(Schema):
    """Base of stage configs. All fields enter the cache key."""


C = TypeVar("C", bound=StageConfig)


class Resource(Protocol):
    """Something a run has beside bundles: the target, the data set. Its digest enters the keys of its readers."""

    @property
    def digest(self) -> Digest: ...


@dataclass(frozen=True, kw_only=True)
class Port:
    """What a stage accepts at one of its inputs.

    Attributes:
        kinds: Accepted bundle kinds.
        many: Takes any number of bundles; `Inputs.all` returns them in the graph's order.
        optional: May stay unconnected.
        named: The stage sees the names of the producing nodes, so they enter its key. Always so at `many` ports.
    """

    kinds: frozenset[BundleKind]
    many: bool = False
    optional: bool = False
    named: bool = False

    @property
    def shows_names(self) -> bool:
        """Whether the producers' names reach the stage, and so its key."""
        return self.named or self.many


def port(*kinds: BundleKind, many: bool = False, optional: bool = False, named: bool = False) -> Port:
    """Short form: `port(BundleKind.TORCH)`."""
    return Port(kinds=frozenset(kinds), many=many, optional=optional, named=named)


@dataclass(frozen=True)
class Inputs:
    """The bundles on a stage's ports, each with a name.

    The name is the producing node's at `many` and `named` ports, and the port's own elsewhere: a stage sees a node's
    name only where that name is part of its key, so renaming a node never makes its successors train again.
    """

    by_port: Mapping[str, Sequence[tuple[str, ModelBundle]]]

    def one(self, name: str) -> ModelBundle:
        """The single bundle at a port that is not optional."""
        found = self.maybe(name)
        if found is None:
            raise EdgekdError(f"Port {name!r} is empty: the graph was not validated.")
        return found

    def maybe(self, name: str) -> ModelBundle | None:
        """The bundle at a port, or None when the port is unconnected."""
        bundles = self.by_port.get(name, ())
        return bundles[0][1] if bundles else None

    def all(self, name: str) -> Sequence[tuple[str, ModelBundle]]:
        """(producer's name, bundle) pairs at a `many` port."""
        return self.by_port.get(name, ())


@dataclass(frozen=True, kw_only=True)
class BoardAccess:
    """A device that is reached over ssh, and how to measure there.

    Attributes:
        address: `ssh://user@host[:port]`.
        python: Its interpreter that has the runtime.
        lock_clocks: Fix the clocks while measuring, and restore them.
        name: In texts; the address when empty.
    """

    address: str
    python: str = "python3"
    lock_clocks: bool = False
    name: str = ""


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How to run, never what to compute: nothing here enters a key.

    Attributes:
        device: `auto`, `cpu` or `cuda`.
        threads: CPU threads of training and evaluation; None leaves the default.
        workers: Who scores the candidates of a search: `auto`, a number of processes, or the address of a cluster.
        board: Where latencies are measured; None measures on this machine where it is the target.
    """

    device: str = "auto"
    threads: int | None = None
    workers: str = "1"
    board: BoardAccess | None = None


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a stage may use while it runs.

    Attributes:
        scratch: A folder that survives a kill and belongs to this cache key: checkpoints go here. It is removed when
            the stage has finished.
        seed: The only source of randomness.
        reporter: Where progress goes.
        blobs: Reads the files of input bundles, takes the files of the output bundle.
        resources: Exactly those that the stage declares in `reads`.
        execution: Device and threads.
    """

    scratch: Path
    seed: int
    reporter: Reporter
    blobs: Blobs
    resources: Mapping[str, Resource] = field(default_factory=dict)
    execution: Execution = field(default_factory=Execution)

    def resource(self, name: str, kind: type[R]) -> R:
        """A declared resource, checked to be of `kind`.

        Raises:
            EdgekdError: The stage did not declare it in `reads`, or the run has none.
        """
        found = self.resources.get(name)
        if not isinstance(found, kind):
            raise EdgekdError(f"Resource {name!r} ({kind.__name__}) is not declared in `reads` or not part of the run.")
        return found

    def path(self, bundle: ModelBundle, name: str) -> Path:
        """Where a bundle's file lies, read-only."""
        return self.blobs.path(bundle.file(name))


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """What a stage made.

    Attributes:
        bundle: The artifact.
        metrics: Numbers for the report; keys carry units (`size_mib`, `macs_m`, `accuracy`).
        decisions: Sentences on what was chosen or substituted, and why.
    """

    bundle: ModelBundle
    metrics: Mapping[str, Json] = field(default_factory=dict)
    decisions: tuple[str, ...] = ()


class Stage(ABC, Generic[C]):
    """One step of a graph.

    Subclasses set the class attributes, take their config in the constructor and keep no other state.

    Attributes:
        name: Registry key, lower case.
        version: Bumped in the commit that changes results.
        Config: The config class.
        ports: Inputs by name.
        produces: Kind of the output; a set of kinds for a stage that hands on one of its inputs.
        reads: Names of resources it may depend on (`"data"`, `"target"`); those of `resources_read` enter the key.
        never_before: Names of stages that must not come after this one on a path.
        cacheable: False for measurements and verdicts, which are made anew each time.
        distributed: Under `torchrun` every rank runs it jointly; all other stages run on the leader alone.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    Config: ClassVar[type[StageConfig]]
    ports: ClassVar[Mapping[str, Port]]
    produces: ClassVar[BundleKind | frozenset[BundleKind]]
    reads: ClassVar[frozenset[str]] = frozenset()
    never_before: ClassVar[frozenset[str]] = frozenset()
    cacheable: ClassVar[bool] = True
    distributed: ClassVar[bool] = False

    def __init__(self, config: C) -> None:
        self.config = config

    @classmethod
    def output_kinds(cls) -> frozenset[BundleKind]:
        """The kinds its output may have."""
        return cls.produces if isinstance(cls.produces, frozenset) else frozenset({cls.produces})

    def resources_read(self) -> frozenset[str]:
        """Those of `reads` that it depends on as it is configured."""
        return self.reads

    def requires(self, inputs: Inputs, ctx: Context) -> None:
        """Raises a `UserError` or `DeviceUnavailable` when the stage cannot do its work; cheap, changes nothing."""
        return None

    @abstractmethod
    def run(self, inputs: Inputs, ctx: Context) -> StageResult:
        """Makes the output. Deterministic in config, inputs, declared resources and seed, for one thread count."""

    def ensures(self, inputs: Inputs, result: StageResult, ctx: Context) -> None:
        """Raises `BuildFailed` when the output does not keep what the stage promises (pruned MACs really fell ...)."""
        return None
