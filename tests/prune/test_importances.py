"""Every importance against its formula, computed another way, and the conformance suite."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgekd.errors import BuildFailed, EdgekdError, UserError
from edgekd.nn.channels.analysis import analyse
from edgekd.nn.channels.apply import part_at
from edgekd.nn.channels.groups import ChannelGroup, Member
from edgekd.prune.importance import IMPORTANCES, Evidence, Need, build_importance, importances_without, scores_of
from edgekd.prune.importances.kd import TEMPERATURE, _factor_times
from edgekd.testing.conformance_importance import ImportanceConformance
from edgekd.testing.toys import toy_cnn
from tests.prune.nets import Dense, PaddedShortcut, Transformer, seeded

SHAPE = (3, 8, 8)


class TestL2(ImportanceConformance):
    name = "l2"


class TestL1(ImportanceConformance):
    name = "l1"


class TestBatchNormScale(ImportanceConformance):
    name = "bn"


class TestLamp(ImportanceConformance):
    name = "lamp"


class TestFlap(ImportanceConformance):
    name = "flap"


class TestTaylor(ImportanceConformance):
    name = "taylor"


class TestFisher(ImportanceConformance):
    name = "fisher"


class TestDistillation(ImportanceConformance):
    name = "kd"


def test_every_registered_importance_is_held_by_the_suite() -> None:
    assert {kind.name for kind in ImportanceConformance.__subclasses__()} == set(IMPORTANCES)


def images(n: int = 6) -> Tensor:
    return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(3))


LABELS = torch.tensor([0, 1, 2, 3, 0, 1])


def scaled_reads(module: nn.Module, group: ChannelGroup, unit: int, factor: float) -> nn.Module:
    """A copy in which everything that reads the unit sees `factor` times of it."""
    changed = copy.deepcopy(module)
    for member in group.members:
        part = part_at(changed, member.path)
        if member.axis == "in" and isinstance(part, nn.Conv2d | nn.Linear):
            part.weight.data[:, member.channels_of(torch.tensor([unit]))] *= factor
    return changed


def slope(module: nn.Module, group: ChannelGroup, unit: int, loss: object) -> Tensor:
    """(N,) derivative of each image's loss by the gate, by central differences."""
    step = 1e-5
    with torch.no_grad():
        high, low = (scaled_reads(module, group, unit, 1 + s)(images().double()) for s in (step, -step))
        return (loss(high) - loss(low)) / (2 * step)  # type: ignore[operator, no-any-return]


@pytest.mark.parametrize("make", [toy_cnn, *(lambda kind=kind: seeded(kind) for kind in (Dense, Transformer))])
def test_taylor_and_fisher_are_what_differences_of_the_masked_network_say(make: object) -> None:
    module = make().double()  # type: ignore[operator]
    groups = analyse(copy.deepcopy(module).float(), SHAPE).groups
    evidence = Evidence(module=module, images=images().double(), labels=LABELS, batch_size=4)
    taylor, fisher = (build_importance(name).scores(evidence, groups) for name in ("taylor", "fisher"))
    for group in groups:
        unit = group.units - 1
        slopes = slope(module, group, unit, lambda logits: F.cross_entropy(logits, LABELS, reduction="none"))
        # The loss is taken in float32, as it is for half precision.
        torch.testing.assert_close(taylor[group.name][unit], slopes.mean().square(), rtol=1e-3, atol=1e-9)
        torch.testing.assert_close(fisher[group.name][unit], slopes.square().mean() / 2, rtol=1e-3, atol=1e-9)


def test_the_factor_of_the_softmax_is_a_square_root_of_its_hessian() -> None:
    p = torch.randn(1, 5, dtype=torch.float64).softmax(1)
    columns = torch.cat([_factor_times(p, e[None]) for e in torch.eye(5, dtype=torch.float64)]).T
    torch.testing.assert_close(columns @ columns.T, torch.diag(p[0]) - p.T @ p)


def test_kd_foresees_the_loss_of_a_network_that_is_its_own_teacher() -> None:
    module = toy_cnn()
    groups = analyse(module, SHAPE).groups
    many = torch.randn(200, *SHAPE, generator=torch.Generator().manual_seed(5))
    found = build_importance("kd").scores(Evidence(module=module, images=many, teacher=module), groups)
    taylor_like = []
    for group in groups:
        for unit in range(0, group.units, 3):
            with torch.no_grad():
                nearly = scaled_reads(module, group, unit, 0.9)(many) / TEMPERATURE
                loss = F.kl_div(
                    nearly.log_softmax(1), (module(many) / TEMPERATURE).log_softmax(1), reduction="batchmean",
                    log_target=True,
                )  # fmt: skip
            # A tenth of the way costs a hundredth of a second-order increase.
            taylor_like.append((float(loss) * TEMPERATURE**2 * 100, float(found[group.name][unit])))
    true, predicted = torch.tensor(taylor_like, dtype=torch.float64).T
    assert torch.corrcoef(torch.stack([true, predicted]))[0, 1] > 0.95
    assert float(predicted.sum() / true.sum()) == pytest.approx(1, abs=0.15)


