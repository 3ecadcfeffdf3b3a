"""LiteRT's session on an interpreter that is a fake; files of the real converter are in tests/export/test_litert.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgekd.errors import UserError
from edgekd.runtimes.engines.litert_values import dequantized, quantized
from edgekd.runtimes.litert import LiteRtSession

FLOAT = {"dtype": np.float32, "quantization": (0.0, 0)}
INT8 = {"dtype": np.int8, "quantization": (0.5, 10)}


class FakeInterpreter:
    """Sums each image; takes and gives what the descriptions say."""

    def __init__(self, told: dict[str, Any], *, delegates: int = 1) -> None:
        self.told, self.delegates, self.fed, self.runs = told, delegates, None, 0

    def get_signature_list(self) -> dict[str, Any]:
        return {"serving_default": {"inputs": ["args_0"], "outputs": ["output_0"]}}

    def get_input_details(self) -> list[dict[str, Any]]:
        return [{"name": "args_0", "index": 0, "shape": np.array([1, 1, 2, 2]), **self.told}]

    def get_output_details(self) -> list[dict[str, Any]]:
        return [{"name": "output_0", "index": 1, "shape": np.array([1, 1]), **self.told}]

    def _get_ops_details(self) -> list[dict[str, str]]:
        return [{"op_name": "SUM"}, {"op_name": "PAD"}, *([{"op_name": "DELEGATE"}] * self.delegates)]

    def set_tensor(self, index: int, value: Any) -> None:
        assert index == 0
        assert value.dtype == self.told["dtype"]
        self.fed = value

    def invoke(self) -> None:
        self.runs += 1
        assert self.fed is not None
        self.answer = self.fed.reshape(1, -1)[:, :1]

    def get_tensor(self, index: int) -> Any:
        assert index == 1
        return self.answer


def session(told: dict[str, Any], *, batch: int | None = None, delegates: int = 1) -> LiteRtSession:
    names = (("images",), ("logits",))
    return LiteRtSession(FakeInterpreter(told, delegates=delegates), threads=1, batch=batch, names=names)


def test_images_of_a_batch_run_one_after_the_other_under_the_names_of_the_bundle() -> None:
    images = np.arange(12, dtype=np.float32).reshape(3, 1, 2, 2)
    with session(FLOAT) as opened:
        found = opened.infer({"images": images})
        runs = opened._interpreter.runs
    assert runs == 3
    np.testing.assert_array_equal(found["logits"], [[0], [4], [8]])


def test_a_fixed_batch_is_checked() -> None:
    with session(FLOAT, batch=2) as opened, pytest.raises(UserError, match="2x1x2x2"):
        opened.infer({"images": np.zeros((3, 1, 2, 2), np.float32)})


def test_an_integer_file_is_fed_steps_and_its_logits_come_back_in_float() -> None:
    with session(INT8) as opened:
        found = opened.infer({"images": np.full((1, 1, 2, 2), 3.1, np.float32)})
    np.testing.assert_allclose(found["logits"], [[3.0]])
    assert found["logits"].dtype == np.float32


def test_rounding_saturates_instead_of_wrapping_around() -> None:
    np.testing.assert_array_equal(quantized(np.array([-1e3, 0, 0.26, 1e3], np.float32), INT8), [-128, 10, 11, 127])
    np.testing.assert_allclose(dequantized(np.array([-128, 10, 127], np.int8), INT8), [-69, 0, 58.5])


def test_a_float_output_is_a_copy() -> None:
    held = np.ones(2, np.float32)
    found = dequantized(held, FLOAT)
    held[:] = 0
    np.testing.assert_array_equal(found, [1, 1])


@pytest.mark.parametrize(("delegates", "provider"), [(1, "XNNPACK"), (0, "built-in kernels")])
def test_the_environment_says_whether_xnnpack_took_the_graph(
    delegates: int, provider: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgekd.runtimes.litert._version", lambda: "2.3.0")
    with session(FLOAT, delegates=delegates) as opened:
        found = opened.environment()
    assert found["provider"] == provider
    assert (found["operators"], found["xnnpack_parts"], found["input_type"]) == (2, delegates, "float32")
