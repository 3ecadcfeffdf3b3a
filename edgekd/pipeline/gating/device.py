"""Which device a bundle is for, whether that is this machine, and the fingerprint its milliseconds carry."""

from __future__ import annotations

from edgekd.core.bundle import ModelBundle
from edgekd.errors import DeviceUnavailable
from edgekd.profiling.environment import fingerprint, machine
from edgekd.runtimes.session import RUNTIMES
from edgekd.targets.host import completed, host_facts, is_host
from edgekd.targets.load import load_target
from edgekd.targets.schema import Target


def target_of(card: Target | None) -> Target:
    """The device that a bundle was made for; this machine where it has no card.

    Args:
        card: As the bundle's package holds it.
    """
    if card is None:
        return load_target("host")
    # The card says where the bundle was made; whether that device is here is found out anew.
    target, here = card.model_copy(update={"measured_here": False}), host_facts()
    return completed(target, here) if is_host(target, here) else target


def runtime_of(bundle: ModelBundle, target: Target, asked: str | None) -> str:
    """The runtime to measure a bundle in: the one asked for, the one it was chosen for, or the first that works.

    Raises:
        UserError: No such runtime.
        DeviceUnavailable: None of the target's runtimes works here.
    """
    tagged = bundle.tags.get("runtime")
    if asked is not None or isinstance(tagged, str):
        name = asked or str(tagged)
        RUNTIMES.get(name)
        return name
    for support in target.runtimes:
        runtime = RUNTIMES.get(support.runtime)
        if bundle.kind in runtime.accepts and runtime.availability().ok:
            return support.runtime
    names = ", ".join(support.runtime for support in target.runtimes)
    raise DeviceUnavailable(f"No runtime of {target.name} that runs {bundle.kind} bundles works here ({names}).")


def host_fingerprint(target: Target) -> str:
    """The fingerprint that a profile of this target has here, with the versions of all its runtimes."""
    able = [s.runtime for s in target.runtimes if RUNTIMES.get(s.runtime).availability().ok]
    deployable = [name for name in able if name != "torch"] or able
    versions = {name: str(RUNTIMES.get(name).availability().version) for name in deployable}
    return fingerprint(machine(), versions)


def runtime_here(bundle: ModelBundle, target: Target, asked: str | None) -> str:
    """A runtime of this machine for the accuracy of a bundle that is timed on a board: its own, or one like it.

    Raises:
        DeviceUnavailable: This machine cannot run the bundle.
    """
    own = str(asked or bundle.tags.get("runtime") or "")
    names: list[str] = [own, *(support.runtime for support in target.runtimes), *RUNTIMES]
    for name in (name for name in names if name in RUNTIMES):
        if bundle.kind in RUNTIMES.get(name).accepts and RUNTIMES.get(name).availability().ok:
            return name
    raise DeviceUnavailable(
        f"The accuracy of a bundle on a board is counted on this machine, which cannot run {bundle.kind} bundles.",
        hint="leave --data out, or gate the ONNX bundle: its engine is built on the board",
    )
