"""The recipes of painted clothes: one network and one training for all; what differs is how noise is added, what is
predicted, and how it is taken out."""

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from miniai.base.errors import UserError
from miniai.diffusion.continuous_objectives import EDMObjective
from miniai.diffusion.ladder import cosine_sigmas, exponential_sigmas, karras_sigmas
from miniai.diffusion.schedule import PredictionType, ScheduleConfig
from miniai.nn.unet2d import UNet2DConfig
from miniai.recipes.fashion_unets import patch_unet, small_unet
from miniai.recipes.text_to_image_config import StageConfig

Kind = Literal["ddpm", "ddim-cosine", "edm", "conditional", "latent"]
KINDS: tuple[Kind, ...] = ("ddpm", "ddim-cosine", "edm", "conditional")  # of pixels; `fashion_latent` has the other
N_CLASSES = 10  # and class 10 stands for none
SIGMA_MIN, SIGMA_MAX = 0.002, 80.0  # Karras et al. 2022, table 1
SPACINGS = ("karras", "exponential", "cosine")


@dataclass(frozen=True)
class FashionDiffusionConfig:
    """The whole recipe. `sampler`, `n_steps` and `guidance_scale` are how it is painted unless something else is asked
    for; `drop_label` is the share of pictures trained without their class, where there are classes; `sigma_data` the
    deviation of the pixels, which EDM scales by. `patch_size`: above 1 the network sees pictures without their padding,
    the pixels of each patch of that many by that many as channels: see `to_patches`. A distilled network has `ladder`,
    the sigmas that it paints by, down to 0, or `guidance_range`, the scales that it may be told; or both. `init` is the
    folder of the training whose weights this one began with, if any. `prediction_type` is of the discrete schedules
    (None: noise, but v in latents). `levels` are EDM's sigmas, in training and in painting: as Karras et al. have
    them, or evenly on the cosine schedule."""

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
    init: str | None = None
    prediction_type: PredictionType | None = None
    levels: Literal["karras", "cosine"] = "karras"

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
        timesteps of `schedule`, as in trainings of fashion-ddim-cosine that know no `levels` yet."""
        return self.kind in ("edm", "conditional") or self.levels == "cosine"

    @property
    def edm_objective(self) -> EDMObjective:
        """Sigmas where the paper has them (p_mean -1.2 at a deviation of 0.5), in units of the data's deviation; or
        those of the cosine schedule."""
        if self.levels == "cosine":
            return EDMObjective(self.sigma_data, levels="cosine")
        return EDMObjective(self.sigma_data, p_mean=-1.2 + math.log(self.sigma_data / 0.5))

    def edm_sigmas(self, n_steps: int, spacing: str | None = None) -> Float64[Tensor, " n_plus_1"]:
        """`n_steps` levels of EDM and 0 after them, in one of `SPACINGS` (None: as `levels` says). Raises UserError for
        any other."""
        spacing = self.levels if spacing is None else spacing
        if spacing not in SPACINGS:
            raise UserError(f"unknown spacing {spacing!r}: there are {', '.join(SPACINGS)}")
        if spacing == "cosine":
            sigmas = cosine_sigmas(SIGMA_MAX, n_steps, self.sigma_data)
        else:
            sigmas = (karras_sigmas if spacing == "karras" else exponential_sigmas)(SIGMA_MIN, SIGMA_MAX, n_steps)
        return torch.tensor([*sigmas, 0.0], dtype=torch.float64)

    @property
    def schedule(self) -> ScheduleConfig:
        """The discrete schedules. (EDM's is continuous.)"""
        usual: PredictionType = "v_prediction" if self.kind == "latent" else "epsilon"
        return ScheduleConfig(
            beta_schedule="linear" if self.kind == "ddpm" else "squaredcos_cap_v2",
            prediction_type=self.prediction_type or usual,
            timestep_spacing="leading" if self.kind == "ddpm" else "trailing",
        )

    @property
    def knows_classes(self) -> bool:
        return self.model.num_class_embeds is not None


BY_MUON = StageConfig(
    share=1.0, batch_size=128, learning_rate=3e-3, warmup=0.03, decay_from=0.3, ema=0.999, optimizer="muon"
)
ON_PATCHES: dict[str, Any] = {"stage": BY_MUON, "patch_size": 2}
RECIPES: dict[Kind, FashionDiffusionConfig] = {
    "ddpm": FashionDiffusionConfig("ddpm", model=patch_unet(), sampler="ddpm", n_steps=1000, **ON_PATCHES),
    "ddim-cosine": FashionDiffusionConfig("ddim-cosine", model=patch_unet(), levels="cosine", **ON_PATCHES),
    "edm": FashionDiffusionConfig("edm", model=patch_unet(), sampler="lms", n_steps=20, **ON_PATCHES),
    "conditional": FashionDiffusionConfig(
        "conditional", model=patch_unet(N_CLASSES + 1), sampler="dpmpp_2m", n_steps=20, **ON_PATCHES
    ),
}


def recipe(kind: str, learning_rate: float | None = None, classes: bool = False) -> FashionDiffusionConfig:
    """The recipe of that name, at another rate if one is given; with `classes` its network is told them, whatever the
    recipe. Raises UserError if there is none, or for a rate that is not above 0."""
    if kind not in KINDS:
        raise UserError(f"unknown recipe {kind!r}: there are {', '.join(KINDS)}")
    config = RECIPES[kind]
    if classes:
        config = replace(config, model=replace(config.model, num_class_embeds=N_CLASSES + 1))
    if learning_rate is None:
        return config
    if not 0 < learning_rate < math.inf:
        raise UserError(f"--learning-rate {learning_rate:g} is not possible: give a number above 0")
    return replace(config, stage=replace(config.stage, learning_rate=learning_rate))
