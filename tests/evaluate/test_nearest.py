"""Nearest pictures against distances written out pair by pair."""

import pytest
import torch

from miniai.evaluate.nearest import nearest_by_feature, nearest_by_pixel


def test_nearest_feature_is_that_of_the_highest_cosine() -> None:
    generator = torch.Generator().manual_seed(0)
    queries, bank = torch.randn(300, 12, generator=generator), torch.randn(70, 12, generator=generator)
    cosine = torch.nn.functional.cosine_similarity(queries[:, None].double(), bank[None].double(), dim=-1)
    expected = (1 - cosine).sort(dim=1)
    found = nearest_by_feature(queries, bank, k=3)
    assert found.indices.equal(expected.indices[:, :3])
    assert torch.allclose(found.distances, expected.values[:, :3], atol=1e-12)


def test_nearest_pixels_are_those_of_the_least_root_mean_square() -> None:
    generator = torch.Generator().manual_seed(1)
    queries = torch.randint(256, (20, 3, 8, 8), generator=generator, dtype=torch.uint8)
    bank = torch.randint(256, (60, 3, 8, 8), generator=generator, dtype=torch.uint8)
    difference = (queries[:, None].double() - bank[None].double()) / 255
    expected = difference.square().mean(dim=(2, 3, 4)).sqrt().sort(dim=1)
    found = nearest_by_pixel(queries, bank, k=4)
    assert found.indices.equal(expected.indices[:, :4])
    assert torch.allclose(found.distances, expected.values[:, :4], atol=1e-6)


def test_a_picture_of_the_bank_is_its_own_nearest_at_distance_zero() -> None:
    """Among pictures that differ in one level of one pixel."""
    bank = torch.full((12, 3, 64, 16), 255, dtype=torch.uint8)
    for i in range(12):
        bank[i, 0, 5 * i, 0] = 254
    found = nearest_by_pixel(bank, bank)
    assert found.indices[:, 0].tolist() == list(range(12))
    assert float(found.distances.max()) == 0.0
    features = torch.randn(9, 5)
    assert nearest_by_feature(features, features).indices[:, 0].tolist() == list(range(9))


def test_black_and_white_are_at_distance_one() -> None:
    black = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    assert float(nearest_by_pixel(black, black + 255).distances) == pytest.approx(1.0)


def test_more_neighbours_than_pictures_are_refused() -> None:
    with pytest.raises(ValueError, match="k cannot be 3"):
        nearest_by_feature(torch.zeros(1, 2), torch.zeros(2, 2), k=3)
