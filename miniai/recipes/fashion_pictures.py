"""`miniai evaluate fashion-pictures`: what diffusion looks like, with a network that paints clothes.

Noise put in at chosen steps, the way out of it as a sheet and as a GIF, and several samplers from the same noise.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from miniai.base.device import pick_device
from miniai.base.errors import UserError
from miniai.base.files import make_folder
from miniai.base.images import save_png
from miniai.base.seeds import image_generators, make_generator, randn
from miniai.diffusion.pictures import denoising_path, noising, save_path, side_by_side
from miniai.diffusion.sampling import find_sampler, fresh_noise
from miniai.diffusion.schedule import NoiseSchedule
from miniai.nn.unet2d import UNet2DModel
from miniai.recipes.fashion import PADDING
from miniai.recipes.fashion_autoencoder import decoded, encoded
from miniai.recipes.fashion_diffusion_config import N_CLASSES, SIGMA_MAX, FashionDiffusionConfig
from miniai.recipes.fashion_latent import is_latent, load_fashion_latent
from miniai.recipes.fashion_painting import from_patches, load_fashion_diffusion, painter_of, to_patches
from miniai.recipes.sheets import labelled_grid
from miniai.train.fashion_mnist import load_fashion_mnist

ZOOM = 3  # 32 pixels are small
Coder = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Studio:
    """A network, its recipe, the ways into its latents or patches and out, and the bound of what it paints."""

    network: UNet2DModel
    config: FashionDiffusionConfig
    encode: Coder
    decode: Coder
    clip: float | None


def load_studio(folder: Path, device: torch.device) -> Studio:
    """Whatever a training of clothes left in `folder`. Raises UserError if it is not finished."""
    if not is_latent(folder):
        pixels, config = load_fashion_diffusion(folder, device)
        return Studio(
            *(pixels, config),
            lambda images: to_patches(images, config.patch_size),
            lambda patches: from_patches(patches, config.patch_size),
            1.0,
        )
    latent, vae, scale, recipe = load_fashion_latent(folder, device)
    return Studio(
        latent,
        recipe,
        lambda images: scale.standardised(encoded(vae, images, device)),
        lambda latents: decoded(vae, scale.restored(latents.cpu()), device),
        None,
    )


def fashion_pictures(
    model: Path,
    out: Path,
    *,
    data: Path | None = None,
    at: Sequence[int | float] | None = None,
    samplers: Sequence[str] = ("euler", "heun", "dpmpp_2m", "euler_a"),
    steps: int = 20,
    n: int = 8,
    seed: int = 0,
    device: str = "auto",
) -> list[Path]:
    """Write `noising.png`, `path.png`, `path.gif` and `samplers.png` into `out`, and return their paths.

    - at: where noise is shown: timesteps of the network's schedule, or, for EDM's, sigmas (None: eight of them).
    - samplers, steps: which are compared; the path is the recipe's own sampler's in as many steps.

    Raises UserError for an unknown sampler, a timestep that there is not, or a folder without a finished training.
    """
    rows = {find_sampler(name).title: name for name in samplers}
    if not rows:
        raise UserError("--samplers needs at least one sampler")
    studio = load_studio(model, pick_device(device))
    real = load_fashion_mnist("test", data).scaled(PADDING)[:n]
    make_folder(out)
    names = ("noising.png", "path.png", "path.gif", "samplers.png")
    paths = [out / name for name in names]
    save_png(paths[0], noising_sheet(studio, real, at))
    sheet, frames = path_of(studio, n, steps, seed)
    save_png(paths[1], sheet)
    save_path(paths[2], frames)
    save_png(paths[3], compared(studio, rows, n, steps, seed))
    return paths


def noising_sheet(studio: Studio, real: Float[Tensor, "n 1 h w"], at: Sequence[int | float] | None) -> Image.Image:
    """A column for each level of noise, its name below it."""
    levels: list[int | float]
    if studio.config.is_edm:
        levels = [0, 0.1, 0.3, 1, 2, 5, 20, SIGMA_MAX] if at is None else list(at)
        sigmas, words = [float(level) for level in levels], [f"sigma {level:g}" for level in levels]
    else:
        schedule = NoiseSchedule(studio.config.schedule)
        last = schedule.n_timesteps - 1
        levels = [round(last * k / 7) for k in range(8)] if at is None else list(at)
        if bad := [level for level in levels if level != int(level) or not 0 <= level <= last]:
            raise UserError(f"--at {bad[0]:g} is no timestep: this network has 0 to {last}")
        sigmas = schedule.t_to_sigma(torch.tensor([int(level) for level in levels])).tolist()
        words = [f"t = {int(level)}" for level in levels]
    if min(sigmas) < 0:
        raise UserError("--at: a sigma is at least 0")
    sheet = noising(studio.encode(real), sigmas, make_generator(0), studio.decode)
    return _columns(sheet, words, "a picture's way into the noise")


def path_of(studio: Studio, n: int, steps: int, seed: int) -> tuple[Image.Image, list[Image.Image]]:
    """The estimates of x0 on the way out of the noise: a sheet with a column for each step shown, and all as frames."""
    start, noise, run = _start(studio, n, seed)
    sampler = run(studio.config.sampler, steps)
    sheet, frames = denoising_path(sampler, _unused, start, torch.empty(0), noise=noise(), decode=studio.decode)
    n_shown = min(8, len(frames))
    places = torch.linspace(0, len(frames) - 1, n_shown).round().long().tolist()
    title = f"what is believed to be the picture, {find_sampler(studio.config.sampler).title}, {len(frames)} steps"
    large = [frame.resize((ZOOM * frame.width, ZOOM * frame.height), Image.Resampling.NEAREST) for frame in frames]
    return _columns(sheet, [f"step {place + 1}" for place in places], title), large


def compared(studio: Studio, rows: dict[str, str], n: int, steps: int, seed: int) -> Image.Image:
    """A row of pictures for each sampler, its title below it."""
    start, noise, run = _start(studio, n, seed)
    samplers = {title: run(name, steps) for title, name in rows.items()}
    sheet = side_by_side(samplers, _unused, start, torch.empty(0), noise=noise, decode=studio.decode)
    height = (sheet.height + 1) // len(rows)
    cells = [(sheet.crop((0, height * k, sheet.width, height * k + height - 1)), title) for k, title in enumerate(rows)]
    return labelled_grid(cells, 1, f"the same noise, {steps} steps", zoom=ZOOM)


def _start(studio: Studio, n: int, seed: int) -> tuple[Tensor, Callable[[], Any], Callable[[str, int], Any]]:
    """Unit noise, what makes the noise of the steps anew, and what makes a sampler, as `pictures` calls one."""
    device, side = studio.network.conv_in.weight.device, studio.config.model.sample_size or 32
    shape = (n, studio.config.model.in_channels, side, side)
    labels = torch.arange(n) % N_CLASSES
    start = randn(shape, image_generators(seed, n)).to(device)

    def noise() -> Any:
        generators = image_generators(seed, n)
        randn(shape, generators)  # the start came first
        return fresh_noise(shape, generators, start)

    def sampler(name: str, steps: int) -> Any:
        run = painter_of(studio.network, studio.config, labels, sampler=name, n_steps=steps, clip=studio.clip)
        return partial(_with_its_own, run)

    return start, noise, sampler


def _with_its_own(run: Callable[..., Tensor], denoiser: Any, x: Tensor, sigmas: Tensor, **options: Any) -> Tensor:
    """`run` has a denoiser and a ladder of its own, which differ from sampler to sampler."""
    return run(x, **options)


def _unused(x: Tensor, sigma: Tensor) -> Tensor:
    raise AssertionError("each sampler has its own denoiser")


def _columns(sheet: Image.Image, words: Sequence[str], title: str) -> Image.Image:
    """The columns of a sheet with gaps of 1, enlarged, each with its words below."""
    width = (sheet.width + 1) // len(words)
    cells = [(sheet.crop((width * k, 0, width * k + width - 1, sheet.height)), word) for k, word in enumerate(words)]
    return labelled_grid(cells, len(words), title, zoom=ZOOM)
