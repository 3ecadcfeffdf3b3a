"""The graphs of the verbs that do one thing to one model: `distill`, `prune`, `quantize` and `export`.

A compression chains the same stages and chooses among what they give; here the user does. Nothing is judged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from pydantic import Field, JsonValue

from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.graph import Graph, Node
from edgekd.core.schema import Schema
from edgekd.data.dataset import Dataset
from edgekd.errors import UserError
from edgekd.export.convert import CONVERTERS
from edgekd.pipeline.engines import best_opset, sampling
from edgekd.pipeline.pruning import LATENCY_TABLE, kernel_block, table_config
from edgekd.pipeline.request import ModelSource, Options
from edgekd.pipeline.search import likely_precision
from edgekd.pipeline.situation import saturates
from edgekd.pipeline.sources import starts_fresh
from edgekd.pipeline.teaching import (
    GATHERED,
    LOGITS,
    MOST_ANSWERS_MIB,
    STORED,
    gathering,
    objective_names,
    trained_images,
)
from edgekd.pipeline.training import (
    epochs_for,
    recover_epochs_for,
    train_config,
    trains_teacher,
    with_stored_logits,
)
from edgekd.prune.config import PruneConfig
from edgekd.prune.importance import Need, importances_without, needs_of
from edgekd.targets.latency import latency_model_from_target
from edgekd.targets.schema import Precision, Target
from edgekd.train.config import TrainConfig

Verb = Literal["distill", "prune", "quantize", "export"]
MODEL, TEACHER = "model", "teacher"
SAMPLES = "calibration"


class VerbRequest(Schema):
    """What such a verb was asked.

    Attributes:
        verb: Which one; also the stage and the node that does it.
        model: What it is done to.
        teacher: Of `distill`; None trains with the labels alone.
        also: Further teachers: what all of them say is averaged.
        data: See `edgekd.data.sources.load_dataset`; None where none is needed.
        teacher_logits: Of `distill`: a file with a teacher's logits on the training images, in the place of a teacher.
        unlabelled: Of `distill`: further images without labels, of which the teacher chooses some to train on.
        target: The device that the result is for; None for a PyTorch model on its way.
        training: How `distill` trains; of the options, those that concern a training.
        config: Fields of the stage's config, which come before all else; those left open take the stage's own or the
            target's.
        calib_samples: Calibration images of `quantize`; None takes the card's number, or 300.
        calib_select: How they are chosen; None takes the classes in turn, or the card's own way.
        half: Whether `export` goes on to FP16.
        convert_to: Runtime with a converter that `export` makes an engine for, instead of an ONNX graph; `config` is
            then that of the stage `convert`.
        seed: The only source of randomness.
    """

    verb: Verb
    model: ModelSource
    teacher: ModelSource | None = None
    also: tuple[ModelSource, ...] = ()
    data: str | None = None
    teacher_logits: str | None = None
    unlabelled: str | None = None
    target: str | None = None
    training: Options = Field(default_factory=Options)
    config: dict[str, JsonValue] = Field(default_factory=dict)
    calib_samples: int | None = Field(default=None, ge=1)
    calib_select: Literal["random", "stratified", "coverage"] | None = None
    half: bool = False
    convert_to: str | None = None
    seed: int = Field(default=0, ge=0)


@dataclass(frozen=True, kw_only=True)
class VerbGraph:
    """A graph, the node whose result is delivered, and the node that does what the verb says."""

    graph: Graph
    result: str
    main: str


def graph_of(
    request: VerbRequest, inputs: Mapping[str, ModelBundle], dataset: Dataset | None, target: Target | None
) -> VerbGraph:
    """The graph that answers a request about opened models.

    Args:
        request: What was asked.
        inputs: The model as `MODEL`; for `distill` the teacher as `TEACHER`, and further ones by other names.
        dataset: None without data.
        target: None without a device.

    Raises:
        UserError: A model of the wrong kind, or data that the verb needs and does not have.
    """
    model = inputs[MODEL]
    if request.verb != "quantize" and model.kind is not BundleKind.TORCH:
        raise UserError(
            f"{request.model.path} holds an {model.kind.upper()} graph, and `{request.verb}` takes a PyTorch model.",
            hint="give the package or the model file that the graph was exported from",
        )
    if request.verb == "distill":
        nodes = _distill(request, inputs, dataset)
    else:
        draw = {"prune": _prune, "quantize": _quantize, "export": _export}[request.verb]
        nodes = draw(request, model, dataset, target)
    kinds = {name: bundle.kind for name, bundle in inputs.items()}
    main = request.verb if request.convert_to is None else "convert"
    return VerbGraph(graph=Graph(inputs=kinds, nodes=tuple(nodes)), result=nodes[-1].name, main=main)


def _distill(request: VerbRequest, inputs: Mapping[str, ModelBundle], dataset: Dataset | None) -> list[Node]:
    if dataset is None:
        raise UserError("Training needs images.", hint="--data FOLDER_OR_NPZ")
    training, nodes = request.training, []
    ports: dict[str, tuple[str, ...]] = {"student": (f"@{MODEL}",)}
    if request.teacher_logits is not None:
        training, _ = with_stored_logits(training, request.teacher_logits)
    objectives = _objectives(request)
    images, fresh = trained_images(dataset, objectives), starts_fresh(request.model)
    defaults = train_config(
        training,
        epochs=epochs_for(training, images) if fresh else recover_epochs_for(training, images),
        fresh=fresh,
        size=inputs[MODEL].model.preprocessing.size,
        images=images,
    )
    defaults["teacher_cache_mib"] = MOST_ANSWERS_MIB
    if any(request.config.get(name) for name in ("mixup", "cutmix", "hard")) or trains_teacher(_named(request.config)):
        defaults["teacher_views"] = 0  # images or the teacher change in each step, so there are no views to keep
    if "objective" in request.config:
        defaults.pop("objectives", None)  # a field comes before the flag
    if request.teacher_logits is not None:
        nodes.append(_stored_logits(request.teacher_logits, inputs, defaults | request.config))
        ports["answers"] = (LOGITS,)
    if TEACHER in inputs:
        ports["teacher"] = (f"@{TEACHER}",)
    further = tuple(f"@{name}" for name in inputs if name not in (MODEL, TEACHER))
    if further:
        ports["teachers"] = further
    if dataset.pool is not None:
        nodes.append(_gathering(request, inputs, objectives))
        ports["pool"] = (GATHERED,)
    return [*nodes, Node(name="distill", stage="distill", config=defaults | request.config, inputs=ports)]


def _named(config: Mapping[str, JsonValue]) -> list[str]:
    """Objectives that the fields of a training name; what is no name is left to the stage, which refuses it."""
    listed = config.get("objectives")
    terms = [term.get("name") for term in listed if isinstance(term, dict)] if isinstance(listed, list) else []
    return [name for name in (config.get("objective"), *terms) if isinstance(name, str)]


def _stored_logits(path: str, inputs: Mapping[str, ModelBundle], config: Mapping[str, JsonValue]) -> Node:
    if TEACHER in inputs:
        raise UserError(
            "There are a teacher and stored logits, and a student learns from the one or the other.",
            hint="leave out --teacher or --teacher-logits",
        )
    pixels = inputs[MODEL].model.preprocessing.plain()
    stored: dict[str, JsonValue] = {"path": path, "preprocessing": pixels, "augment": config["augment"]}
    return Node(name=LOGITS, stage=STORED, config=stored)


def _objectives(request: VerbRequest) -> tuple[str, ...]:
    """Names of those that the student is trained with: a field comes before the flag."""
    given = {name: request.config[name] for name in ("objective", "objectives") if name in request.config}
    if not given:
        return objective_names(request.training)
    return tuple(term.name for term in TrainConfig.parse(given, "distill").terms())


def _gathering(request: VerbRequest, inputs: Mapping[str, ModelBundle], objectives: Sequence[str]) -> Node:
    """The teacher's choice from the pool; a student that has learned already is asked with it."""
    if TEACHER not in inputs:
        raise UserError(
            "Images without labels are chosen by a teacher, and there is none.",
            hint="--teacher MODEL, or leave --unlabelled out",
        )
    asked: dict[str, tuple[str, ...]] = {"teacher": (f"@{TEACHER}",)}
    if not starts_fresh(request.model):
        asked["student"] = (f"@{MODEL}",)
    return Node(name=GATHERED, stage="gather", config=gathering(objectives), inputs=asked)


