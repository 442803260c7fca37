"""Every number that shapes the text-to-image model and its training, in one place, and three ready sets of them."""

from dataclasses import dataclass, field, replace
from typing import Literal

from miniai.diffusion.objectives import Weighting
from miniai.diffusion.schedule import ScheduleConfig
from miniai.nn.autoencoder import VAEConfig
from miniai.nn.clip import CLIPTextConfig, CLIPVisionConfig
from miniai.nn.unet import UNetConfig


@dataclass(frozen=True)
class StageConfig:
    """How a stage is optimised: a warm-up, a constant rate and half a cosine down to zero.

    `optimizer` is "adamw", or "muon" for matrices and kernels and AdamW beside it for all others, at the same rate (the
    clothes' classifier has a Muon of its own, whatever stands here).
    `share` is the stage's part of `--minutes`; `warmup` and `decay_from` are parts of the stage itself; `batch_size` is
    in pictures; `ema` is the decay per step of the averaged weights, which are those that are kept.
    """

    share: float
    batch_size: int
    learning_rate: float
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    warmup: float = 0.02
    decay_from: float = 0.5
    ema: float = 0.999
    clip_norm: float = 1.0
    optimizer: Literal["adamw", "muon"] = "adamw"


@dataclass(frozen=True)
class VAELossConfig:
    """Weights beside the mean absolute error of pixels, which counts 1 (pictures are in [-1, 1]).

    `kl` multiplies the divergence per latent number, in nats; `edges` the mean absolute error of the differences
    between neighbouring pixels, which keeps outlines sharp. `recolour` is the share of pictures that are seen with
    their red, green and blue in another order, so that rare colours are learned as well as yellow. `equivariant` is the
    share of batches in which latents are turned, mirrored or halved in size, as is the picture that is wanted of them:
    such latents are easier for a U-Net to make (Kouzelis et al. 2025, "EQ-VAE", eq. 5).
    """

    kl: float = 1e-3
    edges: float = 1.0
    recolour: float = 0.5
    equivariant: float = 0.0


@dataclass(frozen=True)
class DecoderLossConfig:
    """Of `painted` of the pictures the decoder sees latents that the U-Net made, from noise of the share `strength` of
    `n_steps` steps and under `guidance_scale`; of the others the encoder's, with noise of a deviation up to `noise` on
    them. The mean absolute error of pixels counts 1, that of `edges` and of the critic's `features` beside it;
    `adversarial` is how strongly the critic's opinion pulls, compared to these."""

    painted: float = 0.5
    strength: float = 0.4
    n_steps: int = 10
    guidance_scale: float = 2.5
    noise: float = 0.2
    edges: float = 1.0
    features: float = 1.0
    adversarial: float = 0.5


