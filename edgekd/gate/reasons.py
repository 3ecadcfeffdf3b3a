"""Why a low-precision engine is slower than its FP32 twin: what its layers say, counted and timed, in one sentence.

Everything here is read from the layers that both engines recorded while they ran (`edgekd.core.layers`). What a runtime
does not record is not guessed at. The shares are of recorded time, which recording itself stretches; whether an engine
is slower at all is never decided here, but by timings without recording.
"""

from __future__ import annotations

from edgekd.core.layers import LayerKind, LayerReport
from edgekd.core.text import significant

WORTH_TELLING = 0.01
"""Share of the recorded time below which conversions are not the reason for anything."""
WORTH_COMPARING = 0.05
"""Share of the twin's recorded time below which a ratio of a few microseconds would be told as a finding."""
SHOWN_OPS = 3
CONVOLUTIONS, PRODUCTS = "convolutions", "matrix products"
_NOT_CONVOLUTION = "convert"
_PRODUCTS = ("gemm", "matmul", "matrixmultiply", "fullyconnected")


def why_from_layers(low: LayerReport | None, full: LayerReport | None, *, int8: bool) -> str:
    """What makes the low-precision engine lose time, as clauses; the next best thing to say where nothing shows.

    Args:
        low: Of the INT8 or FP16 engine; None where its runtime tells nothing.
        full: Of the FP32 twin in the same runtime at the same thread count.
        int8: Whether its weights are int8, so that layers in float are worth telling; FP16 layers count as float.
    """
    if low is None or not low.kinds:
        return "its runtime tells no times of layers, so the reason is not known"
    clauses = [
        *(_in_float(low) if int8 else ()),
        *_conversions(low, full),
        *_islands(low),
        *_elsewhere(low, full),
        *_same_work(low, full),
    ]
    return ", ".join(clauses) or "the times of its layers show no single reason"


def _in_float(low: LayerReport) -> list[str]:
    """Heavy layers that stayed in float."""
    said = []
    for family in (CONVOLUTIONS, PRODUCTS):
        kinds = _of_family(low, family)
        total = sum(kind.count for kind in kinds)
        stayed = [kind for kind in kinds if kind.arithmetic == "float"]
        count, spent_ms = sum(kind.count for kind in stayed), sum(kind.total_ms for kind in stayed)
        if count:
            said.append(f"{count} of {total} {family} run in float ({_share(spent_ms, low)} of the time)")
    return said


def _conversions(low: LayerReport, full: LayerReport | None) -> list[str]:
    kinds = [kind for kind in low.kinds if kind.arithmetic == "conversion"]
    count, spent_ms = sum(kind.count for kind in kinds), sum(kind.total_ms for kind in kinds)
    if not count or spent_ms < WORTH_TELLING * low.total_ms:
        return []
    by_count = sorted(kinds, key=lambda kind: -kind.count)
    named = ", ".join(f"{kind.count} {kind.op}" for kind in by_count[:SHOWN_OPS])
    more = "" if len(by_count) <= SHOWN_OPS else " and others"
    beside = ""
    if full is not None and full.kinds:
        beside = f", in FP32 {full.share_by_arithmetic.get('conversion', 0.0):.0%}"
    nodes = f"{count} conversion{'s' if count > 1 else ''} between types or layouts ({named}{more})"
    verb = "take" if count > 1 else "takes"
    return [f"{nodes} {verb} {_share(spent_ms, low)} of the time{beside}"]


def _islands(low: LayerReport) -> list[str]:
    if not low.float_between:
        return []
    one = low.float_between == 1
    return [f"{low.float_between} float layer{' stands' if one else 's stand'} between int8 ones"]


def _elsewhere(low: LayerReport, full: LayerReport | None) -> list[str]:
    """Layers that another provider ran than most; those that the twin had as well explain nothing."""
    if len(low.nodes_by_provider) < 2:
        return []
    main = max(low.nodes_by_provider, key=lambda name: low.nodes_by_provider[name])
    other = {name: count for name, count in low.nodes_by_provider.items() if name != main}
    if full is not None and other == {name: n for name, n in full.nodes_by_provider.items() if name != main}:
        return []
    where = " and ".join(f"{count} on {name}" for name, count in other.items())
    return [f"{where} instead of {main}"]


def _same_work(low: LayerReport, full: LayerReport | None) -> list[str]:
    """What the heavy layers themselves take, against the twin's: the part that low precision should have made fast."""
    if full is None:
        return []
    said = []
    for family in (CONVOLUTIONS, PRODUCTS):
        mine, theirs = (sum(kind.total_ms for kind in _of_family(side, family)) for side in (low, full))
        if mine and theirs > WORTH_COMPARING * full.total_ms:
            said.append(f"its {family} take {significant(mine / theirs, 2)} times as long as those of FP32")
    return said


def _of_family(report: LayerReport, family: str) -> list[LayerKind]:
    return [kind for kind in report.kinds if kind.arithmetic != "conversion" and family_of(kind.op) == family]


def family_of(op: str) -> str | None:
    """`CONVOLUTIONS` or `PRODUCTS` for operators of these families in any runtime's words; None for all others."""
    lowered = op.lower()
    if "conv" in lowered and _NOT_CONVOLUTION not in lowered:
        return CONVOLUTIONS
    return PRODUCTS if any(name in lowered for name in _PRODUCTS) else None


def _share(spent_ms: float, report: LayerReport) -> str:
    return f"{spent_ms / report.total_ms if report.total_ms else 0:.0%}"
