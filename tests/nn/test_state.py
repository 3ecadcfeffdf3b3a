from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from edgekd.errors import UserError
from edgekd.nn.state import bare_name, load_state_, state_from_checkpoint, state_from_file
from edgekd.testing.toys import toy_cnn


def test_a_plain_state_dict_is_taken_without_a_note() -> None:
    state, notes = state_from_checkpoint(toy_cnn().state_dict(), "file")
    assert state.keys() == toy_cnn().state_dict().keys()
    assert notes == ()


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "net", "model_state_dict"])
def test_a_wrapped_state_dict_is_unwrapped_with_a_note(wrapper: str) -> None:
    state, notes = state_from_checkpoint({"epoch": 3, wrapper: toy_cnn().state_dict()}, "file")
    assert state.keys() == toy_cnn().state_dict().keys()
    assert notes == (f"Took the weights from {wrapper!r} of the checkpoint, which holds epoch, {wrapper}.",)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model."])
def test_prefixes_of_wrappers_are_taken_off_with_a_note(prefix: str) -> None:
    module, source = toy_cnn(), toy_cnn(seed=1)
    notes = load_state_(module, {prefix + name: value for name, value in source.state_dict().items()}, "file")
    assert notes == (f"Took the prefix {prefix!r} off the names of the weights.",)
    assert torch.equal(module.classifier.weight, source.classifier.weight)
    assert bare_name(f"{prefix}fc.weight") == "fc.weight"


def test_a_prefix_that_belongs_to_the_model_stays() -> None:
    module = nn.ModuleDict({"model": nn.Linear(2, 2)})
    assert load_state_(module, module.state_dict(), "file") == ()


def test_what_does_not_fit_is_listed_eight_of_each() -> None:
    state = toy_cnn(classes=5).state_dict()
    del state["stem.0.weight"]
    state |= {f"extra{index}": torch.zeros(1) for index in range(10)}
    with pytest.raises(UserError) as caught:
        load_state_(toy_cnn(), state, "weights.pt")
    message = str(caught.value)
    assert "weights.pt does not fit Residual: 1 missing (stem.0.weight); 10 unexpected (extra0, " in message
    assert "extra7, ...)" in message
    assert "extra8" not in message
    assert "2 of another shape (classifier.weight (5, 16) instead of (4, 16), classifier.bias" in message


def test_weights_of_the_time_before_batches_were_counted_still_load() -> None:
    state = {name: value for name, value in toy_cnn().state_dict().items() if "num_batches" not in name}
    assert load_state_(toy_cnn(seed=1), state, "file") == ()


def test_half_precision_weights_are_widened() -> None:
    module = toy_cnn()
    load_state_(module, {name: value.half() for name, value in toy_cnn().state_dict().items()}, "file")
    assert module.classifier.weight.dtype is torch.float32


@pytest.mark.parametrize(
    ("content", "words"),
    [([1, 2], "a list"), ({}, "a mapping of"), ({"lr": 0.1, "w": torch.zeros(1)}, "a mapping of lr, w")],
)
def test_what_holds_no_weights_is_refused(content: object, words: str) -> None:
    with pytest.raises(UserError, match=f"expected a state dict, names with tensors, but it holds {words}"):
        state_from_checkpoint(content, "file")


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}      ....")
    with pytest.raises(UserError, match="cannot be read"):
        state_from_file(path, safetensors=True)