@dataclass(frozen=True)
class TextToImageConfig:
    """The whole recipe. `image_size` is in pixels, `window` and `vocab_size` in tokens; `drop_text` is the share of
    pictures that are trained without their caption, for classifier-free guidance (Ho and Salimans 2022); `train_text`
    lets the text encoder go on learning with the U-Net and after it, else CLIP's is frozen and texts are encoded only
    once; `unet_learns` says whether all of the U-Net learns or its transformer blocks alone, which read the text: for
    one that draws well already, and is to read better; `timestep_shift` above 1 trains more at high noise, where the
    text decides: see `draw_timesteps`; `text_noise` is the deviation of the noise that the text's tokens bear while the
    U-Net learns, in parts of their own, so that it takes a text that it never heard for one that it knows, and not for
    something between them; `text_swap` is the share of texts that then end in another text's tail, from the last comma
    on, so that it does not learn each pair of a thing and a style by heart: see `swapped_tails`; `words_shift` is the
    same while captions learn from one another; `words_needy` of these are drawn in proportion to how far they are from
    what they should mean, to the power `words_power`; `words_share` is how much of what they learned is kept."""

    image_size: int
    window: int
    vocab_size: int
    vae: VAEConfig
    text: CLIPTextConfig
    vision: CLIPVisionConfig
    unet: UNetConfig
    vae_stage: StageConfig
    clip_stage: StageConfig
    unet_stage: StageConfig
    words_stage: StageConfig = field(
        default_factory=lambda: StageConfig(
            share=0.05, batch_size=32, learning_rate=7e-4, warmup=0.05, decay_from=0.4, ema=0.99
        )
    )
    decoder_stage: StageConfig = field(
        default_factory=lambda: StageConfig(
            share=0.08, batch_size=16, learning_rate=5e-4, weight_decay=0.0, betas=(0.5, 0.99), ema=0.998
        )
    )
    vae_loss: VAELossConfig = field(default_factory=VAELossConfig)
    decoder_loss: DecoderLossConfig = field(default_factory=DecoderLossConfig)
    schedule: ScheduleConfig = field(
        default_factory=lambda: ScheduleConfig(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction"
        )
    )
    weighting: Weighting = "min_snr_plus_one"
    timestep_shift: float = 2.5
    text_noise: float = 0.0
    text_swap: float = 0.0
    words_shift: float = 5.0
    words_needy: float = 0.5
    words_power: float = 0.75
    words_share: float = 1.0
    drop_text: float = 0.1
    train_text: bool = True
    unet_learns: Literal["all", "attentions"] = "all"
    clip_shift: int = 3  # pixels that CLIP's training pictures are moved by, at most, each way
    seed: int = 0

    def __post_init__(self) -> None:
        if self.image_size % self.vae.factor or self.image_size % self.vision.patch_size:
            raise ValueError(
                f"image_size {self.image_size} must be a multiple of {self.vae.factor} and {self.vision.patch_size}"
            )
        if (self.vision.image_size, self.unet.sample_size) != (self.image_size, self.latent_size):
            raise ValueError(
                f"with image_size {self.image_size} belong vision.image_size {self.image_size} and unet.sample_size "
                f"{self.latent_size}, not {self.vision.image_size} and {self.unet.sample_size}"
            )
        self._check_numbers()
        if self.unet.in_channels != self.vae.latent_channels or self.unet.cross_attention_dim != self.text.hidden_size:
            raise ValueError("the U-Net's channels must fit the VAE's latents, its attention the text encoder's width")

    def _check_numbers(self) -> None:
        above = {name: getattr(self, name) for name in ("timestep_shift", "words_shift")}
        shares = {name: getattr(self, name) for name in ("words_needy", "words_share", "drop_text", "text_swap")}
        for name in ("vae_stage", "clip_stage", "unet_stage", "words_stage", "decoder_stage"):
            stage: StageConfig = getattr(self, name)
            of_stage = {key: getattr(stage, key) for key in ("batch_size", "learning_rate", "clip_norm")}
            above |= {f"{name}.{key}": value for key, value in of_stage.items()}
            shares |= {f"{name}.{key}": getattr(stage, key) for key in ("share", "warmup", "decay_from", "ema")}
            if stage.ema == 1:
                raise ValueError(f"{name}.ema must be below 1, or the average never moves")
        if not 0 <= self.text_noise < float("inf"):
            raise ValueError(f"text_noise must be 0, for none, or more, not {self.text_noise}")
        for key, value in above.items():
            if not 0 < value < float("inf"):
                raise ValueError(f"{key} must be above 0, not {value}")
        for key, value in shares.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{key} must be from 0 to 1, not {value}")

    @property
    def latent_size(self) -> int:
        return self.image_size // self.vae.factor


