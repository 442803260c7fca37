"""Losses of style transfer against their definitions; VGG against its published shape."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from miniai.base.errors import UserError
from miniai.base.seeds import make_generator
from miniai.base.weights import write_weights
from miniai.nn.style import RandomFeatures, content_loss, gram_matrix, style_loss, total_variation
from miniai.nn.vgg import FILES, VGGFeatures, load_vgg

X = torch.randn(2, 3, 5, 4, generator=make_generator(1))


def test_the_gram_matrix_is_its_sum_written_out() -> None:
    expected = torch.einsum("bchw,bdhw->bcd", X, X) / 20
    torch.testing.assert_close(gram_matrix(X), expected)
    assert torch.equal(gram_matrix(X), gram_matrix(X).transpose(1, 2))


def test_losses_are_mean_squares_summed_over_layers_and_have_gradients() -> None:
    y = torch.randn(2, 3, 5, 4, generator=make_generator(2)).requires_grad_()
    wanted = {"a": X, "b": 2 * X}
    found = content_loss({"a": y, "b": y, "c": y}, wanted)
    torch.testing.assert_close(found, F.mse_loss(y, X) + F.mse_loss(y, 2 * X))
    grams = {name: gram_matrix(one) for name, one in wanted.items()}
    how = style_loss({"a": y, "b": y}, grams)
    expected = sum(F.mse_loss(gram_matrix(y), gram) for gram in grams.values())
    torch.testing.assert_close(how, expected)
    how.backward()
    assert y.grad is not None
    assert y.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="at least one layer"):
        content_loss({}, {})


def test_style_does_not_know_places_and_content_does() -> None:
    shuffled = X.flatten(2)[:, :, torch.randperm(20, generator=make_generator(3))].view_as(X)
    assert style_loss({"a": shuffled}, {"a": gram_matrix(X)}) < 1e-10
    assert content_loss({"a": shuffled}, {"a": X}) > 0.5


def test_total_variation_is_the_mean_of_squared_differences() -> None:
    expected = X.diff(dim=-1).square().mean() + X.diff(dim=-2).square().mean()
    torch.testing.assert_close(total_variation(X), expected)


def test_random_features_follow_their_seed_wrap_around_and_do_not_learn() -> None:
    network = RandomFeatures(n_filters=4, sizes=(3, 5))
    images = torch.rand(1, 3, 8, 8, generator=make_generator(4))
    assert torch.equal(network(images), RandomFeatures(n_filters=4, sizes=(3, 5))(images))
    assert not torch.equal(network(images), RandomFeatures(n_filters=4, sizes=(3, 5), seed=1)(images))
    torch.testing.assert_close(network(images.roll(3, dims=-1)), network(images).roll(3, dims=-1))
    assert not any(weight.requires_grad for weight in network.parameters())
    assert network.layers == ["maps.0", "maps.1"]


@pytest.mark.parametrize(("depth", "n_parameters", "last"), [(16, 14_714_688, 28), (19, 20_024_384, 34)])
def test_vgg_has_its_published_size_and_names(depth: int, n_parameters: int, last: int) -> None:
    with torch.device("meta"):
        network = VGGFeatures(depth)  # type: ignore[arg-type]
    assert sum(weight.numel() for weight in network.parameters()) == n_parameters
    assert network.state_dict()[f"features.{last}.weight"].shape == (512, 512, 3, 3)
    assert f"features.{last + 2}.weight" not in network.state_dict()


def test_vggs_weights_are_read_from_a_file_and_compute_what_plain_functions_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = make_generator(5)
    with torch.device("meta"):
        shapes = {name: tuple(one.shape) for name, one in VGGFeatures(16).state_dict().items()}
    weights = {name: torch.randn(shape, generator=generator) / (9 * shape[-3] if len(shape) > 1 else 1e3) ** 0.5
               for name, shape in shapes.items()}  # fmt: skip
    head = {"classifier.0.weight": torch.zeros(2, 2)}  # what the file has for classes
    cache = tmp_path / "checkpoints"
    cache.mkdir()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError, match="VGG's weights are not there"):
        load_vgg()
    torch.save({**weights, **head}, cache / FILES[16])
    network = load_vgg()
    images = torch.rand(1, 3, 32, 32, generator=generator) * 2 - 1
    x = (images / 2 + 0.5 - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
        [0.229, 0.224, 0.225]
    ).view(3, 1, 1)
    index = 0
    for n_convolutions in (2, 2, 3, 3, 3):
        for _ in range(n_convolutions):
            x = F.relu(F.conv2d(x, weights[f"features.{index}.weight"], weights[f"features.{index}.bias"], padding=1))
            index += 2
        x, index = F.max_pool2d(x, 2), index + 1
    torch.testing.assert_close(network(images), x)
    write_weights(tmp_path / "other.safetensors", {"features.0.weight": torch.zeros(3)})
    with pytest.raises(UserError, match="other.safetensors"):
        load_vgg(16, tmp_path / "other.safetensors")


def test_the_hooks_see_vggs_convolutions_before_the_rectifier() -> None:
    """A rectifier in place would change what they saw."""
    seen: list[Tensor] = []
    network = VGGFeatures(16)
    network.features[0].register_forward_hook(lambda module, inputs, out: seen.append(out))
    network.features[:2](torch.randn(1, 3, 32, 32, generator=make_generator(6)))
    assert seen[0].min() < 0
