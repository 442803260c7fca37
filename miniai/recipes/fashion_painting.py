"""Clothes painted by the networks of `fashion_diffusion`: with any sampler, in any number of steps, guided or not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from miniai.base.configs import config_from_dict
from miniai.base.device import autocast
from miniai.base.errors import UserError
from miniai.base.files import read_json
from miniai.base.modes import in_eval_mode
from miniai.base.seeds import image_generators, randn
from miniai.diffusion.continuous_objectives import EDMDenoiser
from miniai.diffusion.denoiser import ConditionalDenoiser, NetworkDenoiser, autoguided, clipped, guided
from miniai.diffusion.distillation import GuidedCondition, told_scale
from miniai.diffusion.ladder import Ladder
from miniai.diffusion.samplers import Callback, Denoiser, Noise, no_callback
from miniai.diffusion.sampling import Sampler, find_sampler, fresh_noise, sample
from miniai.diffusion.schedule import NoiseSchedule
from miniai.nn.unet2d import UNet2DModel
from miniai.recipes.fashion import CONFIG, PADDING, load_model
from miniai.recipes.fashion_diffusion_config import N_CLASSES, SIGMA_MAX, FashionDiffusionConfig
from miniai.sd.request_checks import noise_interval

GUIDE_SCALE = 2.0  # unless another is asked for


def load_fashion_diffusion(folder: Path, device: torch.device) -> tuple[UNet2DModel, FashionDiffusionConfig]:
    """A trained network and its recipe. Raises UserError if the folder holds none, or not yet."""
    path = folder / CONFIG
    config = config_from_dict(FashionDiffusionConfig, read_json(path), str(path))
    return load_model(UNet2DModel(config.model), folder, device), config


def load_guide(folder: Path, config: FashionDiffusionConfig, device: torch.device) -> UNet2DModel:
    """A network that can stand beside one of `config` as its `guide`.

    Raises UserError if the folder holds none, or one that sees other things: of another kind, patch size, or with
    other knowledge of classes."""
    network, own = load_fashion_diffusion(folder, device)

    def seen(config: FashionDiffusionConfig) -> tuple[Any, ...]:
        told = "c_noise" if config.is_edm else config.schedule.prediction_type
        return config.kind, told, config.patch_size, config.sigma_data, config.model.num_class_embeds, config.ladder

    if seen(own) != seen(config) or own.guidance_range is not None:
        raise UserError(f"{folder} cannot guide fashion-{config.kind}: name a shorter training of that recipe")
    return network


def paint(
    model: UNet2DModel,
    config: FashionDiffusionConfig,
    labels: Int64[Tensor, " n"],
    *,
    seed: int,
    batch_size: int = 256,
    **options: Any,
) -> Float[Tensor, "n 1 h w"]:
    """A picture in [-1, 1] for each of `labels` (which only a network that knows classes looks at); picture i is drawn
    from `seed + i`. `options` are those of `painter_of`, but for `clip`: pixels have their bounds."""
    drawn = draw(model, config, labels, seed=seed, clip=1.0, batch_size=batch_size, **options)
    return from_patches(drawn.clamp(-1, 1), config.patch_size)


def to_patches(images: Float[Tensor, "n 1 h w"], patch_size: int) -> Float[Tensor, "n c h2 w2"]:
    """Pictures as the network sees them: as they are if `patch_size` is 1, else without their padding, and with the
    pixels of each patch as channels. That only puts numbers in another order, so noise on the one is noise on the
    other, and a sampler need not know."""
    if patch_size == 1:
        return images
    return F.pixel_unshuffle(images[:, :, PADDING:-PADDING, PADDING:-PADDING], patch_size)


def from_patches(patches: Float[Tensor, "n c h2 w2"], patch_size: int) -> Float[Tensor, "n 1 h w"]:
    """The pictures, with their black padding, that `to_patches` makes these of."""
    if patch_size == 1:
        return patches
    return F.pad(F.pixel_shuffle(patches, patch_size), (PADDING,) * 4, value=-1.0)


def draw(
    model: UNet2DModel,
    config: FashionDiffusionConfig,
    labels: Int64[Tensor, " n"],
    *,
    seed: int,
    batch_size: int = 256,
    **options: Any,
) -> Float[Tensor, "n c h w"]:
    """What the network was trained on, pictures or latents, drawn anew; `options` are those of `painter_of`."""
    device, side = model.conv_in.weight.device, config.model.sample_size or 32
    parts = []
    for start in range(0, len(labels), batch_size):
        some = labels[start : start + batch_size]
        generators = image_generators(seed + start, len(some))
        shape = (len(some), config.model.in_channels, side, side)
        noise = randn(shape, generators).to(device)
        run = painter_of(model, config, some, **options)
        parts.append(run(noise, noise=fresh_noise(shape, generators, noise)).cpu())
    return torch.cat(parts)


def painter_of(
    model: UNet2DModel,
    config: FashionDiffusionConfig,
    labels: Int64[Tensor, " b"],
    *,
    sampler: str | None = None,
    n_steps: int | None = None,
    guidance_scale: int | float | None = None,
    guidance_interval: tuple[float, float] | None = None,
    guide: UNet2DModel | None = None,
    guide_scale: int | float = GUIDE_SCALE,
    churn: int | float = 0.0,
    spacing: str | None = None,
    clip: float | None = None,
    change: Callable[[Denoiser], Denoiser] | None = None,
) -> Callable[..., Float[Tensor, "b c h w"]]:
    """`run(unit_noise, *, noise, callback)`, which paints one batch.

    - sampler, n_steps, guidance_scale: None is what the recipe says.
    - guidance_interval: the noise levels (low, high], as sigma, between which guidance acts; None is everywhere.
    - guide, guide_scale: a network of the same recipe that was trained for less time, and how far from it: see
      `autoguided`. It acts at all noise levels, and on what is guided towards the classes already.
    - churn: `s_churn` of Karras et al. 2022, algorithm 2.
    - spacing: of the sigmas of EDM; None is as the sampler's name ("Euler Exponential") or else the recipe says.
    - clip: bounds x0 in every step (None: nothing does), the noise being what then remains of x: Saharia et al. 2022
      (arXiv 2205.11487), section 2.3. Samplers' own clipping, which keeps the noise as the network gave it, is not
      used: each step of DDIM then leaves the pictures a little brighter, where black is the lower bound.
    - change: makes another denoiser of the network's.

    Runs in the precision of training (`training_dtype`), with float32 between the network's calls. Raises UserError for
    an unknown sampler, churn where the sampler has none, an interval that is none, or what a distilled network was not
    made for.
    """
    method, steps = find_sampler(sampler or config.sampler), n_steps or config.n_steps
    options: dict[str, Any] = {"s_churn": float(churn)} if churn else {}
    if churn and method.name not in ("euler", "heun"):
        raise UserError(f"--churn {churn:g} is for the samplers euler and heun, not {method.name}")
    scale = config.guidance_scale if guidance_scale is None else guidance_scale
    interval = noise_interval(guidance_interval)
    tells_itself = config.guidance_range is not None
    if not config.knows_classes and not tells_itself and (scale != 1 or guidance_interval is not None):
        raise UserError("this network knows no classes to guide towards: leave guidance out")
    check_distilled(config, method.name, steps, scale, churn)
    if config.guidance_range is not None and guidance_interval is not None:
        raise UserError("this network was distilled with its guidance, at all noise levels: leave the interval out")
    if guide is not None and (config.guidance_range is not None or config.ladder):
        raise UserError("this network was distilled, for steps or scales of its own: leave --guide out")
    device = model.conv_in.weight.device
    schedule = None if config.is_edm else NoiseSchedule(config.schedule)
    ladder = ladder_for(config, method, steps, spacing)
    denoiser = denoiser_for(model, config, schedule, ladder, labels.to(device), scale, interval)
    if guide is not None:
        worse = denoiser_for(guide, config, schedule, ladder, labels.to(device), 1.0, interval)
        denoiser = autoguided(denoiser, worse, float(guide_scale))
    denoiser = denoiser if change is None else change(denoiser)
    denoiser = denoiser if clip is None else clipped(denoiser, clip)

    @torch.no_grad()
    def run(unit_noise: Tensor, *, noise: Noise, callback: Callback = no_callback) -> Tensor:
        with in_eval_mode(model), autocast(device):
            return sample(
                *(method, denoiser, ladder, unit_noise),
                noise=noise,
                callback=callback,
                prediction_type=config.schedule.prediction_type,
                **options,
            )

    return run


def ladder_for(config: FashionDiffusionConfig, method: Sampler, n_steps: int, spacing: str | None = None) -> Ladder:
    """The levels by which a network of this recipe is painted: in `spacing`, or that of the sampler's name, or the
    recipe's own. Raises UserError for an unknown one, for two, and for any where the network has its own levels."""
    named = None if method.sigma_spacing == "timesteps" else method.sigma_spacing
    if spacing is not None and named is not None:
        raise UserError(f"{method.title} says its spacing itself: leave --spacing out, or say {method.name} alone")
    if config.ladder and named is not None:
        raise UserError(f"this network was distilled to levels of its own: say {method.name}, not {method.title}")
    if spacing is not None and (not config.is_edm or config.ladder):
        why = "was distilled to levels of its own" if config.ladder else "learned the timesteps of a discrete schedule"
        raise UserError(f"this network {why}: leave --spacing out")
    if not config.is_edm:
        return method.ladder(NoiseSchedule(config.schedule), n_steps)
    if config.ladder:
        sigmas = torch.tensor(config.ladder, dtype=torch.float64)
    else:
        sigmas = config.edm_sigmas(n_steps, named if spacing is None else spacing)
    return Ladder(sigmas, sigmas[:-1], start_scale=SIGMA_MAX)