def test_kd_prefers_to_lose_what_pulls_the_student_away_from_its_teacher() -> None:
    teacher = toy_cnn()
    groups = analyse(teacher, SHAPE).groups
    group = groups[0]
    # The teacher lacks unit 0, which is the only difference: without it the student would be equal to it.
    evidence = Evidence(module=teacher, images=images(), teacher=scaled_reads(teacher, group, 0, 0.0))
    scores = build_importance("kd").scores(evidence, groups)[group.name]
    assert scores.argmin() == 0
    assert scores[0] < 0


def test_lamp_gives_the_largest_unit_of_every_group_one() -> None:
    module = toy_cnn()
    groups = analyse(module, SHAPE).groups
    found = build_importance("lamp").scores(Evidence(module=module), groups)
    power = build_importance("l2").scores(Evidence(module=module), groups)
    for name, scores in found.items():
        assert float(scores.max()) == pytest.approx(1.0)
        least = power[name].argmin()
        assert float(scores[least]) == pytest.approx(float(power[name][least] / power[name].sum()))


def test_flap_is_the_variance_that_the_readers_receive() -> None:
    module = seeded(PaddedShortcut)
    group = next(group for group in analyse(module, SHAPE).groups if group.name == "first.conv1")
    seen: list[Tensor] = []
    reader = module.get_submodule("first.conv2")
    handle = reader.register_forward_pre_hook(lambda part, args: seen.append(args[0]))
    with torch.no_grad():
        module(images())
    handle.remove()
    found = build_importance("flap").scores(Evidence(module=module, images=images(), batch_size=4), [group])
    variance = seen[0].double().var((0, 2, 3), correction=0)
    power = reader.weight.detach().double().square().sum((0, 2, 3))  # type: ignore[operator]
    torch.testing.assert_close(found[group.name], variance * power)


def test_a_constant_unit_is_nothing_to_flap() -> None:
    module = seeded(PaddedShortcut)
    with torch.no_grad():
        module.get_parameter("first.bn1.weight")[2] = 0
        module.get_parameter("first.bn1.bias")[2] = 3.0
    groups = [group for group in analyse(module, SHAPE).groups if group.name == "first.conv1"]
    scores = build_importance("flap").scores(Evidence(module=module, images=images()), groups)["first.conv1"]
    assert float(scores[2]) == pytest.approx(0.0, abs=1e-9 * float(scores.max()))


def test_scores_of_weights_have_mean_one_and_those_of_losses_keep_their_scale() -> None:
    module = toy_cnn()
    groups = analyse(module, SHAPE).groups
    weights = scores_of(build_importance("l1"), Evidence(module=module), groups)
    assert all(float(scores.mean()) == pytest.approx(1.0) for scores in weights.values())
    evidence = Evidence(module=module, images=images(), labels=LABELS)
    fisher = build_importance("fisher")
    assert all(torch.equal(a, b) for a, b in zip(
        scores_of(fisher, evidence, groups).values(), fisher.scores(evidence, groups).values(), strict=True
    ))  # fmt: skip


def test_a_group_of_dead_units_is_scored_evenly() -> None:
    module = toy_cnn()
    groups = analyse(module, SHAPE).groups
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    assert all(
        torch.equal(scores, torch.ones_like(scores))
        for scores in scores_of(build_importance("l2"), Evidence(module=module), groups).values()
    )


def test_a_score_that_is_not_finite_is_refused_with_the_group() -> None:
    module = toy_cnn()
    groups = analyse(module, SHAPE).groups
    evidence = Evidence(module=module, images=images() * 1e38, labels=LABELS)
    with pytest.raises(BuildFailed, match=r"importance 'fisher' is not finite for the group") as caught:
        scores_of(build_importance("fisher"), evidence, groups)
    assert "preprocessing" in str(caught.value.hint)


def test_images_that_were_not_declared_are_an_error() -> None:
    module = toy_cnn()
    with pytest.raises(EdgekdError, match="did not declare"):
        build_importance("flap").scores(Evidence(module=module), analyse(module, SHAPE).groups)


class Mixing(nn.Module):
    """Its second layer reads the whole batch as one row."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.first(x).sum(0, keepdim=True)).expand(len(x), -1)
        return y


def test_a_layer_that_mixes_the_images_is_named() -> None:
    both = torch.arange(6)
    group = ChannelGroup(
        name="first", units=6, width=1, members=(Member("first", "out", both, both), Member("second", "in", both, both))
    )
    evidence = Evidence(module=Mixing(), images=torch.randn(4, 4), labels=torch.tensor([0, 1, 2, 0]))
    with pytest.raises(BuildFailed, match="second reads 1 rows for 4 images"):
        build_importance("fisher").scores(evidence, [group])


def test_an_unknown_name_is_answered_with_the_near_one() -> None:
    with pytest.raises(UserError, match=r"Unknown importance 'tailor'\. Did you mean 'taylor'"):
        build_importance("tailor")


def test_those_that_need_no_labels_are_known() -> None:
    free = importances_without(frozenset({Need.LABELS}))
    assert "kd" in free
    assert not {"taylor", "fisher"} & set(free)