def _prune(request: VerbRequest, model: ModelBundle, dataset: Dataset | None, target: Target | None) -> list[Node]:
    defaults: dict[str, JsonValue] = {}
    measured = request.config.get("follow") == "measured"
    if target is not None:
        defaults |= {"channel_multiple": target.channel_multiple, "kernel_block": kernel_block(target)}
        if {"budget_ms", "follow"} & request.config.keys():
            defaults["precision"] = likely_precision(target.predictable, measured=target.measured_here)
            if not measured:
                defaults["latency_model"] = latency_model_from_target(target).plain()
    inputs = {"model": (f"@{MODEL}",)}
    nodes = []
    if measured:
        given = defaults | request.config
        config = table_config(_needed(target), cast(Precision, given.get("precision")))
        config["channel_multiple"] = given["channel_multiple"]
        nodes.append(Node(name=LATENCY_TABLE, stage=LATENCY_TABLE, config=config, inputs=inputs))
        inputs = inputs | {"latency_table": (LATENCY_TABLE,)}
    importance = str(request.config.get("importance", PruneConfig.model_fields["importance"].default))
    needs = needs_of(importance)
    if Need.IMAGES in needs and dataset is None:
        blind = ", ".join(importances_without(frozenset({Need.IMAGES})))
        raise UserError(
            f"The importance {importance!r} looks at images, and there are none.",
            hint=f"--data FOLDER_OR_NPZ, or one of weights alone: {blind}",
        )
    if Need.TEACHER in needs:
        inputs["teacher"] = (f"@{MODEL}",)  # the whole network is what the cut one must match
    return [*nodes, Node(name="prune", stage="prune", config=defaults | request.config, inputs=inputs)]


