from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekd.core.graph import Graph
from edgekd.core.plan import Action, Plan
from edgekd.core.runner import Runner, RunSettings
from edgekd.core.store import MemoryStore
from edgekd.errors import UserError
from tests.core.fakes import STAGES, chain, graph, ran

QUIET = RunSettings()


def sentences(plan: Plan) -> dict[str, str]:
    return {decision.node: decision.sentence for decision in plan.decisions}


def test_at_first_everything_runs_for_the_first_time_and_planning_does_nothing(runner: Runner, root: Path) -> None:
    plan = runner.plan(chain("a", "b"), {}, QUIET)
    assert sentences(plan) == {"n0": "runs: first time", "n1": "runs: first time"}
    assert plan.decision("n0").key is not None
    assert plan.decision("n1").key is None
    assert ran == []
    assert not root.exists()


def test_after_a_run_everything_is_reused(runner: Runner) -> None:
    runner.run(chain("a", "b"), {}, QUIET)
    plan = runner.plan(chain("a", "b"), {}, QUIET)
    assert sentences(plan) == {"n0": "reused: nothing changed", "n1": "reused: nothing changed"}


def test_a_change_is_named_and_what_hangs_on_it_waits(runner: Runner) -> None:
    runner.run(chain("a", "b", "c"), {}, QUIET)
    assert sentences(runner.plan(chain("x", "b", "c"), {}, QUIET)) == {
        "n0": 'runs: config.letters "a" -> "x"',
        "n1": "waits: depends on n0, which will run; reused if its result does not change",
        "n2": "waits: depends on n1, which may run; reused if its result does not change",
    }


def test_a_change_of_its_own_is_named_even_where_a_node_waits(runner: Runner) -> None:
    runner.run(chain("a", "b"), {}, QUIET)
    plan = runner.plan(chain("x", "y"), {}, QUIET)
    assert plan.decision("n1").sentence == 'runs: config.letters "b" -> "y"'


def test_a_changed_input_is_named_with_the_node_it_comes_from(runner: Runner) -> None:
    fork: list[dict[str, Any]] = [
        {"name": "a", "stage": "append"},
        {"name": "b", "stage": "append", "config": {"letters": "b"}},
    ]

    def fed_by(source: str) -> Graph:
        return graph(*fork, {"name": "z", "stage": "append", "inputs": {"model": source}})

    runner.run(fed_by("a"), {}, QUIET)
    assert runner.plan(fed_by("b"), {}, QUIET).decision("z").sentence == "runs: input model changed (node b)"


def test_changes_are_counted_from_the_last_run_also_when_that_reused_an_older_result(runner: Runner) -> None:
    for letters in ("a", "b", "a"):
        runner.run(chain(letters), {}, QUIET)
    assert runner.plan(chain("c"), {}, QUIET).decision("n0").sentence == 'runs: config.letters "a" -> "c"'


def test_several_reasons_stand_in_one_sentence(runner: Runner) -> None:
    runner.run(chain("a"), {}, QUIET)
    sentence = runner.plan(chain("b"), {}, RunSettings(seed=1)).decision("n0").sentence
    assert sentence == 'runs: config.letters "a" -> "b"; seed 0 -> 1'


def test_what_is_made_anew_each_time_says_so(runner: Runner) -> None:
    measured = graph(
        {"name": "a", "stage": "append"}, {"name": "m", "stage": "measure", "inputs": {"candidates": ["a"]}}
    )
    assert runner.plan(measured, {}, QUIET).decision("m").sentence == "runs: not cacheable (a measurement)"
    runner.run(measured, {}, QUIET)
    assert runner.plan(measured, {}, QUIET).decision("m").sentence == "runs: not cacheable (a measurement)"


def test_rebuild_is_a_reason(runner: Runner) -> None:
    runner.run(chain("a", "b"), {}, QUIET)
    assert sentences(runner.plan(chain("a", "b"), {}, RunSettings(rebuild=frozenset({"n0"})))) == {
        "n0": "runs: rebuild asked for",
        "n1": "waits: depends on n0, which will run; reused if its result does not change",
    }


def test_a_result_that_was_thrown_away_says_so(runner: Runner, root: Path) -> None:
    runner.run(chain("a"), {}, QUIET)
    for file in (root / "records").rglob("*.json"):
        file.unlink()
    assert runner.plan(chain("a"), {}, QUIET).decision("n0").sentence == "runs: its result is no longer in the store"


def test_an_unreadable_note_is_a_reason_and_no_crash(runner: Runner, root: Path) -> None:
    runner.run(chain("a", "b"), {}, QUIET)
    for file in (root / "nodes").iterdir():
        file.write_text("{")
    for decision in runner.plan(chain("x", "y"), {}, QUIET).decisions:
        assert decision.action is Action.RUN
        assert "is not valid JSON" in decision.sentence


def test_a_plan_survives_json_and_knows_its_nodes(runner: Runner) -> None:
    plan = runner.plan(chain("a", "b"), {}, QUIET)
    assert Plan.parse(plan.plain(), "plan") == plan
    with pytest.raises(UserError, match="No node 'm0' here"):
        plan.decision("m0")


letters = st.lists(st.sampled_from(["a", "b"]), min_size=3, max_size=3)


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=st.lists(letters, max_size=4), asked=letters, rebuild=st.sets(st.sampled_from(["n0", "n1", "n2"])))
def test_a_plan_holds_what_it_promises(
    tmp_path_factory: pytest.TempPathFactory, history: list[list[str]], asked: list[str], rebuild: set[str]
) -> None:
    runner = Runner(STAGES, MemoryStore(tmp_path_factory.mktemp("store")))
    for earlier in history:
        runner.run(chain(*earlier), {}, QUIET)
    wanted = RunSettings(rebuild=frozenset(rebuild))
    plan, report = runner.plan(chain(*asked), {}, wanted), runner.run(chain(*asked), {}, wanted)
    for decision in plan.decisions:
        done = report.node(decision.node).action
        if decision.action is Action.REUSE:
            assert done is Action.REUSE
        if decision.action is Action.RUN and decision.key is not None:
            assert done is Action.RUN
        if decision.node in rebuild:
            assert decision.action is done is Action.RUN
