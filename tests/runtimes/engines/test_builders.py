from __future__ import annotations

import math

import pytest

from edgekd.runtimes.engines.builders import outputs_in


def test_outputs_are_read_as_the_program_prints_them() -> None:
    text = '[\n  { "name" : "logits"\n  , "dimensions" : "1x4"\n  , "values" : [ 1.5, -2e-05, nan, -inf ]\n  }\n]\n'
    values = outputs_in(text)["logits"]
    assert values[:2] == [1.5, -2e-05]
    assert math.isnan(values[2])
    assert values[3] == -math.inf


def test_an_output_named_like_a_number_keeps_its_name() -> None:
    assert list(outputs_in('[{ "name" : "inference nan", "dimensions" : "1", "values" : [ inf ] }]')) == [
        "inference nan"
    ]


@pytest.mark.parametrize("text", ["", "[", '[{"name": "x"}]'])
def test_a_file_that_was_cut_off_is_an_error(text: str) -> None:
    with pytest.raises((ValueError, KeyError)):
        outputs_in(text)
