"""Where stages end: as timm declares, by falling resolution, and among tokens."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from edgekd.errors import UserError
from edgekd.nn.stages import StagePoint, find_stage_points
from edgekd.nn.taps import Taps
from edgekd.nn.timm import module_from_timm
from edgekd.testing.toys import toy_cnn
from tests.nn.zoo import Tokens, images

SHAPE = (3, 8, 8)


def paths(module: nn.Module, shape: tuple[int, int, int] = SHAPE) -> list[str]:
    return [point.path for point in find_stage_points(module, shape, "classifier")]


def test_our_own_networks_end_a_stage_where_the_resolution_falls() -> None:
    assert paths(toy_cnn()) == ["stages.0", "stages"]


class Bottleneck(nn.Module):
    """Widens at the old resolution, then strides: its first map is no stage's end."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.widen = nn.Conv2d(width, 2 * width, 1)
        self.filter = nn.Conv2d(2 * width, width, 3, stride, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.filter(self.widen(x))
        return out


class Wrapped(nn.Module):
    """All stages inside of one module that is no plain chain."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.classifier = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.body(x).mean((2, 3)))
        return logits


def test_what_a_block_computes_before_it_strides_is_no_stage() -> None:
    assert paths(Wrapped(nn.Sequential(Bottleneck(3, 1), Bottleneck(3, 2)))) == ["body.0", "body"]


def test_a_module_around_all_stages_does_not_hide_them() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(Bottleneck(3, 1), Bottleneck(3, 2))

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.inner(x)
            return out

    assert paths(Wrapped(Outer())) == ["body.inner.0", "body"]


def test_timm_networks_end_stages_where_timm_declares() -> None:
    convolutional = module_from_timm("mobilenetv3_small_050", {"num_classes": 4})
    assert paths(convolutional, (3, 32, 32)) == ["bn1", "blocks.0", "blocks.1", "blocks.3"]


def test_a_timm_transformer_gives_four_maps_at_equal_depths_without_its_class_token() -> None:
    module = module_from_timm("vit_tiny_patch16_224", {"num_classes": 4, "img_size": 32, "depth": 8})
    points = find_stage_points(module, (3, 32, 32))
    assert [point.path for point in points] == ["blocks.1", "blocks.3", "blocks.5", "blocks.7"]
    out = Taps(module, {"stages"}, (3, 32, 32))(torch.randn(2, 3, 32, 32))
    assert [tuple(x.shape) for x in out.stages] == [(2, 192, 2, 2)] * 4


def test_a_grid_of_tokens_is_read_row_by_row_behind_the_class_token() -> None:
    tokens = torch.arange(7.0)[None, :, None].expand(1, 7, 2)
    point = StagePoint(path="x", layout="tokens", height=2, width=3)
    assert torch.equal(point.read(tokens)[0, 0], torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]))


def test_maps_of_another_layout_are_turned() -> None:
    x = torch.randn(2, 3, 4, 5)
    assert torch.equal(StagePoint(path="x", layout="NHWC", height=3, width=4).read(x), x.permute(0, 3, 1, 2))


def test_an_untold_transformer_gives_its_last_tokens_as_a_map() -> None:
    points = find_stage_points(Tokens(), SHAPE, "head")
    assert [(point.path, point.layout, point.height) for point in points] == [("drop", "tokens", 2)]


class Stemmed(nn.Module):
    """A transformer whose patches two strided convolutions make."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1))
        self.blocks = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.blocks(self.stem(x).flatten(2).transpose(1, 2)).mean(1))
        return logits


def test_a_transformer_behind_strided_convolutions_ends_in_its_tokens_and_not_in_its_stem() -> None:
    module = Stemmed().eval()
    points = find_stage_points(module, (3, 16, 16), "head")
    assert points[-1].path.startswith("blocks")
    assert points[-1].layout == "tokens"
    out = Taps(module, {"feature_map", "embedding"}, (3, 16, 16))(torch.randn(2, 3, 16, 16))
    torch.testing.assert_close(out.feature_map.mean((2, 3)), out.embedding)


def test_stages_and_classifier_are_tapped_with_gradients() -> None:
    module = toy_cnn().train()
    out = Taps(module, {"stages", "classifier", "embedding"}, SHAPE)(images())
    assert [tuple(x.shape[1:]) for x in out.stages] == [(8, 8, 8), (16, 4, 4)]
    weight, bias = out.classifier
    torch.testing.assert_close(out.embedding @ weight.T + bias, out.logits)
    (out.stages[0].sum() + weight.square().sum()).backward()
    assert module.stem[0].weight.grad is not None
    assert module.classifier.weight.grad is not None


def test_a_network_without_maps_has_no_stages() -> None:
    with pytest.raises(UserError, match=r"gives a feature map, or tokens that form a grid(.|\n)*edgekd objectives"):
        Taps(nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), {"stages"}, SHAPE)


class OnePool(nn.Module):
    """One pooling layer for two depths."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 8, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.classifier = nn.Linear(8 * 2 * 2, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.pool(self.second(self.pool(self.first(x)))).flatten(1))
        return logits


def test_a_pool_that_ends_several_stages_is_heard_once_for_each() -> None:
    module = OnePool()
    points = find_stage_points(module, SHAPE, "classifier")
    assert [(point.path, point.call) for point in points] == [("first", 0), ("second", 0), ("pool", 1)]
    out = Taps(module, {"stages"}, SHAPE)(images())
    assert [tuple(x.shape[1:]) for x in out.stages] == [(6, 8, 8), (8, 4, 4), (8, 2, 2)]


def test_a_stage_that_ends_in_an_earlier_call_of_a_shared_pool_is_not_that_of_its_last_call() -> None:
    module = OnePool()
    module.second = nn.Conv2d(6, 8, 2)  # lowers the resolution itself: the first pooled map ends a stage
    module.classifier = nn.Linear(8, 4)
    points = find_stage_points(module, SHAPE, "classifier")
    assert [(point.path, point.call) for point in points] == [("first", 0), ("pool", 0), ("second", 0)]
    stages = Taps(module, {"stages"}, SHAPE)(images()).stages
    assert torch.equal(stages[1], module.pool(module.first(images())))
