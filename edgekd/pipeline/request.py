"""What a user asked for, as data: the head of every `resolved.yaml`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, JsonValue

from edgekd.core.preprocess import Preprocessing
from edgekd.core.report import Budget
from edgekd.core.schema import Schema
from edgekd.nn.overrides import PreprocessingOverrides

SYNTHETIC = "synthetic"
MOST_MIXED = 6
"""32 layers in float; with more, little is left of what INT8 is for."""
MOST_PICKS = 8
"""Searched students that may go on, each on a branch of its own."""

MOST_ROUNDS = 16
"""Rounds of pruning and recovering; each is a training."""

Effort = Literal["quick", "standard", "thorough"]
Student = Literal["search", "prune", "blocks"]
BundleEngines = Literal["twins", "chosen"]


class ModelSource(Schema):
    """Where the trained model is and how to read it.

    Attributes:
        path: The file, as given.
        arch: `timm:NAME`, `package.module:factory` or `edgekd:FAMILY`; None for a `torch.export` program.
        arch_kwargs: Arguments of the factory.
        input_shape: (C, H, W); None takes the architecture's own.
        preprocessing: None takes the architecture's own, which the log then states.
        preprocessing_overrides: Values that come before those; what is left open stays as it is.
        labels: Class names in the order of the logits; empty takes the data's.
        trust_pickle: Allows a whole-module pickle, which can run any code when it is read.
        license: Of the model, as its owner states it; goes into the package. None takes that of a package, if any.
    """

    path: str
    arch: str | None = None
    arch_kwargs: dict[str, JsonValue] = Field(default_factory=dict)
    input_shape: tuple[int, int, int] | None = None
    preprocessing: Preprocessing | None = None
    preprocessing_overrides: PreprocessingOverrides = Field(default_factory=PreprocessingOverrides)
    labels: tuple[str, ...] = ()
    trust_pickle: bool = False
    license: str | None = None


class Request(Schema):
    """The question: this model, this device, this data, these limits.

    Attributes:
        data: An image folder, an `.npz`, a calibration card, `synthetic`, or None for no data at all.
        unlabelled: Further images without labels, in the same forms; the teacher chooses those that students also
            train on.
        teacher_logits: A file with the logits of another teacher on the training images, which students learn from in
            the place of the model: see `edgekd.distill.teacher_file_stage`.
        target: A card's name or path.
        seed: The only source of randomness of the whole run.
    """

    model: ModelSource
    target: str
    data: str | None = None
    unlabelled: str | None = None
    teacher_logits: str | None = None
    budget: Budget = Field(default_factory=Budget)
    seed: int = Field(default=0, ge=0)


class Options(Schema):
    """How hard and in which way to try. Every field has a flag of the same name.

    Attributes:
        students: `search` looks for a small architecture and distils it, `prune` cuts the teacher and lets it recover,
            `blocks` replaces blocks of the teacher by cheaper ones; empty leaves only what needs no training.
        picks: How many searched students go on, each on a branch of its own.
        evaluations: Architectures that the search scores.
        space: Search space; None chooses by the input size.
        searcher: How the search goes through the space; None chooses by how many students fit.
        proxy: How the search ranks architectures that fit the budget.
        objective: Distillation objective, or a weighted sum of several: `kd:0.5+dist:1`.
        effort: Training length, in images seen: see `edgekd.pipeline.training`.
        epochs: Overrides `effort`.
        recover_epochs: Epochs after pruning; None is half of `epochs`.
        augment: Varies training images at all.
        flip: Mirrors training images at random; switch it off where left and right differ (digits, text, signs).
        teacher_views: Different augmented views of each training image; the teacher answers once for each.
        hard_augment: Above 0, images are varied as far as student and teacher disagree, up to this share of the full
            range; the teacher is then asked in each step.
        lr: Peak learning rate of a student that starts from random weights; recovery takes a fifth of it.
        prune_keep: Share of multiply-accumulates kept when a searched student is pruned; 1 leaves that stage out, and
            None is three quarters.
        teacher_keep: The same when the teacher itself is pruned; None follows the latency budget.
        importance: How pruning ranks channels: see `edgekd.prune.importance`.
        prune_follow: Where pruning cuts: `macs` about evenly, `latency` where the predicted latency falls most for the
            importance that is lost, `measured` where it falls most by a table that is timed on the target first.
        prune_rounds: Cuts with a recovery after each, instead of one. The engines of each are measured and may be
            chosen; the report draws accuracy and latency over them.
        quantize: `ptq`: INT8 engines are calibrated; `qat`: each has a twin beside it that was also trained, with its
            quantizers in place, for a tenth of the epochs.
        weight_bits: Adds a last training stage after which weights have so many bits (Polino et al., 2018), and engines
            that store them as codes.
        weight_levels: On which levels: `channel`, evenly spaced with a scale per output channel; `bucket`, the paper's,
            evenly spaced in each run of 256 weights; `learned`, weights stay and the levels of each layer are trained.
            None is `channel`.
        precisions: Precisions to build, of those the target runs.
        calib_samples: Calibration images; None takes 300 real ones, or 64 generated ones.
        calib_select: How calibration images are chosen; None takes the classes in turn, or a card's own way. `coverage`
            takes images that the model sees as far apart as possible.
        calib_method: How activation ranges are found; `auto` compares the methods on held-out samples.
        rounding: Of INT8 weights: to the `nearest` level, or so that each layer's output changes least (`reconstruct`).
        equalize: Gives neighbouring layers like weight ranges before INT8.
        mixed: INT8 engines of each form that are added with 1, 2, 4 ... of their most sensitive layers in float.
        opset: ONNX opset; None takes the newest that the target's runtimes read.
        atol: Largest absolute difference of logits that parity accepts, relative to the spread of the logits.
        threads: CPU threads of the measurement.
        duration_s: Measuring time per engine.
        bundle_engines: What is handed over: the chosen engine and its `twins`, engines of the same weights for where it
            cannot run, or the `chosen` one alone. It changes nothing before that.
    """

    students: tuple[Student, ...] = ("search", "prune")
    picks: int = Field(default=1, ge=1, le=MOST_PICKS)
    evaluations: int = Field(default=200, ge=1)
    space: str | None = None
    searcher: str | None = None
    proxy: str | None = None
    objective: str = "kd"
    effort: Effort = "standard"
    epochs: int | None = Field(default=None, ge=1)
    recover_epochs: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=128, ge=2)
    augment: bool = True
    flip: bool = True
    teacher_views: int = Field(default=4, ge=1)
    hard_augment: float = Field(default=0.0, ge=0, le=1)
    lr: float | None = Field(default=None, gt=0)
    prune_keep: float | None = Field(default=None, gt=0, le=1)
    teacher_keep: float | None = Field(default=None, gt=0, lt=1)
    importance: str = "l2"
    prune_follow: Literal["macs", "latency", "measured"] = "macs"
    prune_rounds: int = Field(default=1, ge=1, le=MOST_ROUNDS)
    quantize: Literal["ptq", "qat"] = "ptq"
    weight_bits: Literal[2, 3, 4, 8] | None = None
    weight_levels: Literal["channel", "bucket", "learned"] | None = None
    precisions: tuple[Literal["fp32", "fp16", "int8"], ...] = ("fp32", "fp16", "int8")
    calib_samples: int | None = Field(default=None, ge=1)
    calib_select: Literal["random", "stratified", "coverage"] | None = None
    calib_method: Literal["auto", "minmax", "percentile", "entropy", "mse"] = "auto"
    rounding: Literal["nearest", "reconstruct"] = "nearest"
    equalize: bool = False
    mixed: int = Field(default=0, ge=0, le=MOST_MIXED)
    opset: int | None = Field(default=None, ge=17)
    atol: float = Field(default=1e-3, gt=0)
    rtol: float = Field(default=1e-3, gt=0)
    threads: tuple[int, ...] = (1,)
    warmup_s: float = Field(default=1.0, ge=0)
    duration_s: float = Field(default=5.0, gt=0)
    bundle_engines: BundleEngines = "twins"


def absolute(path: str) -> str:
    """The absolute form of a path given on the command line, so that a resolved recipe runs from anywhere."""
    return str(Path(path).expanduser().resolve())
