"""`miniai evaluate fashion-restore`: clothes restored from what is left of them, by a network that paints clothes.

What is measured of each picture guides the painting of one that could have been measured so: see
`miniai.diffusion.inverse`. The network never saw a damaged picture; one training serves every kind of damage.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from miniai.base.device import pick_device
from miniai.base.errors import UserError
from miniai.base.files import make_folder, write_json
from miniai.base.images import save_png
from miniai.base.seeds import image_generators, make_generator, randn
from miniai.diffusion.inverse import Averaged, Blurred, Masked, Measurement, Operator, restoring
from miniai.diffusion.pictures import as_pictures
from miniai.diffusion.sampling import find_sampler, fresh_noise
from miniai.nn.unet2d import UNet2DModel
from miniai.recipes.fashion import PADDING
from miniai.recipes.fashion_autoencoder import psnr
from miniai.recipes.fashion_diffusion_config import N_CLASSES, FashionDiffusionConfig
from miniai.recipes.fashion_latent import is_latent
from miniai.recipes.fashion_painting import load_fashion_diffusion, painter_of, to_patches
from miniai.recipes.sheets import labelled_grid
from miniai.train.fashion_mnist import load_fashion_mnist

Images = Float[Tensor, "n 1 h2 w2"]
ZOOM = 2
SURE = 0.01  # the least deviation that a measurement is taken to have


@dataclass(frozen=True)
class Damage:
    """What is left of a picture of `side` pixels, `operator(side)`, and how it looks enlarged to that side."""

    operator: Callable[[int], Operator]
    shown: Callable[[Images, int], Images]


def _hole(side: int) -> Masked:
    """A square in the middle of half the edge is lost."""
    mask = torch.ones(side, side)
    mask[side // 4 : side - side // 4, side // 4 : side - side // 4] = 0
    return Masked(mask)


def _enlarged(measured: Float[Tensor, "n 1 h w"], side: int) -> Images:
    return F.interpolate(measured, size=(side, side), mode="bicubic", antialias=False).clamp(-1, 1)


DAMAGES: dict[str, Damage] = {
    "inpainting": Damage(_hole, lambda measured, side: measured),
    "super-resolution": Damage(lambda side: Averaged(4), _enlarged),
    "deblurring": Damage(lambda side: Blurred(2.0), lambda measured, side: measured),
}


def fashion_restore(
    model: Path,
    out: Path,
    *,
    data: Path | None = None,
    damages: Sequence[str] = tuple(DAMAGES),
    sampler: str = "euler_a",
    steps: int = 40,
    noise: int | float = 0.05,
    n: int = 8,
    seed: int = 0,
    device: str = "auto",
) -> list[dict[str, Any]]:
    """Damage the first `n` test pictures in each way, restore them, and write `out/<damage>.png` and
    `out/restored.json`, which is returned.

    It has for each damage the PSNR, in decibels, of the measurement as it is shown and of what was made of it, and how
    far that would measure from what was measured, as a root of the mean square. `noise` is the deviation of what is
    measured; pictures are in [-1, 1].

    Raises UserError for an unknown damage or sampler, a training of latents or none, or data that are not there.
    """
    if unknown := [name for name in damages if name not in DAMAGES]:
        raise UserError(f"unknown damage {unknown[0]!r}: there are {', '.join(DAMAGES)}")
    find_sampler(sampler)
    place = pick_device(device)
    if is_latent(model):
        raise UserError(f"{model} paints in latents: restoring needs a training of pixels, such as fashion-edm")
    network, config = load_fashion_diffusion(model, place)
    truth = to_patches(load_fashion_mnist("test", data).scaled(PADDING)[:n], config.patch_size)
    make_folder(out)
    found = []
    for name in damages:
        restored, measured, operator = restore(
            *(network, config, truth, name), sampler=sampler, steps=steps, noise=noise, seed=seed
        )
        side = restored.shape[-1]
        pictures = whole(truth, config)
        shown = DAMAGES[name].shown(measured, side)
        found.append(
            {
                **{"damage": name, "sampler": sampler, "steps": steps, "noise": noise, "n": len(truth), "seed": seed},
                "psnr_of_measured": psnr(float((shown - pictures).square().mean())),
                "psnr_of_restored": psnr(float((restored - pictures).square().mean())),
                "distance_of_measurements": float((operator(restored) - measured).square().mean().sqrt()),
            }
        )
        rows = {"measured": shown, "restored": restored, "as it was": pictures}
        cells = [(picture, words) for words, row in rows.items() for picture in as_pictures(row.clamp(-1, 1))]
        save_png(out / f"{name}.png", labelled_grid(cells, len(truth), f"{name}, {steps} steps", zoom=ZOOM))
    write_json(out / "restored.json", found)
    return found


def whole(patches: Float[Tensor, "n c h w"], config: FashionDiffusionConfig) -> Images:
    """What the network sees as a picture, without the padding that it does not see."""
    return patches if config.patch_size == 1 else F.pixel_shuffle(patches, config.patch_size)


def restore(
    network: UNet2DModel,
    config: FashionDiffusionConfig,
    truth: Float[Tensor, "n c h w"],
    damage: str,
    *,
    sampler: str,
    steps: int,
    noise: int | float,
    seed: int,
) -> tuple[Images, Float[Tensor, "n 1 h3 w3"], Operator]:
    """Pictures restored from a measurement of `truth`, of no class in particular; that measurement; what measures.

    Without any `noise` the measurement is still trusted to `SURE` only, so that its equations can be solved."""
    device = network.conv_in.weight.device
    operator = DAMAGES[damage].operator(whole(truth, config).shape[-1])
    exact = operator(whole(truth, config))
    observed = exact + float(noise) * torch.randn(exact.shape, generator=make_generator(seed, 1))
    measurement = Measurement(lambda x: operator(whole(x, config)), observed.to(device), max(float(noise), SURE))
    run = painter_of(
        *(network, config, torch.full((len(truth),), N_CLASSES)),
        sampler=sampler,
        n_steps=steps,
        guidance_scale=1.0,
        change=lambda denoiser: restoring(denoiser, measurement, sigma_data=config.sigma_data),
    )
    generators = image_generators(seed, len(truth))
    start = randn(truth.shape, generators).to(device)
    drawn = run(start, noise=fresh_noise(truth.shape, generators, start))
    return whole(drawn.cpu().float(), config), observed, operator
