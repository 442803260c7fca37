"""Pictures in tiles and slices: Diffusers is the oracle."""

import diffusers
import pytest
import torch
from torch import Tensor

from miniai.base.configs import config_to_dict
from miniai.nn.autoencoder import AutoencoderKL, VAEConfig
from miniai.nn.tiling import in_tiles

CONFIG = VAEConfig(
    down_block_types=("DownEncoderBlock2D",) * 2,
    up_block_types=("UpDecoderBlock2D",) * 2,
    block_out_channels=(8, 8),
    layers_per_block=1,
    norm_num_groups=4,
    sample_size=16,
)


@pytest.fixture(scope="module")
def pair() -> tuple[diffusers.AutoencoderKL, AutoencoderKL]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = diffusers.AutoencoderKL(**config_to_dict(CONFIG)).eval()
    ours = AutoencoderKL(CONFIG).eval()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def latents(height: int, width: int, n: int = 1) -> Tensor:
    return torch.randn(n, 4, height, width, generator=torch.Generator().manual_seed(height))


@pytest.mark.parametrize("size", [(8, 8), (9, 8), (8, 21), (20, 13), (5, 30)])
@torch.no_grad()
def test_tiles_are_those_of_diffusers(
    pair: tuple[diffusers.AutoencoderKL, AutoencoderKL], size: tuple[int, int]
) -> None:
    theirs, ours = pair
    theirs.enable_tiling()
    ours.use_tiling = True
    z = latents(*size)
    decoded = ours.decode(z)
    torch.testing.assert_close(decoded, theirs.decode(z).sample, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.tiled_decode(z), theirs.tiled_decode(z).sample, rtol=1e-5, atol=1e-5)
    encoded, expected = ours.encode(decoded), theirs.encode(decoded).latent_dist
    torch.testing.assert_close(encoded.mean, expected.mean, rtol=1e-5, atol=1e-5)
    ours.use_tiling = False
    whole = ours.decode(z)
    assert torch.equal(whole, decoded) == (max(size) <= 8)
    assert decoded.shape == whole.shape == (1, 3, 2 * size[0], 2 * size[1])


@torch.no_grad()
def test_a_slice_is_what_it_is_in_the_batch(pair: tuple[diffusers.AutoencoderKL, AutoencoderKL]) -> None:
    ours = pair[1]
    z = latents(6, 6, n=3)
    together = ours.decode(z)
    n_at_once = []
    hook = ours.decoder.register_forward_pre_hook(lambda _, inputs: n_at_once.append(len(inputs[0])))
    ours.use_slicing = True
    sliced = ours.decode(z)
    ours.use_slicing = False
    hook.remove()
    assert n_at_once == [1, 1, 1]
    torch.testing.assert_close(sliced, together, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_in_tiles_and_slices_no_map_is_larger_than_one_tile_of_one_picture(
    pair: tuple[diffusers.AutoencoderKL, AutoencoderKL],
) -> None:
    """Memory is what they are for: it is that of the largest maps."""

    def largest(vae: AutoencoderKL, z: Tensor) -> int:
        sizes: list[int] = []
        hooks = [
            module.register_forward_hook(lambda _, __, out: sizes.append(out.numel()))
            for module in vae.decoder.modules()
        ]
        vae.decode(z)
        for hook in hooks:
            hook.remove()
        return max(sizes)

    ours = pair[1]
    tile, large = latents(8, 8), latents(40, 24, n=2)
    one = largest(ours, tile)
    assert largest(ours, large) == 2 * 15 * one
    ours.use_tiling = ours.use_slicing = True
    assert largest(ours, large) == one
    ours.use_tiling = ours.use_slicing = False


def test_tiles_of_a_network_that_sees_single_pixels_show_no_seams() -> None:
    x = latents(23, 40)
    torch.testing.assert_close(in_tiles(lambda tile: tile * 2, x, 8, 0.25, 8), x * 2)
