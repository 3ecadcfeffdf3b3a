"""What the stages that train have in common: the checks before a training, and what is said of the student after it."""

from __future__ import annotations

from pydantic import JsonValue
from torch import nn

from edgekd.core.bundle import BundleKind, ModelBundle
from edgekd.core.digest import Json
from edgekd.core.stage import Context, Inputs, port
from edgekd.data.dataset import Dataset
from edgekd.errors import UserError
from edgekd.nn.build import WEIGHTS_FILE, is_trainable, module_from_bundle
from edgekd.nn.count import count_macs, count_params
from edgekd.nn.reparam import FUSE, reparameterised
from edgekd.nn.save import bundle_from_module
from edgekd.tasks.classification import calibration_error, negative_log_likelihood, top1
from edgekd.train.answers import Answers, answers_from_bundle, answers_spec
from edgekd.train.config import TrainConfig
from edgekd.train.evaluate_torch import module_agreement, module_logits
from edgekd.train.fit import FitReport
from edgekd.train.loss_plan import plan_loss
from edgekd.train.pool import POOL_PORT, adds_unlabelled, training_data
from edgekd.train.teachers import TEACHER_PORTS, check_teachers, teacher_bundles, teacher_count, teacher_from_inputs

STUDENT_PORTS = {"student": port(BundleKind.TORCH), **TEACHER_PORTS, **POOL_PORT}
_MIB = 1 << 20


def check_student_and_teacher(inputs: Inputs, ctx: Context, config: TrainConfig) -> None:
    """Raises a `UserError` when the student cannot be trained as configured; reads no weights."""
    student = inputs.one("student")
    labelled = ctx.resource("data", Dataset).labelled
    plan = plan_loss(config, teachers=teacher_count(inputs), labelled=labelled, partly=adds_unlabelled(inputs))
    if not is_trainable(student.model):
        raise UserError(
            f"The student (builder {student.model.builder!r}) is frozen: it can be quantized, not trained.",
            hint="give a state dict with --arch, or let a student be searched",
        )
    check_teachers(inputs, plan.objectives(), student)


def networks(inputs: Inputs, ctx: Context) -> tuple[nn.Module, nn.Module | None]:
    """Student and teacher with their weights, on the CPU; the teacher takes the student's images."""
    student = inputs.one("student")
    return module_from_bundle(student, ctx.blobs), teacher_from_inputs(inputs, student.model, ctx)


def stored_answers(inputs: Inputs, ctx: Context, config: TrainConfig) -> Answers | None:
    """The teacher's answers at the port `answers`, None when it is unconnected.

    Raises:
        UserError: They are another teacher's, or belong to other pixels than this training sees.
    """
    bundle = inputs.maybe("answers")
    if bundle is None:
        return None
    student, dataset = inputs.one("student").model, training_data(inputs, ctx)
    teacher = next((teacher for _, teacher in teacher_bundles(inputs)), None)
    spec = answers_spec(config, student.preprocessing, dataset, ctx.seed, teacher, student.labels)
    return answers_from_bundle(bundle, spec, ctx.blobs)


def deployed_form(module: nn.Module, bundle: ModelBundle) -> tuple[nn.Module, ModelBundle]:
    """A student without branches to fuse, and a bundle whose recipe builds it.

    What is asked of single weights (a grid, zeros) does not hold for their sums.
    """
    fused = reparameterised(module)
    if fused is module:
        return module, bundle
    return fused, bundle.model_copy(update={"recipe": bundle.model.with_edit(FUSE)})


def trained_bundle(
    student: nn.Module, before: ModelBundle, ctx: Context, tags: dict[str, JsonValue] | None = None
) -> ModelBundle:
    """The trained student as a bundle, with the recipe that it had before."""
    return bundle_from_module(
        student, recipe=before.model, blobs=ctx.blobs, scratch=ctx.scratch, carry=before, tags=tags
    )


def training_metrics(
    student: nn.Module, teacher: nn.Module | None, bundle: ModelBundle, report: FitReport, ctx: Context
) -> dict[str, Json]:
    """Numbers for the run's report; accuracy is measured on the `select` split, after the last epoch.

    So are the calibration error (15 bins) and the negative log-likelihood in nats: whether its probabilities hold.
    Parameters and multiply-accumulates are those of the deployed form (`edgekd.nn.reparam`).
    """
    dataset, preprocessing = ctx.resource("data", Dataset), bundle.model.preprocessing
    deployed = reparameterised(student)
    metrics: dict[str, Json] = {
        "params_m": count_params(deployed) / 1e6,
        "macs_m": count_macs(deployed, preprocessing.input_shape) / 1e6,
        "size_mib": ctx.path(bundle, WEIGHTS_FILE).stat().st_size / _MIB,
        "seconds": report.seconds,
        "images_per_s": report.images_per_s,
        "train_loss": report.loss,
        "train_accuracy": report.train_accuracy,
    }
    if report.outer_seconds is not None:
        metrics["outer_seconds"] = report.outer_seconds
    if report.supervised_loss is not None:
        metrics["train_supervised_loss"] = report.supervised_loss
    if report.distill_loss is not None:
        metrics["train_distill_loss"] = report.distill_loss
    elif report.distill_losses:
        metrics["train_distill_losses"] = dict(report.distill_losses)
    metrics |= teacher_metrics(report)
    metrics |= {f"concluded_{label}": dict(numbers) for label, numbers in report.concluded.items()}
    if dataset.labelled and dataset.select.labels is not None:
        logits = module_logits(student, dataset.select, preprocessing, ctx.execution)
        metrics["accuracy_select"] = top1(logits, dataset.select.labels)
        metrics["ece_select"] = calibration_error(logits, dataset.select.labels)
        metrics["nll_select"] = negative_log_likelihood(logits, dataset.select.labels)
    if teacher is not None:
        metrics["agreement_select"] = module_agreement(student, teacher, dataset.select, preprocessing, ctx.execution)
    return metrics


def teacher_metrics(report: FitReport) -> dict[str, Json]:
    """Of a teacher that was trained along, its accuracy on the `select` split before and after; else nothing."""
    if report.teacher is None:
        return {}
    found: dict[str, Json] = {
        "teacher_accuracy_select_before": report.teacher.accuracy_before,
        "teacher_accuracy_select": report.teacher.accuracy_after,
    }
    return found if report.teacher.loss is None else found | {"train_teacher_loss": report.teacher.loss}
