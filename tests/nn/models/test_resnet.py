from __future__ import annotations

from edgekd.nn.count import count_params
from edgekd.nn.models.resnet import resnet_from_kwargs
from tests.nn.zoo import images

RESNET18 = {"depths": [2, 2, 2, 2], "widths": [64, 128, 256, 512], "stem": 64, "classes": 1000}
RESNET50 = {
    "depths": [3, 4, 6, 3],
    "widths": [256, 512, 1024, 2048],
    "inner": [64, 128, 256, 512],
    "stem": 64,
    "classes": 1000,
}


def test_the_imagenet_resnets_have_their_known_sizes() -> None:
    # torchvision's resnet18 and resnet50.
    assert count_params(resnet_from_kwargs(RESNET18)) == 11_689_512
    assert count_params(resnet_from_kwargs(RESNET50)) == 25_557_032


def test_the_stem_divides_the_resolution_by_four_and_each_later_stage_by_two() -> None:
    module = resnet_from_kwargs({"depths": [1, 1], "widths": [8, 16], "inner": [4, 8], "stem": 8, "classes": 3})
    stem = module.stem(images(1, 32))
    assert stem.shape == (1, 8, 8, 8)
    assert module.stages(stem).shape == (1, 16, 4, 4)