def check_distilled(
    config: FashionDiffusionConfig, sampler: str, n_steps: int, scale: int | float, churn: int | float = 0.0
) -> None:
    """Raises UserError for steps, or a scale of guidance, that a distilled network was not made for."""
    if config.ladder and (sampler != "euler" or n_steps != config.n_steps or churn):
        raise UserError(
            f"this network was distilled to {config.n_steps} steps of euler, without churn: not {n_steps} of {sampler}"
        )
    if config.guidance_range is not None and not config.guidance_range[0] <= scale <= config.guidance_range[1]:
        low, high = config.guidance_range
        raise UserError(f"this network was distilled for guidance scales from {low:g} to {high:g}, not {scale:g}")


def denoiser_for(
    model: UNet2DModel,
    config: FashionDiffusionConfig,
    schedule: NoiseSchedule | None,
    ladder: Ladder,
    labels: Int64[Tensor, " b"],
    scale: int | float,
    interval: tuple[float, float],
) -> Denoiser:
    """The network as samplers want it, guided towards `labels` if it knows classes; a distilled one guides itself."""
    if config.model.time_cond_proj_dim is not None:
        student = EDMDenoiser(told_scale(model, config.model.time_cond_proj_dim), config.sigma_data)
        told = GuidedCondition(labels, torch.full(labels.shape, float(scale), device=labels.device))
        return lambda x, sigma: student(x, sigma, told)
    if schedule is None:
        denoiser: ConditionalDenoiser = EDMDenoiser(model, config.sigma_data)
    else:
        denoiser = NetworkDenoiser(model, schedule, ladder)
    if config.knows_classes:
        return guided(denoiser, labels, torch.full_like(labels, N_CLASSES), float(scale), interval=interval)
    plain: Callable[..., Tensor] = denoiser
    return lambda x, sigma: plain(x, sigma, None)
