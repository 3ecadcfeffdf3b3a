"""Applies the repairs of the rules and proves with ONNX Runtime that the graph computes the same."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from edgekd.core.blobs import write_whole
from edgekd.core.schema import Schema
from edgekd.errors import BuildFailed, UserError
from edgekd.lint.rule import LINTS, Surroundings
from edgekd.lint.view import normalised
from edgekd.runtimes.compare import Comparison, compare_logits
from edgekd.runtimes.onnx_file import write_graph
from edgekd.runtimes.onnxruntime import exact_outputs

PROOF_SAMPLES = 8
SAME_DB = 60.0
"""Signal to noise, in float, from which a graph counts as the same: float32 sums in another order give about 120."""
SAME_ROUNDED_DB = 35.0
"""The same for a graph with Q/DQ: a last bit in float can move a value to the next of 256 levels."""
NOTHING_DB = 200.0


class Repair(Schema):
    """What was changed, and the proof.

    Attributes:
        changes: Sentences.
        rules: That had something to repair.
        sqnr_db: Signal to noise of the outputs after against before, the lowest of any output; at most 200.
        max_abs: Largest difference of any output.
        samples: Inputs compared.
        origin: `data` or `noise`.
    """

    changes: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()
    sqnr_db: float = NOTHING_DB
    max_abs: float = 0.0
    samples: int = 0
    origin: str = "noise"


def repaired(model: onnx.ModelProto, where: Surroundings) -> tuple[onnx.ModelProto, tuple[str, ...], tuple[str, ...]]:
    """A graph with what the rules could mend for these runtimes, sentences, and the rules that did.

    Args:
        model: Left as it was.
        where: Rules that do not concern its runtimes change nothing.
    """
    made, said, rules = normalised(model), [], []
    for name in LINTS:
        rule = LINTS.get(name)()
        if rule.repairs and rule.concerned(where) and (changes := rule.repair_(made)):
            said += changes
            rules.append(name)
    return made, tuple(said), tuple(rules)


def write_repaired(
    model: onnx.ModelProto,
    path: Path,
    where: Surroundings,
    *,
    images: NDArray[np.float32] | None = None,
    seed: int = 0,
) -> Repair:
    """Writes the mended graph in one step, after it was proven to compute the same.

    Args:
        model: Left as it was.
        path: The file to write; nothing is written when the proof fails.
        where: For which runtimes to mend.
        images: To compare on, for a graph with one input; None takes standard normal noise.
        seed: Of the noise.

    Raises:
        UserError: The graph does not run, or has an input whose size is open beside the batch.
        BuildFailed: The mended graph is invalid, or computes something else.
    """
    made, changes, rules = repaired(model, where)
    proof = Repair()
    with tempfile.TemporaryDirectory(prefix="edgekd-") as folder:
        mended = Path(folder) / "model.onnx"
        write_graph(made, mended, made_by="the repairs")
        if changes:
            feeds = _feeds(model, images, seed)
            found = _comparison(exact_outputs(model, feeds), exact_outputs(made, feeds))
            rounds = any(node.op_type == "QuantizeLinear" for node in model.graph.node)
            _require_same(found, SAME_ROUNDED_DB if rounds else SAME_DB, changes)
            origin = "noise" if images is None else "data"
            proof = Repair(
                changes=changes,
                rules=rules,
                sqnr_db=found.sqnr_db,
                max_abs=found.max_abs,
                samples=found.n,
                origin=origin,
            )
        write_whole(path, mended.read_bytes())
    return proof


def _require_same(found: Comparison, least_db: float, changes: tuple[str, ...]) -> None:
    if found.sqnr_db < least_db:
        raise BuildFailed(
            f"The mended graph does not compute the same: its outputs differ by up to {found.max_abs:.3g} "
            f"({found.sqnr_db:.0f} dB, expected {least_db:.0f} dB) after {len(changes)} changes, the first being: "
            f"{changes[0]}",
            hint="nothing was written; report the graph, for each of the changes is meant to be exact",
        )


def _comparison(before: list[NDArray[np.float64]], after: list[NDArray[np.float64]]) -> Comparison:
    """Of the output that differs most."""
    compared = [
        compare_logits(_rows(old), _rows(new)) for old, new in zip(before, after, strict=True) if old.size and new.size
    ]
    return min(compared, key=lambda found: found.sqnr_db)


def _rows(values: NDArray[np.float64]) -> NDArray[np.float32]:
    return values.reshape(values.shape[0] if values.ndim else 1, -1).astype(np.float32)


def _feeds(model: onnx.ModelProto, images: NDArray[np.float32] | None, seed: int) -> Mapping[str, NDArray[np.generic]]:
    constants = {entry.name for entry in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    rng, feeds = np.random.default_rng(seed), {}
    for value in inputs:
        axes, shape = value.type.tensor_type.shape.dim, []
        for place, axis in enumerate(axes):
            if not axis.HasField("dim_value") and place > 0:
                raise UserError(
                    f"The input {value.name!r} leaves axis {place} open, so the repairs cannot be proven.",
                    hint="export with fixed sizes",
                )
            shape.append(axis.dim_value if axis.HasField("dim_value") else PROOF_SAMPLES)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        if images is not None and len(inputs) == 1 and tuple(shape[1:]) == images.shape[1:]:
            feeds[value.name] = images[: shape[0]].astype(dtype)
        elif np.issubdtype(dtype, np.floating):
            feeds[value.name] = rng.standard_normal(shape).astype(dtype)
        else:
            feeds[value.name] = np.zeros(shape, dtype)
    return feeds
