"""Which logit is which class: the model's own order where it has names, else that of the data."""

from __future__ import annotations

from edgekd.core.bundle import ModelBundle
from edgekd.data.dataset import Dataset


def with_same_classes(model: ModelBundle, dataset: Dataset) -> tuple[ModelBundle, Dataset]:
    """The data, its labels numbered as the model's logits, and the model with the data's names where it had none.

    Folders sort their classes by name; the model's order is the one that counts. Data without labels stays as it is.

    Raises:
        UserError: The data has another number of classes than the model, or names that the model does not know.
    """
    if not dataset.labelled:
        return model, dataset
    if model.model.labels:
        dataset = dataset.with_classes(model.model.labels)
    classes = model.outputs[0].shape[-1]
    if isinstance(classes, int):
        dataset.check_classes(classes)
    return named(model, dataset.classes), dataset


def named(model: ModelBundle, labels: tuple[str, ...]) -> ModelBundle:
    """The model with names for its classes, where it had none."""
    if model.model.labels or not labels:
        return model
    return model.model_copy(update={"recipe": model.model.model_copy(update={"labels": labels})})
