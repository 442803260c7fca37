"""`miniai train imagic`: one real picture edited by a text that says how it shall look (Kawar et al. 2022, "Imagic",
arXiv 2210.09276, section 3).

1. The text's vectors move until the model, as it is, paints the picture from them.
2. The model learns to paint the picture from these vectors (the paper changes all weights; here thin changes do, which
   are a small file: see `miniai.nn.low_rank`).
3. Between these vectors and the text's own lies the picture as the text has it.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from miniai.base.device import pick_device
from miniai.base.errors import UserError
from miniai.base.images import open_image, save_png
from miniai.base.seeds import image_generators
from miniai.base.weights import read_weights, write_weights
from miniai.diffusion.objectives import DiffusionObjective
from miniai.diffusion.sampling import sampler_from_file, schedule_config
from miniai.diffusion.schedule import NoiseSchedule
from miniai.nn.low_rank import LowRankLayers
from miniai.recipes.fashion import keep_config
from miniai.recipes.generate_request import MAX_GUIDANCE_SCALE, check_ranges
from miniai.recipes.personalise import check_shift_and_seed, load_pipeline
from miniai.recipes.personalise_config import UNET_LAYERS
from miniai.recipes.personalise_data import encoded, keep_digest, refuse_other_pictures, side_of
from miniai.recipes.sheets import labelled_grid
from miniai.recipes.text_to_image_config import StageConfig
from miniai.recipes.training import StageRun, initial_weights, run_stage
from miniai.sd.folder import SCHEDULER
from miniai.sd.lora_files import UNET, write_lora
from miniai.sd.pipeline import StableDiffusionPipeline
from miniai.train.captions import CaptionedItem, load_images
from miniai.train.data import TensorDataset
from miniai.train.distributed import n_launched

VECTORS, CHANGES, SHEET = "vectors.safetensors", "pytorch_lora_weights.safetensors", "edited.png"
PAINTED_STEPS = 30


def _stage(learning_rate: float) -> StageConfig:
    return StageConfig(
        share=1.0, batch_size=4, learning_rate=learning_rate, weight_decay=0.0, warmup=0.05, decay_from=0.5, ema=0.98
    )


@dataclass(frozen=True)
class ImagicConfig:
    """`model`: what is painted with; `prompt`: how the picture shall look; `rank` of the model's changes;
    `timestep_shift`: see `draw_timesteps`."""

    model: str
    prompt: str
    vector_stage: StageConfig = field(default_factory=lambda: _stage(1e-2))
    model_stage: StageConfig = field(default_factory=lambda: _stage(3e-4))
    rank: int = 16
    timestep_shift: int | float = 1.0
    tokenizer: str | None = None
    seed: int = 0


class TextVectors(nn.Module):
    """The vectors of a text, which learn."""

    def __init__(self, vectors: Float[Tensor, "1 n d"]) -> None:
        super().__init__()
        self.vectors = nn.Parameter(vectors.clone())


class ImagicObjective:
    """The model's own diffusion loss on the picture, told the vectors: those of a `TextVectors` that learns, or else
    these, while changes of the U-Net do."""

    def __init__(self, pipe: StableDiffusionPipeline, config: ImagicConfig, vectors: Tensor | None = None) -> None:
        self.pipe, self.vectors = pipe, vectors
        raw = pipe.scheduler_config
        schedule = NoiseSchedule(schedule_config(raw, sampler_from_file(raw, SCHEDULER), SCHEDULER))
        self.diffusion = DiffusionObjective(schedule, timestep_shift=config.timestep_shift)

    def __call__(
        self, model: nn.Module, batch: tuple[Float[Tensor, "b c h w"]], generator: torch.Generator
    ) -> Float[Tensor, ""]:
        (latents,) = batch
        if isinstance(model, TextVectors):
            return self._loss(latents, model.vectors, generator)
        assert isinstance(model, LowRankLayers)
        assert self.vectors is not None
        with model.attached(self.pipe.unet):
            return self._loss(latents, self.vectors, generator)

    def _loss(self, latents: Tensor, vectors: Tensor, generator: torch.Generator) -> Tensor:
        said = vectors.expand(len(latents), -1, -1)
        x0 = latents.contiguous(memory_format=torch.channels_last)
        return self.diffusion(self.pipe.unet, (x0, said), generator)


def imagic(
    image: Path,
    out: Path,
    config: ImagicConfig,
    *,
    vector_steps: int = 200,
    model_steps: int = 300,
    etas: Sequence[int | float] = (0.0, 0.4, 0.6, 0.7, 0.8, 0.9, 1.0),
    guidance_scale: int | float = 2.5,
    resume: bool = False,
    device: str = "auto",
) -> Path:
    """Edit the picture `image` in the folder `out` and return the sheet of results: one picture for each of `etas`, the
    part of the way from the picture (0) to the text (1). The picture is scaled and cropped to the model's square.

    Raises UserError, and writes nothing, for a picture or a model that cannot be read, numbers that are not possible,
    and a folder that is in use.
    """
    _check(config, vector_steps, model_steps, etas, guidance_scale)
    place = pick_device(device)
    pipe = load_pipeline(config.model, config.tokenizer, place)
    open_image(image)
    size = side_of(pipe, None)
    picture = load_images([CaptionedItem(image, (config.prompt,))], size)
    own_picture = encoded(pipe, picture, [[config.prompt]])
    refuse_other_pictures(out, own_picture)
    keep_config(out, config, resume)
    keep_digest(out, own_picture)
    items = TensorDataset((own_picture.mean.repeat(config.vector_stage.batch_size, 1, 1, 1),))
    for part in (pipe.unet, pipe.text_encoder):
        part.requires_grad_(False)
    with torch.no_grad():
        target = pipe.encode_text([config.prompt]).float()

    run = StageRun("vectors", out / "vectors", place, None, vector_steps)
    if not run.kept(out / VECTORS):
        text = TextVectors(target)
        run_stage(run, config.vector_stage, text, items, ImagicObjective(pipe, config), config.seed)
        write_weights(out / VECTORS, {"vectors": text.vectors.detach()})
    else:
        _say_if_other(run, vector_steps)
    own = read_weights(out / VECTORS)["vectors"].to(place)

    run = StageRun("model", out / "model", place, None, model_steps)
    if not run.kept(out / CHANGES):
        with initial_weights(config.seed):
            layers = LowRankLayers(pipe.unet, UNET_LAYERS, config.rank)
        run_stage(run, config.model_stage, layers, items, ImagicObjective(pipe, config, own), config.seed)
        write_lora(out / CHANGES, {UNET: layers.changes()})
    else:
        _say_if_other(run, model_steps)
    pipe.load_lora_weights(out / CHANGES)
    images = edited(pipe, own, target, etas, guidance_scale, config.seed)
    for eta, one in zip(etas, images, strict=True):
        save_png(out / f"eta-{eta:g}.png", one)
    save_png(out / SHEET, sheet(Image.fromarray(picture[0].permute(1, 2, 0).numpy()), images, etas, config.prompt))
    print(f"from the picture to the text, eta {', '.join(f'{eta:g}' for eta in etas)}: {out / SHEET}", file=sys.stderr)
    return out / SHEET


def _say_if_other(run: StageRun, steps: int) -> None:
    before = run.record()["steps"]
    if before != steps:
        print(f"the stage {run.name!r} learned in {before} steps before, and stays so: not {steps}", file=sys.stderr)


def sheet(picture: Image.Image, images: Sequence[Image.Image], etas: Sequence[int | float], prompt: str) -> Image.Image:
    """The picture itself, and what became of it at each eta."""
    cells = [(picture, "the picture"), *((one, f"eta {eta:g}") for one, eta in zip(images, etas, strict=True))]
    return labelled_grid(cells, len(cells), f"edited by: {prompt}", zoom=max(1, 128 // picture.width))


def edited(
    pipe: StableDiffusionPipeline,
    own: Float[Tensor, "1 n d"],
    target: Float[Tensor, "1 n d"],
    etas: Sequence[int | float],
    guidance_scale: int | float,
    seed: int,
) -> list[Image.Image]:
    """A picture for each eta, from the same noise, told eta · target + (1 - eta) · own (Kawar et al. 2022, eq. 3)."""
    vectors = torch.cat([eta * target + (1 - eta) * own for eta in etas])
    generators = [image_generators(seed, 1)[0] for _ in etas]
    images = pipe(
        prompt_embeds=vectors,
        num_inference_steps=PAINTED_STEPS,
        guidance_scale=guidance_scale,
        sampler="dpmpp_2m",
        negative_prompt="",
        generator=generators,
    ).images
    assert isinstance(images, list)
    return images


def _check(
    config: ImagicConfig,
    vector_steps: int,
    model_steps: int,
    etas: Sequence[int | float],
    guidance_scale: int | float,
) -> None:
    check_shift_and_seed(config.timestep_shift, config.seed)
    check_ranges(("--guidance-scale", guidance_scale, 0, MAX_GUIDANCE_SCALE, ""))
    if n_launched() > 1:
        raise UserError("imagic learns in one process: start it without a launcher of several")
    for option, value in (("--vector-steps", vector_steps), ("--model-steps", model_steps), ("--rank", config.rank)):
        if value < 1:
            raise UserError(f"{option} {value} is not possible: give a number above 0")
    if not etas or not all(-2 <= eta <= 2 for eta in etas):
        raise UserError(f"--etas {', '.join(f'{eta:g}' for eta in etas)} are not possible: give numbers from -2 to 2")
