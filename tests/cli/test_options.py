"""What the values of flags may look like."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from edgekd.cli.compress import compress, options_from_flags, request_from_flags
from edgekd.cli.options import parse_counts
from edgekd.cli.run import run
from edgekd.errors import UserError
from edgekd.nn.overrides import PreprocessingOverrides


def _flags(*arguments: str) -> dict[str, object]:
    """The flags of a `compress` command line."""
    with compress.make_context("compress", ["m.pt", "--target", "host", *arguments]) as ctx:
        return dict(ctx.params)


def test_thread_counts_are_whole_numbers() -> None:
    assert parse_counts("1, 2", "--threads") == (1, 2)
    assert options_from_flags(_flags("--threads", "2,4")).threads == (2, 4)


@pytest.mark.parametrize("text", ["1.7", "0", "-1", "two", "1,,2", ""])
def test_other_thread_counts_are_refused_rather_than_cut(text: str) -> None:
    with pytest.raises(UserError, match="expected whole numbers from 1"):
        parse_counts(text, "--threads")


def test_preprocessing_flags_keep_what_they_say_and_ask_for_no_size() -> None:
    model = request_from_flags(
        _flags("--arch", "timm:resnet18", "--crop-fraction", "0.9", "--mean", "0.1,0.2,0.3")
    ).model
    assert model.preprocessing is None
    assert model.input_shape is None
    assert model.preprocessing_overrides == PreprocessingOverrides(crop_fraction=0.9, mean=(0.1, 0.2, 0.3))
    assert request_from_flags(_flags()).model.preprocessing_overrides.given == {}


def test_the_help_says_what_the_tolerances_are_relative_to() -> None:
    helped = " ".join(CliRunner().invoke(compress, ["--help"]).output.split())
    assert "tolerance relative to the spread of the logits" in helped


def test_the_help_of_a_verb_lists_options_only_and_the_rest_last() -> None:
    helped = CliRunner().invoke(run, ["--help"]).output
    headings = [line.rstrip(":") for line in helped.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert headings == ["Main", "Running", "Other"]
    assert "--help" in helped.rstrip().splitlines()[-1]