SMALL = TextToImageConfig(
    image_size=64,
    window=32,
    vocab_size=4096,
    vae=VAEConfig(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 48, 96, 128),
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=8,
        sample_size=64,
        scaling_factor=1.0,
    ),
    text=CLIPTextConfig(
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=4,
        projection_dim=192,
    ),
    vision=CLIPVisionConfig(
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=3,
        image_size=64,
        patch_size=16,
        projection_dim=192,
    ),
    unet=UNetConfig(
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        sample_size=8,
        in_channels=16,
        out_channels=16,
        block_out_channels=(160, 288),
        layers_per_block=1,
        cross_attention_dim=256,
        attention_head_dim=(5, 9),
        use_linear_projection=True,
    ),
    vae_loss=VAELossConfig(equivariant=0.5),
    vae_stage=StageConfig(share=0.18, batch_size=24, learning_rate=1e-3, weight_decay=0.0, ema=0.995, optimizer="muon"),
    clip_stage=StageConfig(
        share=0.14, batch_size=64, learning_rate=7e-4, weight_decay=0.1, ema=0.995, warmup=0.05, optimizer="muon"
    ),
    unet_stage=StageConfig(share=0.60, batch_size=128, learning_rate=2e-3, ema=0.999, decay_from=0.4, optimizer="muon"),
)

TINY = replace(
    SMALL,
    image_size=16,
    window=12,
    vocab_size=600,
    vae=replace(
        SMALL.vae,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        latent_channels=4,
        sample_size=16,
    ),
    text=replace(SMALL.text, hidden_size=32, intermediate_size=64, num_hidden_layers=2, projection_dim=16),
    vision=replace(
        SMALL.vision,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        image_size=16,
        patch_size=8,
        projection_dim=16,
        num_attention_heads=4,
    ),
    unet=replace(
        SMALL.unet,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 32),
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=8,
    ),
    vae_stage=replace(SMALL.vae_stage, batch_size=4),
    clip_stage=replace(SMALL.clip_stage, batch_size=8),
    unet_stage=replace(SMALL.unet_stage, batch_size=8),
    words_stage=replace(SMALL.words_stage, batch_size=8),
    decoder_stage=replace(SMALL.decoder_stage, batch_size=4),
)

# The same networks in batches that fill a GPU, which then can do with fewer of the steps and larger ones.
GPU = replace(
    SMALL,
    vae_stage=replace(SMALL.vae_stage, share=0.14, batch_size=192, learning_rate=2e-3, ema=0.999),
    clip_stage=replace(SMALL.clip_stage, share=0.06, batch_size=512, learning_rate=1.4e-3, ema=0.998),
    unet_stage=replace(SMALL.unet_stage, share=0.68, batch_size=256, learning_rate=2.5e-3),
    words_stage=replace(SMALL.words_stage, share=0.05, batch_size=128, learning_rate=1e-3, ema=0.998),
    decoder_stage=replace(SMALL.decoder_stage, share=0.07, batch_size=64, learning_rate=7e-4, ema=0.999),
    timestep_shift=2.0,
)


def finer(config: TextToImageConfig, top: int = 64) -> TextToImageConfig:
    """The recipe with as many latent numbers in four times as many places: a level less in the VAE, whose latents keep
    small shapes better, and one of `top` channels without attention more in the U-Net, where these places are."""
    vae, unet, heads = config.vae, config.unet, config.unet.attention_head_dim
    channels = vae.latent_channels // 4
    return replace(
        config,
        vae=replace(
            vae,
            down_block_types=vae.down_block_types[1:],
            up_block_types=vae.up_block_types[1:],
            block_out_channels=vae.block_out_channels[:-1],
            latent_channels=channels,
        ),
        unet=replace(
            unet,
            down_block_types=("DownBlock2D", *unet.down_block_types),
            up_block_types=(*unet.up_block_types, "UpBlock2D"),
            block_out_channels=(top, *unet.block_out_channels),
            attention_head_dim=heads if isinstance(heads, int) else (1, *heads),  # the new level has none
            norm_num_groups=32 if top % 32 == 0 else 16,
            sample_size=2 * unet.sample_size,
            in_channels=channels,
            out_channels=channels,
        ),
    )


SIZES = {"small": SMALL, "fine": finer(SMALL), "gpu": GPU, "gpu-fine": finer(GPU), "tiny": TINY}

GOING_ON = 0.5  # of the U-Net's learning rate; at all of it and more a trained one forgets first


def gentler(config: TextToImageConfig) -> TextToImageConfig:
    """The recipe for a U-Net that has learned already."""
    stage = config.unet_stage
    return replace(config, unet_stage=replace(stage, learning_rate=GOING_ON * stage.learning_rate))
