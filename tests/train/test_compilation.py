"""A compiled student: only where it pays and computes the same, and never at the price of a crash or a changed module.

The backend "eager" of torch.compile traces and guards like any other and calls PyTorch's own kernels, so these tests
need no C++ compiler; what the clock says decides.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgekd.data.dataset import Dataset
from edgekd.testing.harness import make_context
from edgekd.testing.toys import toy_cnn
from edgekd.train import compilation, fit
from edgekd.train.checkpoint import FILE
from edgekd.train.compilation import Call, compile_student
from edgekd.train.fit import distil_
from edgekd.train.loop import Loop
from tests.train.conftest import PREPROCESSING, Train, config
from tests.train.test_resume import EVERY_STEP, Interrupted

Compiler = Callable[[Call], Call]


class Clock:
    """Each look takes a second, and a thousandth of it once something was compiled that is fast."""

    def __init__(self) -> None:
        self.now, self.tick = 0.0, 1.0

    def __call__(self) -> float:
        self.now += self.tick
        return self.now


def through(backend: Any, clock: Clock, tick: float, passes: list[int]) -> Compiler:
    """A compiler of a backend, whose work makes a pass take so long; counts the calls of what it compiled."""

    def compiler(call: Call) -> Call:
        compiled, clock.tick = torch.compile(call, backend=backend, dynamic=False), tick

        def counted(images: Tensor) -> Tensor:
            passes.append(len(images))
            return compiled(images)

        return counted

    return compiler


@pytest.fixture
def compiling(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """Sets the backend and how fast its passes are; returns the sizes of the batches that were run compiled."""

    def choose(backend: Any = "eager", tick: float = 1e-3, cost_s: float = 0.0) -> list[int]:
        clock, passes = Clock(), []  # type: tuple[Clock, list[int]]
        chosen = partial(compile_student, compiler=through(backend, clock, tick, passes), clock=clock)
        monkeypatch.setattr(fit, "compile_student", chosen)
        monkeypatch.setattr(compilation, "COST_S", cost_s)
        return passes

    return choose


def decision(report: fit.FitReport) -> str:
    [said] = [line for line in report.decisions if "compiled" in line]
    return said


class Dropping(nn.Module):
    """Needs random numbers and keeps statistics; batches of 64 images by 24 have two sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.drop = toy_cnn(seed=1), nn.Dropout(0.3)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.body(self.drop(images))
        return logits


@pytest.mark.parametrize("options", [{}, {"precision": "bf16-mixed"}, {"accumulate": 2}], ids=str)
def test_a_faster_student_is_compiled_and_ends_with_the_same_weights(
    train: Train, compiling: Callable[..., list[int]], options: dict[str, Any]
) -> None:
    passes = compiling()
    usual = {"batch_size": 24, "epochs": 2, **options}
    student, report, _ = train(student=Dropping(), folder="auto", compile="auto", **usual)
    assert decision(report).startswith("The student was compiled: a forward and backward pass of ")
    assert "takes 1 ms instead of 1e+03 ms" in decision(report)
    assert len(passes) == 2 + 6 + 6 * options.get("accumulate", 1), "two sizes, a measurement, and the steps"
    plain, _, _ = train(student=Dropping(), folder="off", **usual)
    assert student.state_dict().keys() == plain.state_dict().keys()
    for name, value in student.state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[name], rtol=1e-3, atol=1e-4)


def test_a_slower_student_stays_as_it_is_and_nothing_is_changed_by_the_trial(
    train: Train, compiling: Callable[..., list[int]]
) -> None:
    passes = compiling(tick=0.97)
    student, report, _ = train(student=Dropping(), folder="auto", compile="auto", batch_size=24)
    assert decision(report).startswith("The student was not compiled: a forward and backward pass of 22 images takes")
    assert passes == [22, 21] + 6 * [22]
    plain, expected, _ = train(student=Dropping(), folder="off", batch_size=24)
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in student.state_dict().items())
    assert report.loss == expected.loss


def test_a_training_that_is_too_short_to_win_the_time_back_tries_nothing(
    train: Train, compiling: Callable[..., list[int]]
) -> None:
    passes = compiling(cost_s=7.0)
    _, report, _ = train(compile="auto")
    assert decision(report).startswith("The student was not compiled: what is left of the training takes it 12 s")
    assert not passes


def broken(graph: Any, inputs: Any) -> Any:
    raise NotImplementedError("no kernel for this")


def test_a_compiler_that_fails_is_said_and_the_training_goes_on(
    train: Train, compiling: Callable[..., list[int]]
) -> None:
    compiling(backend=broken)
    _, report, _ = train(compile="auto")
    assert decision(report).startswith("The student was not compiled, for the compiler failed: BackendCompilerFailed: ")
    assert "no kernel for this" in decision(report)
    assert report.steps == 12


def wrong(graph: Any, inputs: Any) -> Any:
    return lambda *given: tuple(out * 1.05 if out.is_floating_point() else out for out in graph(*given))


def test_a_compiler_that_computes_something_else_is_not_trusted(
    train: Train, compiling: Callable[..., list[int]]
) -> None:
    compiling(backend=wrong)
    _, report, _ = train(compile="auto")
    assert decision(report).startswith("The student was not compiled, for then it computes something else: 0.05")


def test_where_the_inside_of_the_student_is_read_it_is_not_compiled(
    train: Train, compiling: Callable[..., list[int]]
) -> None:
    passes = compiling()
    _, report, _ = train(objective="at", compile="auto")
    assert decision(report) == "The student was not compiled: 'at' reads what is inside of it, through hooks."
    _, report, _ = train(objective="tgeo", compile="auto", folder="tgeo")
    assert decision(report) == "The student was not compiled: an objective runs it with other weights than its own."
    assert not passes


def test_a_resumed_training_decides_anew_on_a_checkpoint_that_knows_no_compiler(
    tmp_path: Path,
    data: Dataset,
    teacher: nn.Module,
    compiling: Callable[..., list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiling()
    after_step = Loop._after_step

    def cut_off(loop: Loop, epoch: int) -> None:
        after_step(loop, epoch)
        if loop.step == 7:
            raise Interrupted

    options, ctx = config(compile="auto"), make_context(tmp_path / "cut")
    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_after_step", cut_off)
        with pytest.raises(Interrupted):
            distil_(Dropping(), teacher, data, PREPROCESSING, options, ctx, rhythm=EVERY_STEP)
    state = torch.load(ctx.scratch / FILE, weights_only=True)
    assert state["step"] == 7
    assert state["seconds"] > 10, "the trial counts"
    assert not any("_orig_mod" in name for name in state["lesson"])
    compiling(tick=2.0)
    student = Dropping()
    report = distil_(student, teacher, data, PREPROCESSING, options, ctx)
    assert report.resumed_at_step == 7
    assert decision(report).startswith("The student was not compiled: a forward and backward pass")
    whole = Dropping()
    distil_(whole, teacher, data, PREPROCESSING, config(), make_context(tmp_path / "whole"))
    for name, value in student.state_dict().items():
        torch.testing.assert_close(value, whole.state_dict()[name], rtol=1e-3, atol=1e-4)


def test_by_default_nothing_is_compiled(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(loop: Loop) -> str:
        raise AssertionError

    monkeypatch.setattr(fit, "compile_student", never)
    _, report, _ = train(epochs=1)
    assert not any("compiled" in line for line in report.decisions)
