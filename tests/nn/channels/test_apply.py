from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edgekd.nn.channels.apply import Axis, keep_channels_, part_at, remove_channels_, why_not_cut
from edgekd.nn.channels.groups import ChannelGroup, Member, head_groups
from tests.prune.nets import Attention, Grouped, Transformer, seeded

KEEP = torch.tensor([0, 2, 3])
IMAGES = torch.randn(2, 6, 5, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(6, 6, 3, padding=1, groups=6),
        nn.BatchNorm2d(6),
        nn.BatchNorm2d(6, affine=False),
        nn.InstanceNorm2d(6, affine=True),
        nn.PReLU(6),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_a_layer_that_works_per_channel_gives_the_kept_channels(layer: nn.Module) -> None:
    layer.eval()
    expected = layer(IMAGES)[:, KEEP]
    keep_channels_(layer, "out", KEEP)
    assert torch.allclose(layer(IMAGES[:, KEEP]), expected, atol=1e-6)


@pytest.mark.parametrize("axis", ["out", "in"])
@pytest.mark.parametrize("layer", [nn.Conv2d(6, 6, 3), nn.Linear(6, 6)], ids=["convolution", "linear"])
def test_a_dense_layer_keeps_the_right_side(layer: nn.Conv2d | nn.Linear, axis: Axis) -> None:
    images = IMAGES if isinstance(layer, nn.Conv2d) else IMAGES[:, :, 0, 0]
    silent = torch.zeros_like(images)
    silent[:, KEEP] = images[:, KEEP]
    expected = layer(images)[:, KEEP] if axis == "out" else layer(silent)
    keep_channels_(layer, axis, KEEP)
    assert torch.allclose(layer(images if axis == "out" else images[:, KEEP]), expected, atol=1e-5)
    assert f"{axis}_" in repr(layer) or "3" in repr(layer)


@pytest.mark.parametrize("layer", [nn.LayerNorm(6), nn.GroupNorm(1, 6)], ids=lambda layer: type(layer).__name__)
def test_a_norm_over_channels_equals_a_new_one_of_the_kept_width(layer: nn.LayerNorm | nn.GroupNorm) -> None:
    nn.init.normal_(layer.weight)
    images = IMAGES[:, KEEP, 0, 0]
    keep = layer.weight[KEEP].detach().clone()
    keep_channels_(layer, "out", KEEP)
    plain = (images - images.mean(1, keepdim=True)) / (images.var(1, correction=0, keepdim=True) + layer.eps).sqrt()
    assert torch.allclose(layer(images), plain * keep, atol=1e-5)


def test_parameters_stay_parameters_and_frozen_ones_frozen() -> None:
    layer = nn.Linear(6, 6).requires_grad_(False)
    keep_channels_(layer, "out", KEEP)
    assert isinstance(layer.weight, nn.Parameter)
    assert not layer.weight.requires_grad
    assert (layer.out_features, layer.in_features) == (3, 6)


def test_cutting_a_head_gives_the_attention_of_the_others() -> None:
    module = seeded(lambda: Attention(12, heads=3, head_dim=4))  # type: ignore[arg-type]
    assert isinstance(module, Attention)
    module.num_heads = 3
    holder = nn.ModuleDict({"attn": module})
    tokens = torch.randn(2, 5, 12)
    silent = module.proj.weight.detach().clone()
    silent[:, 4:8] = 0
    full = module.proj.weight.detach().clone()
    module.proj.weight = nn.Parameter(silent)
    expected = module(tokens)
    module.proj.weight = nn.Parameter(full)
    remove_channels_(holder, [(head_groups(holder)[0], torch.tensor([1]))])
    assert (module.num_heads, module.attn_dim, module.head_dim) == (2, 8, 4)
    assert torch.allclose(module(tokens), expected, atol=1e-6)


def test_a_bare_parameter_is_cut_along_its_last_real_axis() -> None:
    module = seeded(Transformer)
    before = module.get_parameter("position").clone()
    group = ChannelGroup("position", 16, 1, (Member("position", "out", torch.arange(16), torch.arange(16)),))
    remove_channels_(module, [(group, torch.arange(4))])
    assert torch.equal(module.get_parameter("position"), before[..., 4:])


def test_layers_that_cannot_be_cut_say_why() -> None:
    grouped: Tensor | nn.Module = part_at(seeded(Grouped), "grouped")
    assert isinstance(grouped, nn.Module)
    assert why_not_cut(grouped) == "a convolution of 2 groups"
    assert why_not_cut(nn.GroupNorm(2, 4)) == "a GroupNorm of 2 groups"
    assert why_not_cut(nn.Bilinear(2, 2, 2)) == "a layer of type Bilinear"
    assert why_not_cut(nn.Conv2d(4, 4, 3)) is None
