"""What every rule of the lint must do. Inherit the suite, give the rule and two graphs, and pytest runs it:

class TestMine(LintConformance):
    name = "mine"
    where = Surroundings(target="toy", runtimes=("tensorrt",))

    def firing(self): ...
    def clean(self): ...
"""

from __future__ import annotations

import re
from abc import abstractmethod
from typing import ClassVar

import numpy as np
import onnx

from edgekd.lint.finding import SEVERITIES, Finding
from edgekd.lint.rule import LINTS, Rule, Surroundings
from edgekd.lint.view import LintGraph, normalised
from edgekd.runtimes.onnxruntime import exact_outputs

_TOLERANCE = 1e-4
_SAMPLES = 4


class LintConformance:
    """The contract of `edgekd.lint.rule.Rule`, as tests.

    Attributes:
        name: Registry key.
        where: Surroundings that concern it.
    """

    name: ClassVar[str]
    where: ClassVar[Surroundings]

    @abstractmethod
    def firing(self) -> onnx.ModelProto:
        """A graph that the rule minds."""

    @abstractmethod
    def clean(self) -> onnx.ModelProto:
        """A graph like it that the rule does not mind."""

    def rule(self) -> Rule:
        """A fresh one."""
        return LINTS.get(self.name)()

    def found(self, model: onnx.ModelProto) -> list[Finding]:
        """What it minds in a graph."""
        return list(self.rule().findings(LintGraph(model), self.where))

    def test_it_says_what_it_is_for(self) -> None:
        rule = self.rule()
        assert rule.name == self.name
        assert rule.severity in SEVERITIES
        assert rule.why.endswith(".")
        assert rule.fix.endswith(".")
        assert rule.summary
        assert not rule.summary.endswith(".")
        assert type(rule).__doc__

    def test_it_concerns_only_its_own_runtimes(self) -> None:
        rule = self.rule()
        assert rule.concerned(self.where)
        other = Surroundings(target="toy", runtimes=("unheard-of",))
        assert rule.concerned(other) == (("unheard-of",) if not rule.runtimes else ())

    def test_it_fires_and_names_what_it_found(self) -> None:
        model = self.firing()
        found = self.found(model)
        assert found
        names = {node.name for node in LintGraph(model).model.graph.node} | {""}
        for finding in found:
            assert finding.rule == self.name
            assert finding.node in names
            assert finding.found
            assert not re.search(r"\bNone\b|<|array\(", finding.found)
            assert set(finding.runtimes) <= set(self.where.runtimes)

    def test_it_is_silent_on_the_clean_graph(self) -> None:
        assert self.found(self.clean()) == []

    def test_it_leaves_the_graph_alone(self) -> None:
        model = self.firing()
        before = model.SerializeToString(deterministic=True)
        self.found(model)
        assert model.SerializeToString(deterministic=True) == before

    def test_its_repair_does_what_it_promises_and_changes_no_output(self) -> None:
        rule, model = self.rule(), normalised(self.firing())
        promised = [finding for finding in self.found(model) if finding.fixable]
        assert bool(promised) == rule.repairs
        made = onnx.ModelProto()
        made.CopyFrom(model)
        said = rule.repair_(made)
        assert bool(said) == rule.repairs
        if not rule.repairs:
            assert made == model
            return
        onnx.checker.check_model(made, full_check=True)
        assert [finding for finding in self.found(made) if finding.fixable] == []
        assert len(self.found(made)) <= len(self.found(model)) - len(promised)
        for before, after in zip(exact_outputs(model, feeds(model)), exact_outputs(made, feeds(made)), strict=True):
            assert np.abs(before - after).max() <= _TOLERANCE * max(np.abs(before).max(), 1.0)

    def test_its_repair_leaves_the_clean_graph_alone(self) -> None:
        model = normalised(self.clean())
        made = onnx.ModelProto()
        made.CopyFrom(model)
        assert self.rule().repair_(made) == []
        assert made == model


def feeds(model: onnx.ModelProto, seed: int = 0) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    """Normal noise for every input, open axes filled with a few samples."""
    rng = np.random.default_rng(seed)
    constants = {entry.name for entry in model.graph.initializer}
    shapes = {
        value.name: [axis.dim_value or _SAMPLES for axis in value.type.tensor_type.shape.dim]
        for value in model.graph.input
        if value.name not in constants
    }
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
