"""`miniai train fashion-ddpm`, `fashion-ddim-cosine`, `fashion-edm`, `fashion-conditional`: painted clothes.

One network and one training for all; what differs is how noise is added, what is predicted, and how it is taken out.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int64
from torch import Tensor, nn

from miniai.base.configs import config_from_dict
from miniai.base.device import autocast, pick_device
from miniai.base.errors import UserError
from miniai.base.files import make_folder, read_json
from miniai.base.images import save_png
from miniai.base.seeds import image_generators, randn
from miniai.diffusion.continuous_objectives import EDMDenoiser, EDMObjective
from miniai.diffusion.denoiser import ConditionalDenoiser, NetworkDenoiser, guided
from miniai.diffusion.distillation import GuidedCondition, told_scale
from miniai.diffusion.ladder import Ladder, karras_sigmas
from miniai.diffusion.objectives import DiffusionObjective, drop_condition
from miniai.diffusion.samplers import Callback, Denoiser, Noise, no_callback
from miniai.diffusion.sampling import find_sampler, fresh_noise, sample
from miniai.diffusion.schedule import NoiseSchedule, ScheduleConfig
from miniai.nn.unet2d import UNet2DConfig, UNet2DModel
from miniai.recipes.fashion import CONFIG, PADDING, as_sheet, is_trained, load_both, load_model, save_model, start_run
from miniai.recipes.fashion_unets import patch_unet, small_unet
from miniai.recipes.text_to_image_config import StageConfig
from miniai.recipes.training import StageRun, check_compiler, initial_weights, run_stage
from miniai.recipes.unet_stage import init_unet
from miniai.train.data import TensorDataset
from miniai.train.distributed import n_launched

Kind = Literal["ddpm", "ddim-cosine", "edm", "conditional", "latent"]
KINDS: tuple[Kind, ...] = ("ddpm", "ddim-cosine", "edm", "conditional")  # of pixels; `fashion_latent` has the other
N_CLASSES = 10  # and class 10 stands for none
SIGMA_MIN, SIGMA_MAX = 0.002, 80.0  # Karras et al. 2022, table 1


@dataclass(frozen=True)
class FashionDiffusionConfig:
    """The whole recipe. `sampler`, `n_steps` and `guidance_scale` are how it is painted unless something else is asked
    for; `drop_label` is the share of pictures trained without their class, where there are classes; `sigma_data` the
    deviation of the pixels, which EDM scales by. `patch_size`: above 1 the network sees pictures without their padding,
    the pixels of each patch of that many by that many as channels: see `to_patches`. A distilled network has `ladder`,
    the sigmas that it paints by, down to 0, or `guidance_range`, the scales that it may be told; or both."""

    kind: Kind
    model: UNet2DConfig = field(default_factory=small_unet)
    stage: StageConfig = field(
        default_factory=lambda: StageConfig(
            share=1.0, batch_size=128, learning_rate=1e-3, warmup=0.05, decay_from=0.3, ema=0.999
        )
    )
    sampler: str = "ddim"
    n_steps: int = 100
    guidance_scale: int | float = 1.0
    drop_label: float = 0.1
    sigma_data: float = 0.7
    patch_size: int = 1
    seed: int = 0
    ladder: tuple[float, ...] = ()
    guidance_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        n_values = self.patch_size**2
        if self.kind != "latent" and (self.model.in_channels, self.model.out_channels) != (n_values, n_values):
            raise ValueError(f"a network for patches of {self.patch_size} by {self.patch_size} has {n_values} channels")
        if self.ladder and len(self.ladder) != self.n_steps + 1:
            raise ValueError(f"a ladder of {self.n_steps} steps has {self.n_steps + 1} sigmas, not {len(self.ladder)}")
        if (self.guidance_range is None) != (self.model.time_cond_proj_dim is None):
            raise ValueError("guidance_range and the model's time_cond_proj_dim belong together")

    @property
    def is_edm(self) -> bool:
        """Whether sigma is continuous and the network preconditioned as in Karras et al. 2022; else noise comes in the
        timesteps of `schedule`."""
        return self.kind in ("edm", "conditional")

    @property
    def edm_objective(self) -> EDMObjective:
        """Sigmas where the paper has them (p_mean -1.2 at a deviation of 0.5), in units of the data's deviation."""
        return EDMObjective(sigma_data=self.sigma_data, p_mean=-1.2 + math.log(self.sigma_data / 0.5))

    @property
    def schedule(self) -> ScheduleConfig:
        """The discrete schedules. (EDM's is continuous.)"""
        if self.kind == "ddpm":
            return ScheduleConfig(beta_schedule="linear", prediction_type="epsilon")
        return ScheduleConfig(
            beta_schedule="squaredcos_cap_v2",
            prediction_type="epsilon" if self.kind == "ddim-cosine" else "v_prediction",
            timestep_spacing="trailing",
        )

    @property
    def knows_classes(self) -> bool:
        return self.model.num_class_embeds is not None


