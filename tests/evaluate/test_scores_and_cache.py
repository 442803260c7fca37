"""Cached features, CLIP score and perceptual distance, against their definitions."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from miniai.base.errors import UserError
from miniai.evaluate.cache import FeatureKey, cached, cached_features, cached_moments, fingerprint
from miniai.evaluate.clip_score import clip_score, clip_scores, reference_clip_scores, spherical_distances
from miniai.evaluate.fid import moments
from miniai.evaluate.perceptual import features_in_batches, layer_outputs, perceptual_distance

KEY = FeatureKey("data", "preprocessing", "network")
FEATURES = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))


def test_the_spherical_distance_is_half_the_squared_angle_with_a_gradient_that_does_not_fade() -> None:
    a, b = FEATURES.double(), FEATURES.double().flip(0)
    angles = torch.nn.functional.cosine_similarity(a, b).clamp(-1, 1).acos()
    torch.testing.assert_close(spherical_distances(a, b), angles.square() / 2)
    turned = torch.tensor([0.1, 0.01], dtype=torch.float64, requires_grad=True)
    fixed = torch.tensor([[1.0, 0.0]] * 2, dtype=torch.float64)
    spherical_distances(torch.stack([turned.cos(), turned.sin()], 1), fixed).sum().backward()
    torch.testing.assert_close(turned.grad, turned.detach())  # d(angle^2 / 2) is the angle itself


def test_features_are_computed_once_for_each_data_preprocessing_and_network(tmp_path: Path) -> None:
    calls: list[FeatureKey] = []

    def ask(key: FeatureKey) -> Tensor:
        def compute() -> Tensor:
            calls.append(key)
            return FEATURES + len(calls)

        return cached_features(tmp_path / "cache", key, compute)

    keys = [KEY, FeatureKey("x", *("preprocessing", "network")), FeatureKey("data", "x", "network")]
    keys.append(FeatureKey("data", "preprocessing", "x"))
    first = [ask(key) for key in keys]
    again = [ask(key) for key in keys]
    assert calls == keys
    for index, (one, other) in enumerate(zip(first, again, strict=True)):
        assert torch.equal(one, other)
        assert torch.equal(one, FEATURES + (index + 1))


def test_a_damaged_file_or_one_of_something_else_is_computed_anew(tmp_path: Path) -> None:
    path = tmp_path / KEY.file_name()
    cached_features(tmp_path, KEY, lambda: FEATURES)
    path.write_bytes(path.read_bytes()[:-9])
    assert torch.equal(cached_features(tmp_path, KEY, lambda: FEATURES + 1), FEATURES + 1)
    cached_features(tmp_path, FeatureKey("other", "", ""), lambda: FEATURES + 2)
    (tmp_path / FeatureKey("other", "", "").file_name()).replace(path)
    assert torch.equal(cached_features(tmp_path, KEY, lambda: FEATURES + 3), FEATURES + 3)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot make the folder"):
        cached(tmp_path / "file" / "x", KEY, lambda: {"features": FEATURES})


def test_cached_moments_are_those_of_the_features_to_the_last_bit(tmp_path: Path) -> None:
    expected = moments(FEATURES)
    for _ in range(2):
        found = cached_moments(tmp_path, KEY, lambda: FEATURES)
        assert torch.equal(found.mean, expected.mean)
        assert torch.equal(found.covariance, expected.covariance)


def test_features_and_moments_of_one_key_stand_side_by_side(tmp_path: Path) -> None:
    for _ in range(2):
        assert torch.equal(cached_features(tmp_path, KEY, lambda: FEATURES), FEATURES)
        assert torch.equal(cached_moments(tmp_path, KEY, lambda: FEATURES).mean, moments(FEATURES).mean)


def test_a_fingerprint_tells_names_shapes_kinds_and_values_apart() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(2, 2)
    seen = {
        fingerprint(torch.zeros(4)),
        fingerprint(torch.zeros(2, 2)),
        fingerprint(torch.zeros(4, dtype=torch.float64)),
        fingerprint({"a": torch.zeros(4)}),
        fingerprint({"b": torch.zeros(4)}),
        fingerprint(torch.zeros(0)),
        fingerprint(torch.zeros(4, dtype=torch.bfloat16)),
        fingerprint(layer),
    }
    assert len(seen) == 8
    assert fingerprint(layer) in seen
    with torch.no_grad():
        layer.bias[0] += 1e-6
    assert fingerprint(layer) not in seen
    assert fingerprint(torch.arange(6).reshape(2, 3).T) == fingerprint(torch.arange(6).reshape(2, 3).T.contiguous())


def test_clip_score_is_a_hundred_times_the_cosine_and_never_negative() -> None:
    images, texts = torch.randn(2, 9, 5, generator=torch.Generator().manual_seed(1))
    cosines = torch.stack([a @ b / (a.norm() * b.norm()) for a, b in zip(images.double(), texts.double(), strict=True)])
    assert torch.allclose(clip_scores(images, texts), (100 * cosines).clamp(min=0))
    assert clip_score(images, texts, weight=2.5) == pytest.approx(2.5 * cosines.clamp(min=0).mean().item())
    assert torch.allclose(clip_scores(7 * images, texts), clip_scores(images, texts))
    references = torch.randn(9, 5, generator=torch.Generator().manual_seed(2))
    both = reference_clip_scores(images, texts, references)
    with_reference = clip_scores(references, texts)
    for score, plain, other in zip(both, clip_scores(images, texts), with_reference, strict=True):
        expected = 0.0 if min(plain, other) == 0 else 2 / (1 / plain + 1 / other)
        assert float(score) == pytest.approx(float(expected))
    with pytest.raises(ValueError, match="no pictures"):
        clip_score(images[:0], texts[:0])


def make_network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.BatchNorm2d(6), nn.Dropout(0.5), nn.Conv2d(6, 4, 3, stride=2)
    )


A, B = torch.rand(2, 5, 3, 12, 12, generator=torch.Generator().manual_seed(4))


def test_perceptual_distance_is_equation_1_written_out() -> None:
    network = make_network()
    channel_weights = {"1": torch.rand(6), "4": torch.rand(4)}
    found = perceptual_distance(network, A, B, ["1", "4"], channel_weights)
    assert network.training
    network.eval().requires_grad_(False)
    expected = []
    for a, b in zip(A, B, strict=True):
        total = 0.0
        for name, depth in (("1", 2), ("4", 5)):
            y_a, y_b = network[:depth](a[None])[0], network[:depth](b[None])[0]
            _, h, w = y_a.shape
            for i in range(h):
                for j in range(w):
                    unit_a, unit_b = (y[:, i, j] / max(1e-10, y[:, i, j].norm()) for y in (y_a, y_b))
                    total += float((channel_weights[name] * (unit_a - unit_b) ** 2).sum()) / (h * w)
        expected.append(total)
    assert found.tolist() == pytest.approx(expected, rel=1e-4)


def test_a_layer_that_writes_over_what_it_is_fed_does_not_change_the_outputs_before_it() -> None:
    layers = [nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True)]
    images = torch.randn(2, 1, 8, 8)
    expected = layers[0](images)
    found = layer_outputs(nn.Sequential(*layers), images, ["0", "1"])
    assert torch.equal(found["0"], expected)
    assert torch.equal(found["1"], expected.relu())


def test_perceptual_distance_is_zero_for_equal_pictures_symmetric_and_differentiable() -> None:
    network = make_network()
    assert perceptual_distance(network, A, A, ["4"]).tolist() == [0.0] * 5
    there, back = perceptual_distance(network, A, B, ["4"]), perceptual_distance(network, B, A, ["4"])
    assert torch.allclose(there, back)
    picture = A.clone().requires_grad_()
    perceptual_distance(network, picture, B, ["1"]).sum().backward()
    assert picture.grad is not None
    assert picture.grad.abs().max() > 0
    with pytest.raises(UserError, match="no layer 'conv9'; it has 0, 1, 2"):
        layer_outputs(network, A, ["conv9"])


def test_features_do_not_depend_on_the_batch_size_and_maps_are_averaged() -> None:
    network = make_network()
    whole, parts = (features_in_batches(network, A, batch_size=n, layer="1") for n in (5, 2))
    assert torch.allclose(whole, parts, atol=1e-6)
    assert torch.allclose(whole, network[:2](A).mean(dim=(2, 3)), atol=1e-6)
    assert features_in_batches(nn.Flatten(), A).shape == (5, 432)
    assert network.training