def _quantize(request: VerbRequest, model: ModelBundle, dataset: Dataset | None, target: Target | None) -> list[Node]:
    target = _needed(target)
    config: dict[str, JsonValue] = {"scheme": request.config.get("scheme") or _scheme_for(target), **request.config}
    if config["scheme"] != "weight-only":
        config.setdefault("reduce_range", saturates(target))
        if dataset is not None and config.get("max_drop") is not None:
            config.setdefault("judged_on", "select")
    if dataset is None and request.calib_samples is not None:
        raise UserError("Calibration samples are drawn from images, and there are none.", hint="--data FOLDER_OR_NPZ")
    if dataset is None and config["scheme"] != "weight-only":
        raise UserError(
            f"The scheme {config['scheme']!r} finds the ranges of activations on images, and there are none.",
            hint="--data FOLDER_OR_NPZ (a few hundred images do), or --scheme weight-only",
        )
    nodes = _samples(request, dataset)
    source = f"@{MODEL}"
    if model.kind is BundleKind.TORCH:
        nodes.append(_exported("export", {"opset": best_opset(target)}, dataset))
        source = "export"
    inputs = {"model": (source,)} | ({"calibration": (SAMPLES,)} if dataset is not None else {})
    return [*nodes, Node(name="quantize", stage="quantize", config=config, inputs=inputs)]


def _export(request: VerbRequest, model: ModelBundle, dataset: Dataset | None, target: Target | None) -> list[Node]:
    if request.convert_to is not None:
        return _converted(request, request.convert_to, dataset)
    config = {"opset": best_opset(_needed(target))} | request.config
    nodes = [*_samples(request, dataset), _exported("export", config, dataset)]
    if request.half:
        inputs = {"model": ("export",)} | ({"samples": (SAMPLES,)} if dataset is not None else {})
        nodes.append(Node(name="fp16", stage="fp16", inputs=inputs))
    return nodes


def _converted(request: VerbRequest, runtime: str, dataset: Dataset | None) -> list[Node]:
    """The convert node, behind the FP32 export where the converter reads ONNX."""
    nodes = _samples(request, dataset)
    source = f"@{MODEL}"
    if CONVERTERS.get(runtime).takes is BundleKind.ONNX:
        nodes.append(_exported("export", {}, dataset))
        source = "export"
    inputs = {"model": (source,)} | ({"samples": (SAMPLES,)} if dataset is not None else {})
    return [*nodes, Node(name="convert", stage="convert", config={"to": runtime} | request.config, inputs=inputs)]


def _samples(request: VerbRequest, dataset: Dataset | None) -> list[Node]:
    if dataset is None:
        return []
    config = sampling(dataset, request.calib_samples, request.calib_select)
    return [Node(name=SAMPLES, stage="calibration", config=config, inputs={"model": (f"@{MODEL}",)})]


def _exported(name: str, config: Mapping[str, Any], dataset: Dataset | None) -> Node:
    inputs = {"model": (f"@{MODEL}",)} | ({"samples": (SAMPLES,)} if dataset is not None else {})
    return Node(name=name, stage="export", config=dict(config), inputs=inputs)


def _needed(target: Target | None) -> Target:
    if target is None:
        raise UserError("It matters for which device.", hint="--target host; see `edgekd targets`")
    return target


def _scheme_for(target: Target) -> str:
    """The scheme of the target's first runtime that has INT8."""
    for support in target.runtimes:
        if support.scheme is not None and support.runtime not in CONVERTERS:
            return support.scheme
    raise UserError(f"No runtime of {target.name} runs INT8.", hint="choose a form: --scheme ort-u8s8, for example")
