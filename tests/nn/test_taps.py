from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from edgekd.errors import UserError
from edgekd.nn.taps import Taps, find_tap_points
from edgekd.nn.timm import module_from_timm
from edgekd.testing.toys import toy_cnn
from tests.nn.zoo import ConvHead, PaddedShortcut, Tokens, exported, images, swin, vit

SHAPE = (3, 8, 8)
BOTH = frozenset({"embedding", "feature_map"})


def test_the_places_of_our_own_networks_are_the_last_stage_and_the_classifier() -> None:
    points = find_tap_points(toy_cnn(), SHAPE)
    assert (points.classifier, points.feature_map) == ("classifier", "stages")


def test_the_feature_map_is_what_the_block_returns_when_it_adds_outside_of_any_layer() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(toy_cnn().stem)
            self.head = nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.head(self.body(x).mean((2, 3)))
            return out

    assert find_tap_points(Outer(), SHAPE).feature_map == "body"


def test_the_embedding_is_the_input_of_the_classifier() -> None:
    module = toy_cnn()
    output = Taps(module, BOTH, SHAPE)(images())
    assert torch.equal(module.classifier(output.embedding), output.logits)
    assert torch.equal(output.feature_map.mean((2, 3)), output.embedding)
    assert torch.equal(output.logits, module(images()))


def test_a_convolutional_head_gives_the_average_over_its_pixels() -> None:
    module = ConvHead()
    output = Taps(module, BOTH, SHAPE)(images())
    assert find_tap_points(module, SHAPE).classifier == "head"
    assert torch.allclose(output.embedding, module.features(images()).mean((2, 3)))
    assert output.feature_map.shape == (3, 6, 4, 4)


def test_the_feature_map_of_a_transformer_is_the_grid_of_its_last_tokens() -> None:
    module = Tokens().eval()
    assert find_tap_points(module, SHAPE).feature_map is None
    output = Taps(module, BOTH, SHAPE)(images())
    assert output.embedding.shape == (3, 8)
    assert output.feature_map.shape == (3, 8, 2, 2)
    torch.testing.assert_close(output.feature_map.mean((2, 3)), output.embedding)


def test_a_vit_gives_the_patches_of_its_last_block_without_the_class_token() -> None:
    module = vit().eval()
    output = Taps(module, BOTH, (3, 32, 32))(images(2, 32))
    assert output.feature_map.shape == (2, 48, 8, 8)
    tokens = module.blocks(module.norm_pre(module._pos_embed(module.patch_embed(images(2, 32)))))
    assert tokens.shape == (2, 65, 48)
    torch.testing.assert_close(output.feature_map[:, :, 3, 5], tokens[:, 1 + 3 * 8 + 5])


def test_a_swin_gives_the_pixels_of_its_last_stage_with_channels_first() -> None:
    module = swin().eval()
    output = Taps(module, BOTH, (3, 32, 32))(images(2, 32))
    assert output.feature_map.shape == (2, 96, 2, 2)
    torch.testing.assert_close(output.feature_map, module.layers(module.patch_embed(images(2, 32))).permute(0, 3, 1, 2))


def test_pixels_with_channels_last_are_known_by_the_proportions_of_the_image() -> None:
    # Its fourth stage is a single pixel here, so that the third is taken, which is not as wide as the embedding.
    kwargs = {"num_classes": 4, "img_size": 32, "depths": (1, 1, 1, 1), "embed_dim": 24, "num_heads": (1, 1, 2, 2)}
    module = module_from_timm("swinv2_tiny_window8_256", kwargs)
    taps = Taps(module, {"feature_map"}, (3, 32, 32))
    assert taps(images(2, 32)).feature_map.shape == (2, 96, 2, 2)


def test_the_windows_of_an_attention_are_no_map() -> None:
    class Windows(nn.Module):
        """Mixes the pixels of each quarter of the map, as windows that stand in the place of images."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 6, 3, padding=1)
            self.inner = nn.Conv2d(6, 6, 3, padding=1)
            self.head = nn.Linear(6, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            rows, columns = self.conv(x).chunk(2, 2)
            mixed = self.inner(torch.cat([*rows.chunk(2, 3), *columns.chunk(2, 3)]))
            out: torch.Tensor = self.head(mixed.mean((2, 3)).reshape(4, len(x), 6).mean(0))
            return out

    module = Windows()
    assert find_tap_points(module, SHAPE).feature_map == "conv"
    assert Taps(module, {"feature_map"}, SHAPE)(images()).feature_map.shape == (3, 6, 8, 8)


def test_a_network_without_maps_and_tokens_has_no_feature_map_and_a_transformer_has_no_class_maps() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    with pytest.raises(UserError, match=r"No layer of this Sequential gives a feature map(.|\n)*edgekd objectives"):
        Taps(flat, BOTH, SHAPE)
    with pytest.raises(UserError, match=r"'head' of this Tokens reads no feature map(.|\n)*edgekd objectives"):
        Taps(Tokens(), {"class_maps"}, SHAPE)


def test_nothing_is_traced_and_nothing_kept_when_nothing_is_wanted() -> None:
    taps = Taps(nn.Flatten(), (), SHAPE)
    output = taps(images())
    assert taps.points is None
    assert (output.embedding, output.feature_map) == (None, None)


def test_gradients_reach_the_network_through_both_taps() -> None:
    module = toy_cnn().train()
    output = Taps(module, BOTH, SHAPE)(images())
    (output.embedding.sum() + output.feature_map.square().sum()).backward()
    assert module.stem[0].weight.grad is not None
    assert module.classifier.weight.grad is None


def test_the_wrapped_module_keeps_no_hooks_and_no_changed_mode() -> None:
    module = toy_cnn().train()
    taps = Taps(module, BOTH, SHAPE)
    taps(images())
    assert module.training
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
    assert taps.module is module


def test_a_copy_listens_to_its_own_network() -> None:
    taps = Taps(toy_cnn(), BOTH, SHAPE)
    twin = copy.deepcopy(taps)
    with torch.no_grad():
        twin.module.stem[0].weight.zero_()
    assert not torch.equal(twin(images()).feature_map, taps(images()).feature_map)


def test_a_network_without_layers_has_no_embedding() -> None:
    with pytest.raises(UserError, match="No Linear layer or 1x1 convolution"):
        Taps(exported(PaddedShortcut(), images(2)).module(check_guards=False), {"embedding"}, SHAPE)


def test_an_unknown_tap_is_refused() -> None:
    with pytest.raises(UserError, match=r"not \['attention'\]"):
        Taps(toy_cnn(), {"attention"}, SHAPE)


class OneReLU(nn.Module):
    """The same ReLU behind the convolution, and again behind a hidden layer, as many tutorials write it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.act = nn.ReLU()
        self.hidden = nn.Linear(6, 5)
        self.head = nn.Linear(5, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.act(self.hidden(self.act(self.conv(x)).mean((2, 3)))))
        return out


def test_of_a_layer_that_is_called_at_several_depths_the_call_that_gave_the_map_is_heard() -> None:
    module = OneReLU()
    output = Taps(module, BOTH, SHAPE)(images())
    points = find_tap_points(module, SHAPE)
    assert (points.feature_map, points.map_call) == ("act", 0)
    assert torch.equal(output.feature_map, module.conv(images()).relu())