BY_MUON = StageConfig(
    share=1.0, batch_size=128, learning_rate=3e-3, warmup=0.03, decay_from=0.3, ema=0.999, optimizer="muon"
)
RECIPES: dict[Kind, FashionDiffusionConfig] = {
    "ddpm": FashionDiffusionConfig("ddpm", sampler="ddpm", n_steps=1000),
    "ddim-cosine": FashionDiffusionConfig("ddim-cosine"),
    "edm": FashionDiffusionConfig("edm", model=patch_unet(), stage=BY_MUON, patch_size=2, sampler="lms", n_steps=20),
    "conditional": FashionDiffusionConfig(
        *("conditional", patch_unet(N_CLASSES + 1), BY_MUON), patch_size=2, sampler="dpmpp_2m", n_steps=20
    ),
}


class FashionObjective:
    """The recipe's own objective for (pictures or latents, classes); classes are dropped now and then, or ignored.

    `compiler` puts the network through torch.compile, for the steps of the training alone: minutes at the first."""

    def __init__(self, config: FashionDiffusionConfig, compiler: str | None = None) -> None:
        self.config, self.compiler = config, compiler
        self._compiled: Callable[..., Tensor] | None = None
        self.objective: Any = (
            config.edm_objective if config.is_edm else DiffusionObjective(NoiseSchedule(config.schedule))
        )

    def __call__(
        self, model: nn.Module, batch: tuple[Float[Tensor, "b c h w"], Int64[Tensor, " b"]], generator: torch.Generator
    ) -> Float[Tensor, ""]:
        images, labels = batch
        network: Any = model
        if self.compiler is not None:
            self._compiled = self._compiled or torch.compile(model.forward, backend=self.compiler)
            network = self._compiled
        condition = None
        if self.config.knows_classes:
            none = torch.tensor(N_CLASSES, device=labels.device)
            condition = drop_condition(labels, none, self.config.drop_label, generator)
        return self.objective(network, (images.contiguous(memory_format=torch.channels_last), condition), generator)


def train_fashion_diffusion(
    kind: str,
    out: Path,
    *,
    data: Path | None = None,
    epochs: int | float = 25,
    resume: bool = False,
    device: str = "auto",
    config: FashionDiffusionConfig | None = None,
    compiler: str | None = None,
) -> StageRun:
    """Train the recipe `kind` in `out`: weights, config, log, loss curve and grids of samples over time. `compiler` is
    a backend of torch.compile, "inductor" as a rule: minutes to begin with, then more pictures a second.

    Raises UserError if there is no such recipe, the data is not there, `out` is in use, or there is nothing to compile
    with.
    """
    if kind not in KINDS:
        raise UserError(f"unknown recipe {kind!r}: there are {', '.join(KINDS)}")
    config = config or RECIPES[kind]
    train, _ = load_both(data)
    place = pick_device(device)
    if compiler is not None:
        check_compiler(compiler, place)
        if n_launched() > 1:
            raise UserError("--compile is for a training in one process: leave it out under a launcher of several")
    run = start_run("diffusion", out, config, epochs, len(train), config.stage.batch_size, place, resume)
    if is_trained(run):
        return run
    with initial_weights(config.seed):
        model = init_unet(UNet2DModel(config.model))

    def show(path: Path) -> None:
        labels = torch.arange(20) % N_CLASSES
        make_folder(path.parent)
        save_png(path, as_sheet(paint(model, config, labels, seed=0, n_steps=min(config.n_steps, 50))))

    items = TensorDataset((to_patches(train.scaled(PADDING), config.patch_size), train.labels))
    run_stage(run, config.stage, model, items, FashionObjective(config, compiler), config.seed, sample=show)
    save_model(model, out)
    return run


