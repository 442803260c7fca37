"""Noise belongs to its image, not to its batch."""

import pytest
import torch

from miniai.base.seeds import image_generators, make_generator, on_host, randn


def test_one_integer_is_torchs_own_seed() -> None:
    ours = torch.randn(5, generator=make_generator(42))
    assert torch.equal(ours, torch.randn(5, generator=torch.Generator().manual_seed(42)))


def test_several_integers_give_independent_streams() -> None:
    first_draws = {
        make_generator(*seed).initial_seed() for seed in [(0, 0), (0, 1), (1, 0), (1, 1), (0, 0, 0), (11, 1), (1, 11)]
    }
    assert len(first_draws) == 7
    one = torch.randn(20_000, generator=make_generator(5, 1))
    two = torch.randn(20_000, generator=make_generator(5, 2))
    assert abs(torch.corrcoef(torch.stack([one, two]))[0, 1].item()) < 0.03


def test_mixed_seeds_are_the_same_in_every_process() -> None:
    # SHA-256 of "7,3", not Python's salted hash: a golden value, from `printf 7,3 | sha256sum`
    assert make_generator(7, 3).initial_seed() == int.from_bytes(bytes.fromhex("9ca29a28a8e8cac5"), "little")


def test_making_a_generator_leaves_the_global_one_alone() -> None:
    before = torch.get_rng_state()
    randn((2, 3), image_generators(0, 2))
    make_generator(1, 2)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("n_images", [1, 2, 5])
def test_image_i_draws_the_same_noise_at_any_batch_size(n_images: int) -> None:
    eight = randn((8, 4, 3, 3), image_generators(100, 8))
    few = randn((n_images, 4, 3, 3), image_generators(100, n_images))
    assert torch.equal(few, eight[:n_images])
    assert few.dtype is torch.float32
    assert few.device.type == "cpu"


def test_later_draws_of_an_image_do_not_depend_on_the_batch_either() -> None:
    many, alone = image_generators(3, 4), image_generators(5, 1)
    draws = [(randn((4, 7), many)[2], randn((1, 7), alone)[0]) for _ in range(3)]
    assert all(torch.equal(one, other) for one, other in draws)


def test_a_generator_too_few_is_refused() -> None:
    with pytest.raises(ValueError, match="3 images"):
        randn((3, 2), image_generators(0, 2))


def test_a_generator_of_the_cpu_is_its_own_on_the_host() -> None:
    """Of a GPU's the one there has the seed; that is not seen here."""
    generator = make_generator(3, 4)
    assert on_host(generator) is generator
