"""The U-Net that sharpens: with and without cross connections, and begun as a classifier."""

import pytest
import torch
from torch import Tensor

from miniai.base.seeds import make_generator
from miniai.nn.resnet import ResNet, ResNetConfig
from miniai.nn.super_resolution import SuperResolutionConfig, SuperResolutionUNet

BODY = ResNetConfig(block_out_channels=(4, 8, 12), layers_per_block=2)
X = torch.randn(2, 1, 14, 14, generator=make_generator(1))


def network(cross: bool) -> SuperResolutionUNet:
    torch.manual_seed(0)
    model = SuperResolutionUNet(SuperResolutionConfig(BODY, cross))
    for module in (model.conv_out, *(block.norm2 for block in model.up)):  # as after some training
        torch.nn.init.normal_(module.weight)
    return model.eval()


@pytest.mark.parametrize("cross", [True, False])
def test_it_begins_as_the_identity_and_takes_any_size(cross: bool) -> None:
    model = SuperResolutionUNet(SuperResolutionConfig(BODY, cross))
    assert torch.equal(model(X), X)
    assert network(cross)(torch.zeros(1, 1, 11, 17)).shape == (1, 1, 11, 17)


def test_what_the_bottom_does_not_let_through_comes_only_by_the_cross_connections() -> None:
    """With the deepest level silenced, only a network with cross connections still sees its input."""

    def answer(cross: bool, x: Tensor) -> Tensor:
        model = network(cross)
        model.blocks[-1].register_forward_hook(lambda module, inputs, out: 0 * out)
        return model(x) - x

    assert torch.equal(answer(False, X), answer(False, X + 1))
    assert not torch.allclose(answer(True, X), answer(True, X + 1), atol=1e-3)


def test_it_takes_over_a_classifiers_way_down_and_refuses_another() -> None:
    torch.manual_seed(1)
    classifier, model = ResNet(BODY).eval(), network(True)
    model.begin_as(classifier)
    seen: list[Tensor] = []
    model.blocks[-1].register_forward_hook(lambda module, inputs, out: seen.append(out))
    model(X)
    assert torch.equal(seen[0].float().mean((2, 3)), classifier.features(X))
    with pytest.raises(RuntimeError, match="size mismatch"):
        model.begin_as(ResNet(ResNetConfig(block_out_channels=(4, 8, 16), layers_per_block=2)))


@pytest.mark.parametrize("cross", [True, False])
def test_it_begins_as_a_classifier_whose_first_level_is_smaller_than_the_picture(cross: bool) -> None:
    body = ResNetConfig(block_out_channels=(4, 8), stem_channels=6)
    classifier, model = ResNet(body).eval(), SuperResolutionUNet(SuperResolutionConfig(body, cross)).eval()
    model.begin_as(classifier)
    assert torch.equal(model(X), X)
    seen: list[Tensor] = []
    model.blocks[-1].register_forward_hook(lambda module, inputs, out: seen.append(out))
    model(X)
    assert torch.equal(seen[0].float().mean((2, 3)), classifier.features(X))
    assert [len(group) for group in model.body_groups()] == [2, 2, 2]
    torch.nn.init.normal_(model.conv_out.weight)
    assert model(torch.zeros(1, 1, 11, 17)).shape == (1, 1, 11, 17)


def test_the_groups_to_unfreeze_are_the_whole_way_down_the_deepest_first() -> None:
    model = network(True)
    groups = model.body_groups()
    assert len(groups) == 4
    assert groups[0] == [model.blocks[4], model.blocks[5]]
    assert groups[-1] == [model.conv_in, model.norm_in]
    body = {id(weight) for group in groups for module in group for weight in module.parameters()}
    new = {id(weight) for weight in [*model.up.parameters(), *model.conv_out.parameters()]}
    assert body | new == {id(weight) for weight in model.parameters()}
    assert not body & new