def load_fashion_diffusion(folder: Path, device: torch.device) -> tuple[UNet2DModel, FashionDiffusionConfig]:
    """A trained network and its recipe. Raises UserError if the folder holds none, or not yet."""
    path = folder / CONFIG
    config = config_from_dict(FashionDiffusionConfig, read_json(path), str(path))
    return load_model(UNet2DModel(config.model), folder, device), config


def paint(
    model: UNet2DModel,
    config: FashionDiffusionConfig,
    labels: Int64[Tensor, " n"],
    *,
    seed: int,
    sampler: str | None = None,
    n_steps: int | None = None,
    guidance_scale: int | float | None = None,
    churn: int | float = 0.0,
    batch_size: int = 256,
) -> Float[Tensor, "n 1 h w"]:
    """A picture in [-1, 1] for each of `labels` (which only a network that knows classes looks at); picture i is drawn
    from `seed + i`. None is what the recipe says; `churn` is `s_churn` of Karras et al. 2022, algorithm 2."""
    options: dict[str, Any] = {"sampler": sampler, "n_steps": n_steps, "guidance_scale": guidance_scale}
    drawn = draw(model, config, labels, seed=seed, clip=1.0, churn=churn, batch_size=batch_size, **options)
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
    churn: int | float = 0.0,
    clip: float | None = None,
    change: Callable[[Denoiser], Denoiser] | None = None,
) -> Callable[..., Float[Tensor, "b c h w"]]:
    """`run(unit_noise, *, noise, callback)`, which paints one batch; `clip` bounds x0 (None: nothing does), and
    `change` makes another denoiser of the network's.

    Runs in the precision of training (`training_dtype`), with float32 between the network's calls. Raises UserError for
    an unknown sampler, churn where the sampler has none, or what a distilled network was not made for.
    """
    method, steps = find_sampler(sampler or config.sampler), n_steps or config.n_steps
    options: dict[str, Any] = {"s_churn": float(churn)} if churn else {}
    if churn and method.name not in ("euler", "heun"):
        raise UserError(f"--churn {churn:g} is for the samplers euler and heun, not {method.name}")
    scale = config.guidance_scale if guidance_scale is None else guidance_scale
    check_distilled(config, method.name, steps, scale, churn)
    device = model.conv_in.weight.device
    schedule = None if config.is_edm else NoiseSchedule(config.schedule)
    if schedule is None:
        sigmas = torch.tensor(config.ladder, dtype=torch.float64) if config.ladder else edm_sigmas(steps)
        ladder = Ladder(sigmas, sigmas[:-1], start_scale=SIGMA_MAX)
    else:
        ladder = method.ladder(schedule, steps)
    denoiser = denoiser_for(model, config, schedule, ladder, labels.to(device), scale)
    denoiser = denoiser if change is None else change(denoiser)

    @torch.no_grad()
    def run(unit_noise: Tensor, *, noise: Noise, callback: Callback = no_callback) -> Tensor:
        was_training = model.training
        model.eval()
        with autocast(device):
            drawn = sample(
                *(method, denoiser, ladder, unit_noise),
                noise=noise,
                callback=callback,
                clip=clip,
                prediction_type=config.schedule.prediction_type,
                **options,
            )
        model.train(was_training)
        return drawn

    return run


def edm_sigmas(n_steps: int) -> Float64[Tensor, " n_plus_1"]:
    """The ladder of the recipes of EDM, down to 0."""
    return torch.tensor([*karras_sigmas(SIGMA_MIN, SIGMA_MAX, n_steps), 0.0], dtype=torch.float64)


def check_distilled(
    config: FashionDiffusionConfig, sampler: str, n_steps: int, scale: int | float, churn: int | float
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
        return guided(denoiser, labels, torch.full_like(labels, N_CLASSES), float(scale))
    plain: Callable[..., Tensor] = denoiser
    return lambda x, sigma: plain(x, sigma, None)
