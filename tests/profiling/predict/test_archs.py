"""The forms in which networks come."""

from __future__ import annotations

import numpy as np
import pytest

from edgekd.errors import UserError
from edgekd.profiling.predict.archs import ABSENT, arch_table
from edgekd.profiling.predict.macro import fbnet_numbers, fbnet_shapes, fbnet_stage_numbers

CELL = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|none~1|avg_pool_3x3~2|"


def test_a_cell_knows_which_results_nothing_reads() -> None:
    table = arch_table([CELL, CELL.replace("avg_pool_3x3~2", "none~2")])
    assert table.form == "nasbench201"
    assert table.operations.tolist()[0] == [3, 0, 1, 0, 0, 4]
    assert table.unread.tolist() == [[False] * 6, [True, True, True, False, False, False]]


def test_a_cell_knows_what_nothing_but_zeros_reaches() -> None:
    table = arch_table([CELL, CELL.replace("nor_conv_3x3~0", "none~0")])
    assert table.unfed.tolist() == [[False, False, False, False, False, False], [False, False, True, False, True, True]]


def test_positions_of_equal_shape_cost_the_same_and_stages_add_up() -> None:
    one = np.eye(22, dtype=np.int64) + 3  # op 4 at one position each, op 3 elsewhere
    change = fbnet_numbers(one) - fbnet_numbers(np.full((1, 22), 3))
    for group in fbnet_shapes().T:
        members = change[group > 0]
        assert np.allclose(members, members[0])
    assert len(np.unique(change, axis=0)) == fbnet_shapes().shape[1], "positions of other shapes cost something else"
    assert np.all(fbnet_shapes().sum(axis=1) == 1)
    stages = fbnet_stage_numbers(one).reshape(22, -1, 5).sum(axis=1)
    assert np.allclose(stages / stages[0], fbnet_numbers(one) / fbnet_numbers(one)[0])


def test_twenty_two_ids_are_a_network_of_the_fbnet_space_whose_macs_are_known() -> None:
    table = arch_table(["8 " * 22, ("3, " * 22).strip(", "), [0] * 22][:2])
    assert table.form == "fbnet"
    assert table.numbers[1, 0] > table.numbers[0, 0] > 0, "a skip that changes the width is a convolution"


def test_sequences_of_different_length_are_filled_up() -> None:
    table = arch_table([[1, 2, 3], [1]])
    assert table.form == "operations"
    assert table.operations.tolist() == [[1, 2, 3], [1, ABSENT, ABSENT]]


def test_other_numbers_are_features() -> None:
    assert arch_table(np.array([[1e6, 3.0], [2e6, 4.0]])).numbers.shape == (2, 2)
    assert arch_table([[0.5], [1.0]]).form == "features"


@pytest.mark.parametrize(
    ("archs", "message"),
    [
        ([], "at least one network"),
        ("0 1 2", "sequence of networks, got str"),
        (["0 1 2", [0, 1, 2]], "some are strings"),
        (["0 x 2"], "entry 0 is neither"),
        ([CELL.replace("none", "conv_7x7")], "entry 0 is not a NAS-Bench-201 cell"),
        ([[0.5, 1.0], [0.5]], "equally long"),
        ([[float("nan")]], "finite"),
        ([[[1]]], "row of finite numbers"),
    ],
)
def test_what_is_none_of_them_is_named(archs: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        arch_table(archs)  # type: ignore[arg-type]
