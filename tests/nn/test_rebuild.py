from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgekd.errors import BuildFailed
from edgekd.nn.edits import replay_edits_, resize_edit
from edgekd.nn.program import load_program
from edgekd.nn.rebuild import module_from_program
from edgekd.testing.toys import toy_cnn
from tests.nn.zoo import ConvHead, Mixed, PaddedShortcut, Tokens, exported, images, randomised, saved


@pytest.mark.parametrize("make", [toy_cnn, PaddedShortcut, ConvHead, Tokens, Mixed])
def test_the_rebuilt_module_computes_the_same_under_the_same_names(make: type[nn.Module], tmp_path: Path) -> None:
    module = randomised(make())
    program = load_program(saved(exported(module, images(2)), tmp_path / "model.pt2"))
    rebuilt = module_from_program(program)
    assert torch.equal(rebuilt(images()), module(images()))
    assert rebuilt.state_dict().keys() == module.state_dict().keys()
    for name, value in module.state_dict().items():
        assert torch.equal(rebuilt.state_dict()[name], value), name


@pytest.fixture(scope="module")
def mixed() -> tuple[nn.Module, nn.Module]:
    module = randomised(Mixed())
    return module, module_from_program(exported(module, images(2)))


def test_layers_come_back_under_their_paths_with_their_settings(mixed: tuple[nn.Module, nn.Module]) -> None:
    module, rebuilt = mixed
    for path in ("stem", "shared", "norm1", "norm2", "act", "pool", "fc.0", "fc.1", "fc.2", "fc.4"):
        before, after = module.get_submodule(path), rebuilt.get_submodule(path)
        assert type(after) is type(before), path
    assert repr(rebuilt.get_submodule("norm2")) == repr(module.norm2)
    assert rebuilt.get_submodule("fc.3").p == 0.2


def test_a_layer_used_twice_is_one_layer_and_one_with_other_settings_an_operator(
    mixed: tuple[nn.Module, nn.Module],
) -> None:
    calls = Counter(str(node.target) for node in mixed[1].graph.nodes if node.op == "call_module")
    operators = [str(node.target) for node in mixed[1].graph.nodes if node.op == "call_function"]
    assert calls["shared"] == 2
    assert [name for name in operators if "conv2d" in name] == ["aten.conv2d.default"]


def test_the_rebuilt_module_trains_like_the_original(mixed: tuple[nn.Module, nn.Module]) -> None:
    module, rebuilt = (copy.deepcopy(part).train() for part in mixed)
    for part in (module, rebuilt):
        torch.manual_seed(0)
        part(images(8)).square().sum().backward()
    gradients = dict(rebuilt.named_parameters())
    for name, parameter in module.named_parameters():
        assert torch.allclose(gradients[name].grad, parameter.grad, atol=1e-6), name
    assert torch.allclose(rebuilt.get_submodule("norm2").running_mean, module.norm2.running_mean)
    assert rebuilt.get_submodule("fc.1").num_batches_tracked == module.fc[1].num_batches_tracked


def test_the_weights_are_copies(mixed: tuple[nn.Module, nn.Module]) -> None:
    program = exported(toy_cnn(), images(2))
    rebuilt = module_from_program(program)
    with torch.no_grad():
        rebuilt.get_submodule("classifier").weight.zero_()
    assert program.state_dict["classifier.weight"].abs().sum() > 0


def test_a_program_of_one_image_becomes_a_module_for_every_batch() -> None:
    rebuilt = module_from_program(exported(toy_cnn(), images(1), dynamic=False))
    assert torch.allclose(rebuilt(images(3)), toy_cnn()(images(3)), atol=1e-6)


def test_a_rebuilt_module_takes_resize_edits() -> None:
    rebuilt = module_from_program(exported(toy_cnn(), images(2)))
    narrow = copy.deepcopy(rebuilt)
    narrow.get_submodule("classifier").weight = nn.Parameter(torch.zeros(2, 16))
    narrow.get_submodule("classifier").bias = nn.Parameter(torch.zeros(2))
    narrow.get_submodule("classifier").out_features = 2
    replay_edits_(rebuilt, [resize_edit(rebuilt, narrow)])
    assert rebuilt(images()).shape == (3, 2)


def test_a_decomposed_program_is_refused_with_the_way_to_export() -> None:
    program = exported(toy_cnn(), images(2)).run_decompositions()
    with pytest.raises(BuildFailed, match=r"cannot become a BatchNorm layer again(.|\n)*without run_decompositions"):
        module_from_program(program)


class TwoOutputs(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.relu(), x.sigmoid()


def test_a_program_of_two_outputs_is_refused() -> None:
    with pytest.raises(BuildFailed, match="1 inputs and 2 outputs"):
        module_from_program(exported(TwoOutputs(), images(2)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenetv3_small_100", "efficientnet_lite0", "convnext_atto", "vit_tiny_patch16_224"]
)
def test_models_of_timm_come_back_exactly(name: str, tmp_path: Path) -> None:
    import timm

    module = randomised(timm.create_model(name))
    program = load_program(saved(exported(module, images(2, 224)), tmp_path / "model.pt2"))
    rebuilt = module_from_program(program)
    with torch.inference_mode():
        assert torch.equal(rebuilt(images(3, 224)), module(images(3, 224)))
    assert rebuilt.state_dict().keys() == module.state_dict().keys()
    layers = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.LayerNorm)
    counts = [
        Counter(sum(isinstance(part, kind) for part in m.modules()) for kind in layers) for m in (module, rebuilt)
    ]
    assert counts[0] == counts[1]
